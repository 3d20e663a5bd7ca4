"""Runs that end, fail, are killed and are found again, with a program that pretends to train."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from retrieval.errors import CorruptArtifact, FailedPrecondition, InvalidInput
from tests.training.experiment.conftest import PRETENCE
from training.experiment import Experiment, run_experiment
from training.experiment.running import only_user

Parse = Callable[[dict[str, Any]], Experiment]


def steps_of(out: Path, arm: str, seed: int) -> list[str]:
    return (out / arm / str(seed) / "run" / "steps.txt").read_text().split()


@pytest.mark.slow
def test_arms_times_seeds_then_nothing_left_to_do(tmp_path: Path, described: dict[str, Any], parsed: Parse) -> None:
    """Every run once, seed by seed; a second call trains nothing and finds the same, a third seed is added."""
    news = []
    first = run_experiment(parsed(described), tmp_path, observe=news.append, program=PRETENCE)
    assert [(told.arm, told.seed) for told in news if told.what == "done"] == [
        ("base", 0),
        ("base+tcm", 0),
        ("base", 1),
        ("base+tcm", 1),
    ]
    assert (news[-1].done, news[-1].total) == (4, 4)
    assert [arm.name for arm in first.arms] == ["base", "base+tcm", "base+cohort"]
    assert first.failures == ()
    assert {path.name for path in tmp_path.iterdir() if path.is_file()} >= {
        "table.md",
        "table.csv",
        "runs.csv",
        "table.json",
        "front.png",
        "opis.png",
    }
    (tmp_path / "table.csv").unlink()
    again = run_experiment(parsed(described), tmp_path, program=("false",))
    assert again.arms == first.arms
    assert (tmp_path / "table.csv").is_file()
    more = run_experiment(parsed(described | {"seeds": [0, 1, 2]}), tmp_path, n_processes=2, program=PRETENCE)
    assert [arm.n_seeds for arm in more.arms] == [3, 3, 3]
    assert steps_of(tmp_path, "base", 0) == ["0", "1", "2"]


@pytest.mark.slow
def test_a_failing_run_is_reported_and_the_rest_go_on(tmp_path: Path, described: dict[str, Any], parsed: Parse) -> None:
    described["arms"][0]["config"]["schedule"] = {"warmup_steps": 13}
    result = run_experiment(parsed(described | {"seeds": [0]}), tmp_path, program=PRETENCE)
    (failure,) = result.failures
    assert (failure.arm, failure.seed, failure.what) == ("base", 0, "training")
    assert failure.reason == "the loss is NaN at step 3: lower the learning rate"
    assert "NaN" in Path(failure.log or "").read_text()
    assert [arm.name for arm in result.arms] == ["base+tcm"]
    assert "base, seed 0: training failed" in str(result)


@pytest.mark.slow
def test_a_score_that_cannot_be_fitted_fails_alone(tmp_path: Path, described: dict[str, Any], parsed: Parse) -> None:
    described["arms"][2]["score"] = {"kind": "cluster_offsets", "clusters": 50}
    result = run_experiment(parsed(described | {"seeds": [0]}), tmp_path, program=PRETENCE)
    assert [(failure.arm, failure.what) for failure in result.failures] == [("base+cohort", "measuring")]
    assert "50 clusters need at least 500 images, found 100" in result.failures[0].reason
    assert [arm.name for arm in result.arms] == ["base", "base+tcm"]


@pytest.mark.slow
def test_another_configuration_or_other_items_are_refused(
    tmp_path: Path, root: Path, described: dict[str, Any], parsed: Parse
) -> None:
    """Runs with another configuration are not reused; if only test images differ, they are embedded again."""
    described["seeds"] = [0]
    first = run_experiment(parsed(described), tmp_path, program=PRETENCE)
    longer = described | {"common": {"schedule": {"steps": 5, "head_steps": 2, "warmup_steps": 1}}}
    with pytest.raises(InvalidInput, match=r"another configuration \(schedule.steps\)"):
        run_experiment(parsed(longer), tmp_path, program=PRETENCE)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    for part in ("train", "test"):
        lines = (root / f"{part}.csv").read_text().splitlines()
        (elsewhere / f"{part}.csv").write_text("\n".join(lines[:-5]) + "\n")
    other = described | {"data": described["data"] | {"train": str(elsewhere / "train.csv")}}
    with pytest.raises(InvalidInput, match="a run on other items"):
        run_experiment(parsed(other), tmp_path, program=PRETENCE)
    fewer = described | {"data": described["data"] | {"test": str(elsewhere / "test.csv")}}
    found = run_experiment(parsed(fewer), tmp_path, program=PRETENCE)
    assert steps_of(tmp_path, "base", 0) == ["0", "1", "2"]
    assert found.arms[0].figures["r_at_1"] != first.arms[0].figures["r_at_1"]


def test_classes_in_two_parts_are_refused(tmp_path: Path, described: dict[str, Any], parsed: Parse) -> None:
    described["data"]["test"] = "calibration.csv"
    with pytest.raises(InvalidInput, match="calibration and test share 20 classes, for instance 'class_200'"):
        run_experiment(parsed(described), tmp_path, program=PRETENCE)


def test_weights_are_not_chosen_on_what_is_measured(tmp_path: Path, described: dict[str, Any], parsed: Parse) -> None:
    """Validation may be the cohort, on which nothing is measured, and nothing else."""
    described["data"]["validation"] = "test.csv"
    with pytest.raises(InvalidInput, match="validation and test share 24 classes"):
        run_experiment(parsed(described), tmp_path, program=PRETENCE)


def test_images_without_labels_are_refused(
    tmp_path: Path, root: Path, described: dict[str, Any], parsed: Parse
) -> None:
    """They would count as one class without a name."""
    rows = (root / "test.csv").read_text() + "lost,nowhere.png,\n"
    (tmp_path / "test.csv").write_text(rows)
    described["data"]["test"] = str(tmp_path / "test.csv")
    with pytest.raises(InvalidInput, match=r"test.csv: every image .* 1 have none, for instance 'lost'"):
        run_experiment(parsed(described), tmp_path / "out", program=PRETENCE)


def test_what_is_in_the_way_is_said(tmp_path: Path, described: dict[str, Any], parsed: Parse) -> None:
    """A file in place of the folder, and a record that is not one."""
    (tmp_path / "file").write_text("")
    for out in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(InvalidInput, match="a file is in its place"):
            run_experiment(parsed(described), out, program=PRETENCE)
    (tmp_path / "out" / "base" / "0").mkdir(parents=True)
    for content in ("", "[]"):
        (tmp_path / "out" / "base" / "0" / "made_of.json").write_text(content)
        with pytest.raises(CorruptArtifact, match=r"made_of\.json .* delete its folder"):
            run_experiment(parsed(described), tmp_path / "out", program=PRETENCE)


@pytest.mark.slow
def test_embeddings_of_other_images_are_not_taken_for_these(
    tmp_path: Path, root: Path, described: dict[str, Any], parsed: Parse
) -> None:
    """Embedding fails after the images changed; with the first ones again, they are embedded again."""
    described |= {"seeds": [0], "arms": described["arms"][:1]}
    first = run_experiment(parsed(described), tmp_path / "out", program=PRETENCE)
    lines = (root / "test.csv").read_text().splitlines()
    (tmp_path / "test.csv").write_text("\n".join(lines[:-5]) + "\n")
    other = described | {"data": described["data"] | {"test": str(tmp_path / "test.csv")}}
    failed = run_experiment(parsed(other), tmp_path / "out", program=("false",))
    assert [failure.what for failure in failed.failures] == ["embedding"]
    assert run_experiment(parsed(described), tmp_path / "out", program=PRETENCE).arms == first.arms


def test_one_experiment_at_a_time_in_a_folder(tmp_path: Path, described: dict[str, Any], parsed: Parse) -> None:
    with only_user(tmp_path), pytest.raises(FailedPrecondition, match="another experiment is running"):
        run_experiment(parsed(described), tmp_path, program=PRETENCE)


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_a_killed_experiment_goes_on_where_it_was(
    how: signal.Signals, tmp_path: Path, root: Path, described: dict[str, Any], parsed: Parse
) -> None:
    """It takes the run at work with it; no step is taken twice, and how long it took is not claimed."""
    described |= {"seeds": [0], "common": {"schedule": {"steps": 100, "head_steps": 2, "warmup_steps": 1}}}
    described["arms"] = described["arms"][:1]
    program = f"""
