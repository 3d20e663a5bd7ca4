"""`training split` and `training duplicates` as a user runs them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from retrieval.contract.manifest import read_manifest
from tests.pictures import encoded, noise, write_class_folders


def test_split_then_duplicates(tmp_path: Path, training: Callable[..., tuple[int, str, str]]) -> None:
    """The parts share no picture, until one is copied."""
    data = write_class_folders(tmp_path / "data", n_classes=20, n_images=2)
    code, out, err = training("split", data, "--out", tmp_path / "my", "--json")
    assert code == 0, err
    assert json.loads(out)["n_classes"] == {"validation": 2, "calibration": 4, "new": 4, "train": 10}
    parts = [tmp_path / "my" / f"{name}.csv" for name in ("train", "validation", "calibration", "new")]
    assert sorted(path.name for path in (tmp_path / "my").iterdir()) == sorted(path.name for path in parts)

    code, out, _ = training("duplicates", *parts)
    assert (code, out) == (
        0,
        "40 images: 0 pairs of one picture in two parts or under two labels, 0 inside one class\n",
    )

    first, second = read_manifest(str(parts[0]))[0], read_manifest(str(parts[3]))[0]
    Path(second.uri.removeprefix("file://")).write_bytes(Path(first.uri.removeprefix("file://")).read_bytes())
    code, out, _ = training("duplicates", *parts)
    assert code == 1
    line = out.splitlines()[0]
    assert line.startswith("exact  0.0")
    for part, item in ((parts[0], first), (parts[3], second)):
        assert f"{part} {item.id} ({item.label})" in line
    code, out, _ = training("duplicates", *parts, "--json")
    assert [pair["kind"] for pair in json.loads(out)["harmful"]] == ["exact"]


def test_a_published_split_is_kept(tmp_path: Path, training: Callable[..., tuple[int, str, str]]) -> None:
    """Its test classes become new.csv; the other parts come out of its training classes."""
    header = "image_id class_id super_class_id path\n"
    lines: dict[str, list[str]] = {"train": [], "test": []}
    (tmp_path / "sop" / "mug_final").mkdir(parents=True)
    for number in range(1, 15):
        path = f"mug_final/{number}.JPG"
        (tmp_path / "sop" / path).write_bytes(encoded(noise(16, number)))
        lines["train" if number <= 10 else "test"].append(f"{number} {number} 1 {path}\n")
    for part, rows in lines.items():
        (tmp_path / "sop" / f"Ebay_{part}.txt").write_text(header + "".join(rows))
    code, out, err = training("split", tmp_path / "sop", "--out", tmp_path / "my", "--json")
    assert code == 0, err
    assert json.loads(out)["n_classes"] == {"validation": 1, "calibration": 2, "train": 7, "new": 4}
    new = read_manifest(str(tmp_path / "my" / "new.csv"))
    assert {item.label for item in new} == {"11", "12", "13", "14"}
    assert new[0].attributes == {"super_class": "1"}


def test_usage_errors(tmp_path: Path, training: Callable[..., tuple[int, str, str]]) -> None:
    data = write_class_folders(tmp_path / "data", n_classes=3, n_images=1)
    for arguments, code, expected in (
        (("split", data, "--out", tmp_path / "my"), 3, "3 classes leave none for validation, calibration, new"),
        (("split", data, "--out", tmp_path / "my", "--layout", "sup"), 2, "did you mean sop"),
        (("split", tmp_path / "none", "--out", tmp_path / "my"), 2, "expected the folder of a data set, found none"),
        (("duplicates", tmp_path / "none.csv"), 2, "found nothing there"),
    ):
        found, out, err = training(*arguments)
        assert (found, out) == (code, ""), err
        assert expected in err


def test_what_is_no_image_is_reported(tmp_path: Path, training: Callable[..., tuple[int, str, str]]) -> None:
    """By every command that reads a folder, to stderr and in the JSON."""
    data = write_class_folders(tmp_path / "data", n_classes=20, n_images=2)
    (data / ".ipynb_checkpoints").mkdir()
    (data / ".ipynb_checkpoints" / "a.png").write_bytes(encoded(noise(8)))
    (data / "again").symlink_to(next(path for path in sorted(data.iterdir()) if not path.name.startswith(".")))
    expected = [
        "1 passed over (hidden, or left by another program): .ipynb_checkpoints",
        "1 passed over (links to folders that are read under another name): again",
    ]
    for arguments in (("split", data, "--out", tmp_path / "my"), ("duplicates", data)):
        code, out, err = training(*arguments, "--json")
        assert code == 0, err
        assert json.loads(out)["passed_over"] == expected
        assert all(sentence in err for sentence in expected)
