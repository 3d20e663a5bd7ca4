"""Which drawings show the same emoji, on made-up makers."""

import io
import json
import tarfile
from pathlib import Path

import pytest

from retrieval.errors import CorruptArtifact, NotEnoughEvidence, Unavailable
from training.emoji import drawings
from training.emoji.drawings import VERSIONS, IconSet, fetch_packages, join_drawings, read_icon_set


def icon_set(maker: str, *names: str, **aliases: str) -> IconSet:
    svgs = {name: f"<svg>{maker} {name}</svg>" for name in names}
    return IconSet(maker=maker, svgs=svgs, aliases={alias.replace("_", "-"): name for alias, name in aliases.items()})


def package(path: Path, icons: object) -> Path:
    content = json.dumps(icons).encode()
    with tarfile.open(path, "w:gz") as tar:
        entry = tarfile.TarInfo("package/icons.json")
        entry.size = len(content)
        tar.addfile(entry, io.BytesIO(content))
    return path


def test_names_join_without_hyphens_and_by_any_makers_alias() -> None:
    drawings = join_drawings(
        [
            icon_set("first", "red-apple", "cat"),
            icon_set("second", "redapple", "dog"),
            icon_set("third", "apple", apple_fruit="apple"),
            icon_set("fourth", "apple-fruit", "red-apple", apple="red-apple"),
        ],
        min_makers=4,
    )
    assert [(drawing.label, drawing.maker) for drawing in drawings] == [
        ("red-apple", "first"),
        ("red-apple", "second"),
        ("red-apple", "third"),
        ("red-apple", "fourth"),
    ]
    assert drawings[3].svg == "<svg>fourth red-apple</svg>"


def test_one_drawing_for_two_emoji_is_left_out() -> None:
    same = IconSet(maker="lazy", svgs={"man": "<svg/>", "woman": "<svg/>"}, aliases={})
    drawings = join_drawings([same, icon_set("first", "man", "woman"), icon_set("second", "man")], min_makers=1)
    assert [(drawing.label, drawing.maker) for drawing in drawings] == [
        ("man", "first"),
        ("man", "second"),
        ("woman", "first"),
    ]


def test_no_emoji_with_enough_makers_is_an_error() -> None:
    with pytest.raises(NotEnoughEvidence, match="drawn by 2 of 1 makers"):
        join_drawings([icon_set("only", "cat")], min_makers=2)


def test_a_package_is_read_without_skin_tones_and_changed_aliases(tmp_path: Path) -> None:
    icons = {
        "width": 64,
        "height": 32,
        "icons": {
            "hand": {"body": "<path/>", "left": 1},
            "hand-light-skin-tone": {"body": ""},
            "hand-medium-dark": {"body": ""},
            "dark-moon": {"body": ""},
        },
        "aliases": {"palm": {"parent": "hand"}, "other-hand": {"parent": "hand", "hFlip": True}},
    }
    found = read_icon_set("maker", package(tmp_path / "maker.tgz", icons))
    assert sorted(found.svgs) == ["dark-moon", "hand"]
    assert 'viewBox="1 0 64 32"><path/></svg>' in found.svgs["hand"]
    assert found.aliases == {"palm": "hand"}


def test_a_damaged_package_is_named(tmp_path: Path) -> None:
    whole = package(tmp_path / "maker.tgz", {"icons": {}}).read_bytes()
    (tmp_path / "maker.tgz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CorruptArtifact, match=r"maker\.tgz is damaged .* delete it and run again"):
        read_icon_set("maker", tmp_path / "maker.tgz")


def test_what_is_there_is_not_fetched_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[str]] = []

    def pack(packages: list[str], destination: Path) -> None:
        asked.append(packages)
        for name in packages:
            maker, _, version = name.removeprefix("@iconify-json/").rpartition("@")
            (destination / f"iconify-json-{maker}-{version}.tgz").write_bytes(b"archive")

    monkeypatch.setattr(drawings, "_npm_pack", pack)
    archives = fetch_packages(tmp_path)
    assert len(asked[0]) == len(archives) == len(VERSIONS)
    archives["noto"].unlink()
    fetch_packages(tmp_path)
    assert asked[1:] == [[f"@iconify-json/noto@{VERSIONS['noto']}"]]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(path.name for path in archives.values())


def test_a_failing_npm_is_reported_with_its_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    npm = tmp_path / "npm"
    npm.write_text("#!/bin/sh\necho 'npm error network unreachable' >&2\nexit 1\n")
    npm.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    with pytest.raises(Unavailable, match="npm error network unreachable; check the network"):
        fetch_packages(tmp_path / "packages")
    assert list((tmp_path / "packages").iterdir()) == []
