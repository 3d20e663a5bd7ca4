"""The command in a process of its own, ended from outside."""

import os
import re
import signal
import subprocess
import sys
import threading
import time
import tomllib
from dataclasses import replace
from pathlib import Path

import pytest

from tests.training.loop.conftest import TrainSmall
from tests.training.loop.small import assert_same_weights
from training.cli import main
from training.config import TrainingConfig, parse_config
from training.loop import CHECKPOINT, Observers
from training.loop.runs import read_checkpoint

LONG = """
[input]
resize = 32
crop = 32
[model]
backbone = "timm/test_resnet"
weights = "random"
dimension = 8
[augmentation]
flip = 0.0
[schedule]
steps = {steps}
head_steps = 3
classes = 4
images = 2
warmup_steps = 1
[loop]
checkpoint_every = 1
ema_decay = 0.9
"""


def options(folders: tuple[Path, Path], config: Path, out: Path) -> list[str]:
    paths = ("--data", folders[0], "--validation", folders[1], "--out", out, "--config", config)
    return [*map(str, paths), "--device", "cpu"]


def start(folders: tuple[Path, Path], config: Path, out: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "training", "train", *options(folders, config, out)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for_checkpoint(process: subprocess.Popen[str], out: Path) -> None:
    """Until there is one that is not the first."""
    seen = set()
    deadline = time.monotonic() + 100
    while len(seen) < 2:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        if (out / CHECKPOINT).exists():
            seen.add((out / CHECKPOINT).stat().st_mtime_ns)
        time.sleep(0.01)


@pytest.mark.slow
def test_sigkill_and_resume_give_the_weights_of_an_uninterrupted_run(
    tmp_path: Path, folders: tuple[Path, Path], train_small: TrainSmall
) -> None:
    text = LONG.format(steps=20)
    (tmp_path / "config.toml").write_text(text)
    config: TrainingConfig = parse_config(tomllib.loads(text), source="test")
    with start(folders, tmp_path / "config.toml", tmp_path / "killed") as process:
        wait_for_checkpoint(process, tmp_path / "killed")
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    messages: list[str] = []
    observers = Observers(message=messages.append)
    evaluation = train_small(config, tmp_path / "killed", resume=True, observers=observers)
    assert any(message.startswith("resumed after step") for message in messages)
    seldom = replace(config, loop=replace(config.loop, checkpoint_every=20))
    assert train_small(seldom, tmp_path / "whole") == evaluation
    assert_same_weights(tmp_path / "killed", tmp_path / "whole")


@pytest.mark.slow
def test_an_interrupt_says_how_to_go_on(
    tmp_path: Path, folders: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As from the keyboard, in the midst of training."""
    text = LONG.format(steps=5000).replace("checkpoint_every = 1\n", "checkpoint_every = 4999\n")
    (tmp_path / "config.toml").write_text(text)
    out = tmp_path / "run"

    def interrupt() -> None:
        deadline = time.monotonic() + 60
        while not (out / CHECKPOINT).exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(1)
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(sys, "argv", ["training", "train", *options(folders, tmp_path / "config.toml", out)])
    # A test run in the background inherits that interrupts are ignored.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    keyboard = threading.Thread(target=interrupt)
    keyboard.start()
    try:
        with pytest.raises(SystemExit, match="130") as left:
            main()
    finally:
        keyboard.join()
        signal.signal(signal.SIGINT, before)
    captured = capsys.readouterr()
    assert left.value.code == 130
    assert captured.out == ""
    assert "interrupted: --resume continues from the last checkpoint" in captured.err.replace("\n", " ")
    assert "Traceback" not in captured.err
    written = re.search(r"a checkpoint was written after step (\d+)", captured.err)
    assert written is not None
    assert read_checkpoint(out)["step"] == int(written[1]) > 0  # the only other one is from before the first step
