"""The command in a process of its own, ended from outside."""

import os
import re
import signal
import subprocess
import sys
import threading
import time
import tomllib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from tests.training.loop.conftest import TrainSmall
from tests.training.loop.small import assert_same_weights
from tests.training.loop.test_processes import free_port
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
    """Wait until there is a checkpoint that is not the first."""
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
    """Interrupted in the midst of training, as from the keyboard, a run saves and names --resume."""
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


# Each pair of interpreters imports everything: seconds on idle cores, a minute beside other work.
@pytest.mark.slow
@pytest.mark.e2e
@pytest.mark.timeout(900)
def test_two_interrupted_processes_save_once_and_resume_exactly(tmp_path: Path, folders: tuple[Path, Path]) -> None:
    """As from the keyboard: both end with 130 after the same step; the resumed run equals an undisturbed one."""
    out, whole = tmp_path / "run", tmp_path / "whole"
    step = interrupt_two(folders, out, ranks=(0, 1))
    assert read_checkpoint(out)["step"] == step
    for folder, more in ((out, ["--resume"]), (whole, [])):
        with started_two(folders, folder, *more) as processes:
            assert [process.wait(300) for process in processes] == [0, 0]
    assert_same_weights(out, whole)


@pytest.mark.slow
@pytest.mark.e2e
@pytest.mark.timeout(300)
def test_two_processes_end_together_if_one_is_interrupted(tmp_path: Path, folders: tuple[Path, Path]) -> None:
    """The one that was not interrupted is the one that writes."""
    step = interrupt_two(folders, tmp_path / "run", ranks=(1,))
    assert read_checkpoint(tmp_path / "run")["step"] == step


def interrupt_two(folders: tuple[Path, Path], out: Path, *, ranks: Sequence[int]) -> int:
    """Interrupt some of two processes while they train; return the step after which the checkpoint was written."""
    with started_two(folders, out) as processes:
        children = [psutil.Process(process.pid) for process in processes]
        main, other = (Path(f"{out}.{rank}.err") for rank in (0, 1))
        deadline = time.monotonic() + 200
        while "training " not in main.read_text():
            assert [process.poll() for process in processes] == [None, None], main.read_text() + other.read_text()
            assert time.monotonic() < deadline
            time.sleep(0.01)
        children += [child for process in children for child in process.children(recursive=True)]
        written = (out / CHECKPOINT).stat().st_mtime_ns
        for rank in ranks:
            processes[rank].send_signal(signal.SIGINT)
        assert [process.wait(100) for process in processes] == [130, 130], main.read_text() + other.read_text()
    assert other.read_text() == ""  # one of the two speaks
    assert "Traceback" not in main.read_text()
    (step,) = re.findall(r"a checkpoint was written after step (\d+)", main.read_text())
    assert (out / CHECKPOINT).stat().st_mtime_ns > written
    assert not any(child.is_running() for child in children)
    assert 0 < int(step) < 118  # where the run saves by itself
    return int(step)


@contextmanager
def started_two(folders: tuple[Path, Path], out: Path, *more: str) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Start two processes with the environment that torchrun gives them, able to be interrupted; kill what is left."""
    config = out.with_suffix(".toml")
    config.write_text(LONG.format(steps=120).replace("checkpoint_every = 1\n", "checkpoint_every = 118\n"))
    shared = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    quiet = {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a test run in the background ignores it
    processes = []
    try:
        for rank in ("0", "1"):
            with Path(f"{out}.{rank}.err").open("wb") as errors:
                processes.append(
                    subprocess.Popen(
                        [sys.executable, "-m", "training", "train", *options(folders, config, out), *more],
                        env={**os.environ, **quiet, **shared, "RANK": rank, "LOCAL_RANK": rank},
                        stdout=subprocess.DEVNULL,
                        stderr=errors,
                    )
                )
        yield processes
    finally:
        signal.signal(signal.SIGINT, before)
        for process in processes:
            process.kill()
            process.wait()
