"""Batches: a function of seed and step, whoever makes them; damaged images replaced; nothing left running."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from numpy.testing import assert_array_equal

from retrieval.contract.manifest import Item
from retrieval.errors import InvalidInput, TooManyFailures
from tests.training.data.conftest import PREPROCESSING, configured, opened
from training.config import AugmentationConfig, TrainingConfig
from training.data import Batch, TrainingImages, batches

CHANGING = replace(configured(), augmentation=AugmentationConfig())


def drawn(images: TrainingImages, config: TrainingConfig, first: int = 0, rank: int = 0, world: int = 1) -> list[Batch]:
    return list(batches(images, config, PREPROCESSING, first=first, rank=rank, world=world))


def with_workers(config: TrainingConfig, workers: int) -> TrainingConfig:
    return replace(config, data=replace(config.data, workers=workers))


def assert_equal(left: Batch, right: Batch) -> None:
    assert (left.step, left.ids) == (right.step, right.ids)
    assert torch.equal(left.labels, right.labels)
    assert torch.equal(left.pixels, right.pixels)


def test_a_batch_is_its_images_as_production_sees_them(training_items: list[Item], tmp_path: Path) -> None:
    images = opened(training_items, tmp_path)
    found = drawn(images, configured())
    assert [batch.step for batch in found] == list(range(6))
    row_of = {item.id: row for row, item in enumerate(images.items)}
    for batch in found:
        assert (batch.pixels.shape, batch.pixels.dtype) == ((12, 3, 20, 20), torch.float32)
        rows = [row_of[name] for name in batch.ids]
        assert_array_equal(batch.labels, images.labels[rows])
        assert images.pixels is not None
        mean, std = (np.array(c, dtype=np.float32) for c in (PREPROCESSING.mean, PREPROCESSING.std))
        expected = ((images.pixels[rows, 2:22, 2:22] - mean) / std).transpose(0, 3, 1, 2)
        np.testing.assert_allclose(batch.pixels.numpy(), expected, atol=1e-4)


@pytest.mark.parametrize("cache", ["decoded", "none"])
def test_workers_make_the_same_batches_as_threads(training_items: list[Item], tmp_path: Path, cache: str) -> None:
    """Bit for bit, and without drawing from the run's random numbers."""
    config = replace(CHANGING, data=replace(CHANGING.data, cache=cache))
    images = opened(training_items, tmp_path, config)
    torch.manual_seed(5)
    by_threads = drawn(images, config)
    by_workers = drawn(images, with_workers(config, 2))
    for left, right in zip(by_threads, by_workers, strict=True):
        assert_equal(left, right)
    after = torch.rand(1)
    assert torch.equal(torch.manual_seed(5) and torch.rand(1), after)
    assert not torch.equal(by_threads[0].pixels, by_threads[1].pixels)


def test_a_resumed_run_sees_what_an_uninterrupted_one_would(training_items: list[Item], tmp_path: Path) -> None:
    images = opened(training_items, tmp_path)
    whole, rest = drawn(images, CHANGING), drawn(images, CHANGING, first=4)
    for left, right in zip(whole[4:], rest, strict=True):
        assert_equal(left, right)


def test_shares_of_all_processes_are_the_batch_of_one(training_items: list[Item], tmp_path: Path) -> None:
    """12 images among 5 processes: contiguous, in order, none twice."""
    images = opened(training_items, tmp_path)
    shares = [drawn(images, CHANGING, rank=rank, world=5) for rank in range(5)]
    for step, whole in enumerate(drawn(images, CHANGING)):
        parts = [share[step] for share in shares]
        assert [len(part.ids) for part in parts] == [2, 2, 3, 2, 3]
        assert torch.equal(torch.cat([part.pixels for part in parts]), whole.pixels)
        assert torch.equal(torch.cat([part.labels for part in parts]), whole.labels)
        assert sum((part.ids for part in parts), ()) == whole.ids
    with pytest.raises(InvalidInput, match="12 images cannot be shared by 13 processes"):
        drawn(images, CHANGING, world=13)


