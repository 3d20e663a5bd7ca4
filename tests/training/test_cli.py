"""The commands as a user runs them: result on stdout, the rest on stderr, exit codes."""

import inspect
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import pytest

from training.cli.bundles import export
from training.export import ExportOptions

CONFIG = """
[input]
resize = 32
crop = 32
[model]
dimension = 16
frozen = ["stem", "blocks"]
[schedule]
steps = 2
head_steps = 2
classes = 4
images = 2
"""


@pytest.mark.slow
def test_train_export_evaluate(
    tmp_path: Path, folders: tuple[Path, Path], training: Callable[..., tuple[int, str, str]]
) -> None:
    """The three commands in a row; each prints one JSON object that names what the next one needs."""
    data, held_out = folders
    config = tmp_path / "config.toml"
    config.write_text(CONFIG)
    options = ("--data", data, "--validation", held_out, "--out", tmp_path / "run", "--config", config)
    code, out, err = training("train", *options, "--json")
    assert code == 0, err
    assert "40 images of 8 classes" in err
    trained = json.loads(out)
    assert trained["run"] == str(tmp_path / "run")

    measured = ("--images", held_out, "--far", "0.05")
    code, out, err = training("export", trained["run"], "--out", tmp_path / "bundle", *measured, "--json")
    assert code == 0, err
    exported = json.loads(out)
    assert (exported["dimension"], exported["precision"]) == (16, "fp32")
    assert exported["shift"]["n_images"] == 70

    options = ("--bundle", tmp_path / "bundle", "--data", held_out, "--report", tmp_path / "report")
    code, out, err = training("evaluate", *options, "--json")
    assert code == 0, err
    assert (tmp_path / "report" / "classes.csv").is_file()
    found = json.loads(out)
    # Two programs, one model: cosines differ by rounding, so at most single pairs change sides.
    assert found["r_at_1"] == pytest.approx(trained["held_out"]["r_at_1"], abs=0.02)
    assert found["threshold"] == pytest.approx(trained["held_out"]["threshold"], abs=1e-3)
    assert "warnings" in found
    code, out, err = training("evaluate", *options[:4], "--family", "maker")
    assert (code, out) == (2, "")
    assert "expected a column 'maker' of families, found none" in err


@pytest.mark.slow
def test_every_command_reports_what_is_no_image(
    tmp_path: Path, folders: tuple[Path, Path], run: Path, training: Callable[..., tuple[int, str, str]]
) -> None:
    """In both manifests that it reads, to stderr and in the JSON."""
    data, held_out = (shutil.copytree(folder, tmp_path / folder.name) for folder in folders)
    (data / "note.txt").write_text("no image")
    (held_out / ".hidden.png").write_bytes(b"")
    note, hidden = (
        "1 passed over (no images): note.txt",
        "1 passed over (hidden, or left by another program): .hidden.png",
    )
    (tmp_path / "config.toml").write_text(CONFIG)
    trained = ("--out", tmp_path / "run", "--config", tmp_path / "config.toml")
    measured = ("--images", held_out, "--calibration-images", data, "--far", "0.05")
    for arguments, expected in (
        (("train", "--data", data, "--validation", held_out, *trained), [note, hidden]),
        (("export", run, "--out", tmp_path / "bundle", *measured), [hidden, note]),
        (("evaluate", "--bundle", tmp_path / "bundle", "--data", held_out), [hidden]),
        (("embed", run, "--out", tmp_path / "e.npz", "--data", f"a={data}", "--data", f"b={held_out}"), [note, hidden]),
    ):
        code, out, err = training(*arguments, "--json")
        assert code == 0, err
        assert json.loads(out)["passed_over"] == expected, arguments
        assert all(sentence in err for sentence in expected)


def test_errors_are_one_line_without_a_trace(
    tmp_path: Path, folders: tuple[Path, Path], training: Callable[..., tuple[int, str, str]]
) -> None:
    """2 where the caller must ask differently, 3 where it could not be done."""
    options = ("--data", folders[0], "--validation", folders[1], "--out", tmp_path / "run")
    for arguments, expected_code, expected in (
        (("train", *options, "--config", "emojy"), 2, "did you mean emoji?"),
        (("train", *options[2:], "--data", tmp_path / "none"), 2, "found nothing there"),
        (("train", "--data", folders[0]), 2, "--validation"),
        (("train", *options[:2], "--validation", folders[0], *options[4:]), 2, "must not share a class, 8 are in both"),
        (("export", tmp_path / "none", "--out", tmp_path / "bundle"), 3, "holds no checkpoint"),
        (("export", tmp_path / "none", "--out", tmp_path / "bundle", "--precision", "fp16"), 2, "--images"),
        (("evaluate", "--bundle", tmp_path / "none", "--data", folders[1]), 3, "is not a model bundle"),
        (("embed", tmp_path / "none", "--out", tmp_path / "e.npz", "--data", "here"), 2, "expected NAME=FOLDER"),
        (("experiment", "emoji_tmc", "--out", tmp_path / "out"), 2, "did you mean emoji_tcm?"),
    ):
        code, out, err = training(*arguments)
        assert code == expected_code, err
        assert expected in err
        assert "Traceback" not in err
        assert out == ""


def test_export_defaults_to_what_its_options_default_to() -> None:
    """Help must not import the package that states them."""
    defaults = {name: parameter.default for name, parameter in inspect.signature(export).parameters.items()}
    options = asdict(ExportOptions())
    assert {name: defaults[name] for name in ("precision", "max_flips", "licence", "images", "calibration_images")} == {
        name: options[name] for name in ("precision", "max_flips", "licence", "images", "calibration_images")
    }
    assert defaults["far"] == options["far_target"]


def test_help_needs_no_torch() -> None:
    """Help of every command answers at once: nothing heavy is imported for it."""
    program = """
import sys
from training.cli import main
for command in ("emoji", "train", "evaluate", "export", "embed", "experiment"):
    sys.argv = ["training", command, "--help"]
    try:
        main()
    except SystemExit as left:
        assert left.code == 0, command
print("torch" in sys.modules, file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("--json") == 6
    assert done.stderr.strip() == "False"
