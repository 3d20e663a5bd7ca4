"""Images that one process of a machine decodes for all of them, which then map the same file."""

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
    """What travels between processes. images: without their pixels; path, shape: of the pixels."""

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
    """As `open_training_images`, called in every process: decoded images are decoded and kept once on each machine.

    on_each_machine: gives in all processes what the function returns in the first of their machine. Where a process
    may not open files of the first one, as from another container, it decodes for itself.
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
    """Images with pixels, for other processes of this machine, as long as this one keeps them."""
    assert images.pixels is not None
    assert images.file is not None
    return Lent(replace(images, pixels=None, file=None), images.file.path, images.pixels.shape)


def borrow(lent: Lent) -> TrainingImages:
    """The images of another process, not to be written to. Raises OSError where its file cannot be opened."""
    return replace(lent.images, pixels=np.memmap(lent.path, mode="r", dtype=np.uint8, shape=lent.shape))