def test_another_image_of_its_class_stands_in_for_a_damaged_one(items_with_damage: list[Item], tmp_path: Path) -> None:
    """Reported once, whoever reads; the classes of the batch stay as drawn."""
    config = configured(data={"cache": "none", "max_unreadable": 0.1}, schedule={"classes": 3, "images": 4})
    images = opened(items_with_damage, tmp_path, config)
    for workers in (0, 2):
        found = drawn(images, with_workers(config, workers))
        (failure,) = [failure for batch in found for failure in batch.unreadable]
        assert failure.item.id == "class_001/2.png"
        for batch in found:
            assert "class_001/2.png" not in batch.ids
            assert [name.split("/")[0] for name in batch.ids] == [images.classes[label] for label in batch.labels]
            assert np.bincount(batch.labels).tolist() == [4, 4, 4]


def test_a_class_without_a_readable_image_is_replaced(items_with_damage: list[Item], tmp_path: Path) -> None:
    config = configured(data={"cache": "none", "max_unreadable": 0.5}, schedule={"classes": 3, "images": 4})
    for item in items_with_damage[:4]:
        Path(item.uri.removeprefix("file://")).unlink()
    images = opened(items_with_damage, tmp_path, config)
    for batch in drawn(images, config):
        assert not any(name.startswith("class_000") for name in batch.ids)
        assert [name.split("/")[0] for name in batch.ids] == [images.classes[label] for label in batch.labels]


@pytest.mark.parametrize("workers", [0, 2])
def test_too_many_damaged_images_stop_the_run(items_with_damage: list[Item], tmp_path: Path, workers: int) -> None:
    """More than were allowed, or none to be read at all: the message is the same in a worker."""
    config = with_workers(configured(data={"cache": "none", "max_unreadable": 0.05}), workers)
    with pytest.raises(TooManyFailures, match=r"^1 images cannot be read so far"):
        drawn(opened(items_with_damage, tmp_path, config), config)
    lost = [replace(item, uri=f"file:///nowhere/{item.id}") for item in items_with_damage]
    with pytest.raises(TooManyFailures, match=r"^step 0: \d+ images in a row cannot be read"):
        drawn(opened(lost, tmp_path, config), config)


def test_a_closed_iterator_leaves_no_process(training_items: list[Item], tmp_path: Path) -> None:
    images = opened(training_items, tmp_path)
    before = set(psutil.Process().children(recursive=True))
    iterator = batches(images, with_workers(CHANGING, 2), PREPROCESSING, first=0)
    next(iterator)
    workers = set(psutil.Process().children(recursive=True)) - before
    assert len(workers) == 2
    iterator.close()
    assert [worker for worker in workers if worker.is_running()] == []


ENDLESS = """
import signal, sys
from contextlib import closing
from pathlib import Path
from retrieval.contract.manifest import read_manifest
from tests.training.data.conftest import PREPROCESSING, configured, ignore
from training.data import batches, open_training_images

signal.signal(signal.SIGINT, signal.default_int_handler)  # a test run in the background inherits that it is ignored
config = configured(data={"workers": 2}, schedule={"steps": 10**9})
images = open_training_images(
    read_manifest(sys.argv[1]), PREPROCESSING, config.data, cache=Path(sys.argv[2]), progress=ignore
)
with closing(batches(images, config, PREPROCESSING, first=0)) as stream:
    for batch in stream:
        if batch.step == 20:
            print("running", flush=True)
"""


@pytest.mark.slow
def test_an_interrupted_run_leaves_no_process(folders: tuple[Path, Path], tmp_path: Path) -> None:
    """Ctrl-C reaches the whole process group and is reported once."""
    run = subprocess.Popen(
        [sys.executable, "-c", ENDLESS, str(folders[0]), str(tmp_path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert run.stdout is not None
    assert run.stdout.readline() == "running\n"
    workers = psutil.Process(run.pid).children(recursive=True)
    assert len(workers) == 2
    os.killpg(run.pid, signal.SIGINT)
    _, errors = run.communicate(timeout=60)
    assert errors.count("Traceback") == 1
    assert errors.endswith("KeyboardInterrupt\n")
    _, alive = psutil.wait_procs(workers, timeout=60)
    assert alive == []
