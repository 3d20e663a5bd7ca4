"""Several processes: the result of one, agreement about failures, and nobody left waiting."""

import json
import os
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from retrieval.errors import DeviceUnavailable, InvalidInput, InvalidSettings
from tests.training.loop.conftest import TrainSmall
from tests.training.loop.small import weights
from training.config import TrainingConfig, to_json
from training.loop import select_device
from training.loop import train as run_training
from training.loop.train import _count_images


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}


def as_toml(values: dict[str, Any]) -> str:
    lines = [f"{key} = {json.dumps(value)}" for key, value in values.items() if not isinstance(value, dict)]
    for name, section in values.items():
        if isinstance(section, dict):
            lines += [f"[{name}]", *(f"{key} = {json.dumps(value)}" for key, value in section.items())]
    return "\n".join(lines)


def test_two_processes_end_with_the_weights_of_one(
    tmp_path: Path, everything_config: TrainingConfig, folders: tuple[Path, Path], train_small: TrainSmall
) -> None:
    """By torchrun, in full precision: the head's start, chunks, accumulation, clipping and means included."""
    config = replace(everything_config, loop=replace(everything_config.loop, precision="no"))
    values = {name: section for name, section in to_json(config).items() if name in ("schedule", "input", "loop")}
    (tmp_path / "config.toml").write_text(
        as_toml(values)
        + '\n[model]\nbackbone = "timm/test_resnet"\nweights = "random"\ndimension = 8\n[augmentation]\nflip = 0.0'
    )
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", str(free_port())]
        + ["-m", "training.cli", "train", "--data", folders[0], "--validation", folders[1], "--json"]
        + ["--out", tmp_path / "two", "--config", tmp_path / "config.toml", "--device", "cpu"],
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
        timeout=110,
    )
    assert done.returncode == 0, done.stderr
    trained = json.loads(done.stdout)  # one process speaks
    evaluation = train_small(config, tmp_path / "one")
    assert trained["held_out"]["r_at_1"] == pytest.approx(evaluation.r_at_1, abs=0.02)
    one, two = weights(tmp_path / "one"), weights(tmp_path / "two")
    assert one.keys() == two.keys()
    for key in one:
        if key.startswith((".embedder.", ".loss.", ".average.")):
            torch.testing.assert_close(two[key], one[key], rtol=1e-5, atol=1e-5, msg=key)


def test_processes_agree_and_none_waits_for_one_that_is_gone(tmp_path: Path) -> None:
    port = str(free_port())
    started = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.training.loop.two_processes", tmp_path],
            env={
                **environment(),
                "RANK": rank,
                "LOCAL_RANK": rank,
                "WORLD_SIZE": "2",
                "LOCAL_WORLD_SIZE": "2",
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": port,
            },
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in ("0", "1")
    ]
    errors = [process.communicate(timeout=100)[1] for process in started]
    assert started[1].returncode == 7, errors[1]
    main, other = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1))
    assert (main["world"], other["world"]) == ([0, 2, True], [1, 2, False])
    for seen in (main, other):
        assert seen["gathered"] == [0.0, 1.0]
        assert seen["collected"] == ["of 0", "of 1"]
        assert seen["told"] == "by 0"
        assert seen["mean"] == [4.0, 0.5]  # a process without a gradient counts as 0
        assert seen["refusal"] == ["InvalidInput", "refused by 0"]
        assert seen["divergence"].startswith("TrainingDiverged: the loss of step 9 is not finite (loss nan")
        assert "Its items are item of 1, listed in" in seen["divergence"]
    assert main["failure"] == ["ValueError", "a bug"]
    assert other["failure"][0] == "Unavailable"
    assert "the main process failed" in other["failure"][1]
    assert started[0].returncode == 1
    assert "another process of this run is gone" in errors[0]


def test_a_batch_that_cannot_be_shared_is_refused(everything_config: TrainingConfig) -> None:
    from types import SimpleNamespace

    images, three = SimpleNamespace(classes=("a", "b", "c", "d")), SimpleNamespace(world=3)
    with pytest.raises(InvalidSettings, match="a batch of 8 images cannot be shared evenly by 3 processes"):
        _count_images(images, everything_config, three)  # type: ignore[arg-type]


def test_devices(tmp_path: Path, everything_config: TrainingConfig) -> None:
    assert select_device("cpu").type == "cpu"
    with pytest.raises(InvalidInput, match="found 'tpu'"):
        run_training(everything_config, [], [], tmp_path / "run", device="tpu")
    if not torch.cuda.is_available():
        assert select_device("auto").type == "cpu"
        with pytest.raises(DeviceUnavailable, match="--device cpu or auto"):
            select_device("cuda")