import json, signal, sys
from pathlib import Path
from training.experiment import parse_experiment, run_experiment
signal.signal(signal.SIGINT, signal.default_int_handler)  # also where the tests run in the background
root = Path({str(root)!r})
experiment = parse_experiment(json.loads({json.dumps(described)!r}), name="tried", folder=root, root=root)
run_experiment(experiment, Path({str(tmp_path)!r}), program={PRETENCE!r})
"""
    process = subprocess.Popen(
        [sys.executable, "-c", program], env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    )
    checkpoint = tmp_path / "base" / "0" / "run" / "checkpoint.pt"
    deadline = time.monotonic() + 60
    while not checkpoint.exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(how)
    process.wait()
    _await_silence(checkpoint)
    taken = len(steps_of(tmp_path, "base", 0))
    assert 0 < taken < 100
    result = run_experiment(parsed(described), tmp_path, program=PRETENCE)
    assert result.failures == ()
    steps = steps_of(tmp_path, "base", 0)
    assert steps[-1] == "99"
    assert len(steps) <= 101  # the one between its note and its checkpoint may be taken again
    assert "training_s" not in result.arms[0].figures
    assert "interrupted" in result.arms[0].missing["training_s"]


def _await_silence(checkpoint: Path) -> None:
    """Until the run at work has ended, too."""
    while True:
        before = checkpoint.read_text()
        time.sleep(0.2)
        if checkpoint.read_text() == before:
            return


@pytest.mark.slow
def test_arms_compared_as_searches(tmp_path: Path, described: dict[str, Any], parsed: Parse) -> None:
    """The table explains what was compared and has the FAR of strangers; a catalogue score uses the runs of another."""
    described |= {"compare": "searches", "seeds": [0]}
    described["arms"].append(
        {"name": "base+catalogue", "model": "base", "score": {"kind": "catalogue", "k": 5, "fitted_on": "train"}}
    )
    result = run_experiment(parsed(described), tmp_path, program=PRETENCE)
    assert result.failures == ()
    by_name = {arm.name: arm.figures for arm in result.arms}
    assert set(by_name) == {"base", "base+tcm", "base+cohort", "base+catalogue"}
    assert all(figures["strangers_far"].mean >= 0 for figures in by_name.values())
    assert by_name["base+catalogue"]["tar_at_1e_2"].mean > by_name["base"]["tar_at_1e_2"].mean
    table = (tmp_path / "table.md").read_text()
    assert "In 5 rounds, half of the images of each class search the others." in table
    assert json.loads((tmp_path / "table.json").read_text())["compare"] == "searches"
