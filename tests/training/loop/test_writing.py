"""No room on the disk: a real full one, and a real limit on the size of files; the earlier file survives."""

import contextlib
import os
import resource
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from retrieval.errors import OutOfSpace
from tests.training.loop.conftest import TrainSmall
from tests.training.loop.small import assert_same_weights
from training.config import TrainingConfig
from training.loop import CHECKPOINT, Observers, StepReport
from training.writing import write_whole


@contextlib.contextmanager
def largest_file(n_bytes: int) -> Iterator[None]:
    """Within it, the system refuses to make a file larger."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.fixture
def small_disk() -> Iterator[Path]:
    """A file system of 12 MiB of its own.

    It is not in pytest's folder: if this process is killed, the mount stays, and pytest could not remove the folder.
    """
    folder = Path(tempfile.mkdtemp(prefix="small-disk-"))
    command = ["mount", "-t", "tmpfs", "-o", "size=12m", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True, check=False).returncode != 0:
        folder.rmdir()
        pytest.skip("only root may mount a file system, and not everywhere")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)
        folder.rmdir()


def test_a_file_is_replaced_or_left(tmp_path: Path) -> None:
    path = tmp_path / "value"
    write_whole(path, lambda file: file.write(b"first"), n_bytes=5)
    write_whole(path, lambda file: file.write(b"second"), n_bytes=6)
    with largest_file(3), pytest.raises(OutOfSpace, match=r"about 5 bytes in .*File too large.*--resume") as caught:
        write_whole(path, lambda file: file.write(b"third"), n_bytes=5)
    assert "the previous one is kept" in str(caught.value)
    assert path.read_bytes() == b"second"
    assert list(tmp_path.iterdir()) == [path]


def test_other_failures_are_not_taken_for_a_full_disk(tmp_path: Path) -> None:
    def fail(file: object) -> None:
        raise RuntimeError("a bug")

    with pytest.raises(RuntimeError, match="a bug"):
        write_whole(tmp_path / "value", fail, n_bytes=1)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_checkpoint_that_meets_a_limit_leaves_the_one_before(
    tmp_path: Path, small_config: TrainingConfig, train_small: TrainSmall, small_run: Path
) -> None:
    """The limit comes after step 2; lifted, the run goes on to where it would have come."""
    run = tmp_path / "run"

    def observe(report: StepReport) -> None:
        if report.step == 3:
            limit = (run / CHECKPOINT).stat().st_size // 2
            stack.enter_context(largest_file(limit))

    with contextlib.ExitStack() as stack, pytest.raises(OutOfSpace, match=r"checkpoint\.pt cannot be written"):
        train_small(small_config, run, observers=Observers(step=observe))
    assert torch.load(run / CHECKPOINT, weights_only=True)["step"] == 2
    train_small(small_config, run, resume=True)
    assert_same_weights(run, small_run)


@pytest.mark.slow
def test_a_full_disk_leaves_the_checkpoint_before(
    small_disk: Path, small_config: TrainingConfig, train_small: TrainSmall
) -> None:
    """Another program fills the disk after step 2; when there is room again, the run goes on."""
    run = small_disk / "run"

    def observe(report: StepReport) -> None:
        if report.step == 3:
            with contextlib.suppress(OSError), (small_disk / "filler").open("wb") as file:
                while True:
                    file.write(b"0" * 2**16)

    with pytest.raises(OutOfSpace, match=r"it needs about [\d,]+ bytes in .*, 0 are free \(No space left on device\)"):
        train_small(small_config, run, observers=Observers(step=observe))
    assert torch.load(run / CHECKPOINT, weights_only=True)["step"] == 2
    (small_disk / "filler").unlink()
    assert train_small(small_config, run, resume=True).n_images == 70
