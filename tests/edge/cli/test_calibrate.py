"""The command `calibrate`: a target in, a stored operating point out, and what it changes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from retrieval.contract.bundle import Bundle
from retrieval.edge.cli.app import app
from retrieval.engine.store import Store
from retrieval.errors import InvalidInput, UnknownBundle
from tests.photos import write_shots
from tests.pictures import write_class_folders


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """30 classes of 4 pictures."""
    folder = tmp_path_factory.mktemp("calibration") / "images"
    return write_shots(folder, places=range(1000, 1030), n_shots=4)


def calibrate(folder: Path, bundle: Bundle, images: Path, *options: str) -> str:
    """What the command prints."""
    where = ("--store", str(folder / "store"), "--state-dir", str(folder / "state"))
    arguments = ["calibrate", "--bundle", str(bundle.directory), "--data", str(images), *where, *options]
    return CliRunner().invoke(app, arguments, catch_exceptions=False, standalone_mode=False).stdout


@pytest.mark.slow
def test_another_target_is_compared_with_the_one_in_use(
    tmp_path: Path, tiny_bundle: Bundle, images: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    first = json.loads(
        printed(capfd, calibrate(tmp_path, tiny_bundle, images, "--far", "0.05", "--activate", "--json"))
    )
    assert (first["active"], first["changes"], first["no_changes"]) == (True, None, "no operating point was active")
    assert first["choice"]["target"] == "far=0.05"
    second = json.loads(
        printed(capfd, calibrate(tmp_path, tiny_bundle, images, "--target", "class-far=0.02", "--json"))
    )
    assert not second["active"]
    assert second["choice"]["target"] == "class-far=0.02"
    assert second["changes"]["active"] == first["choice"]["threshold"]
    assert second["changes"]["proposed"] == second["choice"]["threshold"]
    assert len(second["changes"]["classes"]) == 30
    text = printed(capfd, calibrate(tmp_path, tiny_bundle, images, "--target", "f1@0.05"))
    for expected in ("the largest F1 if", "of the true pairs", "decisions change", "stored; to activate it"):
        assert expected in text
    assert Store(str(tmp_path / "store")).active_id(tiny_bundle.digest) == first["id"]


def test_an_operating_point_of_an_older_format_does_not_stop_it(
    tmp_path: Path, tiny_bundle: Bundle, images: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Its own message says to calibrate again, so that has to work."""
    first = json.loads(
        printed(capfd, calibrate(tmp_path, tiny_bundle, images, "--far", "0.05", "--activate", "--json"))
    )
    (stored,) = (tmp_path / "store").rglob(f"{first['id']}.json")
    stored.write_text(json.dumps(json.loads(stored.read_text()) | {"format": 1}))
    again = json.loads(
        printed(capfd, calibrate(tmp_path, tiny_bundle, images, "--far", "0.05", "--activate", "--json"))
    )
    assert "expected operating point format 2, found 1" in again["no_changes"]
    assert again["active"]


def test_a_bundle_that_is_nowhere_is_named_so(tmp_path: Path, tiny_bundle: Bundle, images: Path) -> None:
    """A misspelt folder is the usual reason, so the message speaks of folders too, and of what the store holds."""
    store = Store(str(tmp_path / "store"))
    arguments = ["calibrate", "--bundle", "nothere", "--data", str(images), "--store", str(tmp_path / "store")]
    for known in ("it holds no bundle yet", tiny_bundle.digest):
        with pytest.raises(UnknownBundle, match=f"'nothere' is neither a folder nor an id in the store .*{known}"):
            CliRunner().invoke(app, arguments, catch_exceptions=False, standalone_mode=False)
        store.add_bundle(tiny_bundle.directory)


def test_far_and_target_together_are_refused(tmp_path: Path, tiny_bundle: Bundle, images: Path) -> None:
    with pytest.raises(InvalidInput, match="expected --far or --target, found both"):
        calibrate(tmp_path, tiny_bundle, images, "--far", "0.05", "--target", "utility")
    with pytest.raises(InvalidInput, match=r"'eer=0\.1' is no target"):
        calibrate(tmp_path, tiny_bundle, images, "--target", "eer=0.1")


def test_what_is_no_image_is_reported(tmp_path: Path, tiny_bundle: Bundle, capfd: pytest.CaptureFixture[str]) -> None:
    """Of the calibration images and of the cohort, to stderr and in the JSON."""
    for folder, first in (("data", 0), ("cohort", 100)):
        write_class_folders(tmp_path / folder, n_classes=20, n_images=4, first_class=first)
        (tmp_path / folder / f"{folder}.txt").write_text("no image")
    where = ("--store", str(tmp_path / "store"), "--state-dir", str(tmp_path / "state"))
    sources = ("--data", str(tmp_path / "data"), "--cohort", str(tmp_path / "cohort"))
    arguments = ["calibrate", "--bundle", str(tiny_bundle.directory), *sources, *where, "--far", "0.1", "--json"]
    done = CliRunner().invoke(app, arguments, catch_exceptions=False, standalone_mode=False)
    captured = capfd.readouterr()
    expected = ["1 passed over (no images): data.txt", "1 passed over (no images): cohort.txt"]
    assert json.loads(done.stdout or captured.out)["passed_over"] == expected
    shown = " ".join((done.stderr + captured.err).split())
    assert all(sentence in shown for sentence in expected)


def printed(capfd: pytest.CaptureFixture[str], output: str) -> str:
    """The console was made before the runner put its own stdout in place."""
    return output or capfd.readouterr().out
