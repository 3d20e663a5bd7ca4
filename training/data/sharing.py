"""Shares decoded images between the processes of a machine: one decodes them, and all map the same file."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from retrieval.contract.manifest import Item
from retrieval.contract.preprocessing import Preprocessing
from training.config import DataConfig
from training.data.decoding import Progress
from training.data.images import TrainingImages, open_training_images


@dataclass(frozen=True, slots=True)
class Lent:
    """Images as they are sent between processes. images: without their pixels; path, shape: of the pixels."""

    images: TrainingImages
    path: str
    shape: tuple[int, ...]


def open_images_together(
    items: Sequence[Item],
    preprocessing: Preprocessing,
    config: DataConfig,
    *,
    cache: Path,
    progress: Progress,
    on_each_machine: Callable[[Callable[[], Lent]], Lent],
) -> TrainingImages:
    """Open training images in every process, like `open_training_images`, but decode and store them once per machine.

    on_each_machine: runs a function in the first process of each machine and returns its result in all processes of
    that machine. If a process may not open files of the first one, as in another container, it decodes for itself.
    """

    def open_alone() -> TrainingImages:
        return open_training_images(items, preprocessing, config, cache=cache, progress=progress)

    if config.cache == "none":
        return open_alone()
    decoded: list[TrainingImages] = []

    def decode() -> Lent:
        decoded.append(open_alone())
        return lend(decoded[0])

    lent = on_each_machine(decode)
    if decoded:
        return decoded[0]
    try:
        return borrow(lent)
    except OSError:
        return open_alone()


def lend(images: TrainingImages) -> Lent:
    """Describe images with pixels to other processes of this machine; valid while this process keeps them."""
    assert images.pixels is not None
    assert images.file is not None
    return Lent(replace(images, pixels=None, file=None), images.file.path, images.pixels.shape)


def borrow(lent: Lent) -> TrainingImages:
    """Open the images of another process, read-only. Raises OSError if its file cannot be opened."""
    return replace(lent.images, pixels=np.memmap(lent.path, mode="r", dtype=np.uint8, shape=lent.shape))
