"""Several processes: the result of one, agreement about failures, and nobody left waiting."""

import json
import os
import socket
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from retrieval.contract.manifest import Item
from retrieval.errors import DeviceUnavailable, InvalidInput, InvalidSettings, TooManyFailures
from tests.training.loop.conftest import TrainSmall
from tests.training.loop.small import weights
from training.config import TrainingConfig, to_json
from training.data import Unreadable
from training.loop import EVALUATION, Observers, select_device, train_embedder
from training.loop.course import Course
from training.loop.runs import Run
from training.loop.train import _check_batch, _require_same


def as_toml(values: dict[str, Any], prefix: str = "") -> str:
    """The JSON of a configuration as TOML, which knows no null."""
    lines = []
    for key, value in values.items():
        if isinstance(value, dict):
            lines.append(as_toml(value, f"{prefix}{key}."))
        elif not (isinstance(value, list) and value and isinstance(value[0], dict)):
            lines.append(f"{prefix}{key} = {json.dumps(value)}")
    return "\n".join(lines)


def free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


@dataclass(frozen=True)
class Pair:
    """What two processes left: standard output, errors and exit codes of each, and the folder that they wrote to."""

    out: list[str]
    err: list[str]
    codes: list[int]
    folder: Path


@pytest.fixture(scope="module")
def exact_config(everything_config: TrainingConfig) -> TrainingConfig:
    """In bfloat16, two orders of summation would end in different weights."""
    return replace(everything_config, loop=replace(everything_config.loop, precision="no"))


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory, exact_config: TrainingConfig, folders: tuple[Path, Path]) -> Pair:
    """Two processes, started as torchrun starts them: they train together, then go through `two_processes.py`."""
    folder = tmp_path_factory.mktemp("pair")
    (folder / "train").symlink_to(folders[0])
    (folder / "config.toml").write_text(as_toml(to_json(exact_config)))
    paths = ("--data", folders[0], "--validation", folders[1], "--config", folder / "config.toml")
    options = ("train", *paths, "--out", folder / "run", "--device", "cpu", "--json")
    shared = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    quiet = {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    arguments = [str(argument) for argument in (folder, free_port(), *options)]
    started = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.training.loop.two_processes", *arguments],
            env={**os.environ, **quiet, **shared, "RANK": rank, "LOCAL_RANK": rank},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in ("0", "1")
    ]
    (out, err), (other_out, other_err) = (process.communicate(timeout=280) for process in started)
    codes = [process.returncode for process in started]
    return Pair(out=[out, other_out], err=[err, other_err], codes=codes, folder=folder)


# Two interpreters import everything: seconds on idle cores, more beside other work.
@pytest.mark.slow
@pytest.mark.timeout(300)
def test_two_processes_end_with_the_weights_of_one(
    tmp_path: Path, exact_config: TrainingConfig, train_small: TrainSmall, pair: Pair
) -> None:
    """The head's start, chunks, accumulation, clipping and running means included; one of the two speaks."""
    assert (pair.folder / "run" / EVALUATION).exists(), pair.err
    evaluation = train_small(exact_config, tmp_path / "one")
    trained = json.loads(pair.out[0])
    assert pair.out[1] == ""
    assert "Warning" not in "".join(pair.err)
    assert trained["held_out"]["r_at_1"] == pytest.approx(evaluation.r_at_1, abs=0.02)
    one, two = weights(tmp_path / "one"), weights(pair.folder / "run")
    assert one.keys() == two.keys()
    for key in one:
        if key.startswith((".embedder.", ".loss.", ".average.")):
            torch.testing.assert_close(two[key], one[key], rtol=1e-5, atol=1e-5, equal_nan=True, msg=key)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_processes_agree_and_none_waits_for_one_that_is_gone(pair: Pair) -> None:
    assert pair.codes == [1, 7], pair.err
    main, other = (json.loads((pair.folder / f"{rank}.json").read_text()) for rank in (0, 1))
    assert (main["world"], other["world"]) == ([0, 2, True], [1, 2, False])
    for seen in (main, other):
        assert seen["gathered"] == [0.0, 1.0]
        assert seen["collected"] == ["of 0", "of 1"]
        assert seen["told"] == "by 0"
        assert seen["mean"] == [4.0, 0.5]  # a process without a gradient counts as 0
        assert seen["refusal"] == seen["machine"] == ["InvalidInput", "refused by 0"]
        assert seen["images"] == main["images"] | {"n_read": seen["images"]["n_read"]}
        assert seen["images"]["failure"] == "1 images cannot be read so far"
        assert seen["divergence"].startswith("TrainingDiverged: the loss of step 9 is not finite (loss nan")
        assert "Its items are item of 1, listed in" in seen["divergence"]
    assert (main["images"]["n_read"], other["images"]["n_read"]) == (1, 0)  # decoded once
    assert main["failure"] == ["ValueError", "a bug"]
    assert other["failure"][0] == "Unavailable"
    assert "the main process failed" in other["failure"][1]
    assert "Unavailable: another process of this run has ended" in pair.err[0]


def test_processes_with_different_images_are_refused() -> None:
    different = SimpleNamespace(collect=lambda digests: [*digests, "another"])
    with pytest.raises(InvalidInput, match="process 1 reads other training images than process 0"):
        _require_same(SimpleNamespace(digest="one"), different)  # type: ignore[arg-type]


def test_images_that_another_process_could_not_read_are_reported_and_counted(
    tmp_path: Path, small_config: TrainingConfig, training_items: list[Item]
) -> None:
    """Each once, whoever met it; together they may be too many though each process met few enough."""
    messages: list[str] = []
    others = [Unreadable(item, "lost") for item in training_items[:2]]
    processes = SimpleNamespace(collect=lambda own: [*own, *others])
    course = Course(
        *(None, Run(folder=tmp_path, config=small_config, fingerprint=None), None, (), processes),  # type: ignore[arg-type]
        Observers(message=messages.append),
    )
    course._unreadable = [others[0]]
    course._report_unreadable(n_images=200)
    course._report_unreadable(n_images=200)
    assert messages == [f"skipped {item.uri}: lost" for item in training_items[:2]]
    others.append(Unreadable(training_items[2], "lost"))
    with pytest.raises(TooManyFailures, match=r"3 images cannot be read so far, at most 1\.0% of 200 may be"):
        course._report_unreadable(n_images=200)


def test_a_batch_that_cannot_be_shared_is_refused(everything_config: TrainingConfig) -> None:
    images, three = SimpleNamespace(classes=("a", "b", "c", "d")), SimpleNamespace(world=3)
    with pytest.raises(InvalidSettings, match="a batch of 8 images cannot be shared evenly by 3 processes"):
        _check_batch(images, everything_config, three)  # type: ignore[arg-type]


def test_devices(tmp_path: Path, everything_config: TrainingConfig) -> None:
    assert select_device("cpu").type == "cpu"
    with pytest.raises(InvalidInput, match="found 'tpu'"):
        train_embedder(everything_config, [], [], tmp_path / "run", device="tpu")
    if not torch.cuda.is_available():
        assert select_device("auto").type == "cpu"
        with pytest.raises(DeviceUnavailable, match="--device cpu or auto"):
            select_device("cuda")
