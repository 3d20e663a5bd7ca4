"""The training images: decoded once into a file without a name, or each time an image is drawn.

Decides where pixels come from and which items are usable. `sampling.py` decides which are drawn, `augmentation.py` how
they are changed.
"""

import errno
import math
import os
import shutil
import tempfile
import weakref
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from retrieval.consistency.classes import number_classes
from retrieval.contract.canonical import digest_json
from retrieval.contract.manifest import Item
from retrieval.contract.preprocessing import Preprocessing
from retrieval.errors import InvalidInput, NotEnoughEvidence
from training.config import DataConfig, ScheduleConfig
from training.data.decoding import Progress, Unreadable, read_item, read_items

_CHANNELS = 3
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class NamelessFile:
    """A file without a name. It disappears with the last process that has it open, even if that process is killed."""

    def __init__(self, folder: Path, n_bytes: int) -> None:
        """Reserve n_bytes in `folder`. Raises OSError if there is no room."""
        with tempfile.TemporaryFile(dir=folder) as file:
            # On a full disk, writing to a mapped page kills the process instead of raising an error.
            os.posix_fallocate(file.fileno(), 0, n_bytes)
            self._descriptor = os.dup(file.fileno())
        weakref.finalize(self, os.close, self._descriptor)

    @property
    def path(self) -> str:
        """The path by which processes of this machine and user can open it while this process has it open."""
        return f"/proc/{os.getpid()}/fd/{self._descriptor}"


@dataclass(frozen=True, slots=True, eq=False)
class TrainingImages:
    """Labelled images to draw from, in rows.

    items: one per row; labels: [n] int64, index into classes (sorted names); pixels: [n, side, side, 3] uint8 on disk,
    or None if images are decoded each time; unreadable: items that were left out, known only if pixels are stored.
    whole: the preprocessing that gives a square of side x side pixels, neither cropped nor normalised. digest: of the
    ids and labels of the rows and of the stored pixels. file: holds the pixels, in the process that decoded them.
    """

    items: tuple[Item, ...]
    labels: NDArray[np.int64]
    classes: tuple[str, ...]
    whole: Preprocessing
    pixels: NDArray[np.uint8] | None
    unreadable: tuple[Unreadable, ...]
    digest: str
    file: NamelessFile | None

    @property
    def members(self) -> list[NDArray[np.int64]]:
        """Return the rows of each class."""
        order = np.argsort(self.labels, kind="stable")
        return np.split(order, np.cumsum(np.bincount(self.labels, minlength=len(self.classes)))[:-1])

    @property
    def single_image_classes(self) -> tuple[str, ...]:
        """Return the classes with one image: their only positive pairs are augmented copies of it."""
        counts = np.bincount(self.labels, minlength=len(self.classes))
        return tuple(name for name, count in zip(self.classes, counts, strict=True) if count == 1)

    def square(self, row: int) -> NDArray[np.uint8] | Unreadable:
        """Read the image of a row before any change, [side, side, 3] uint8, or return why it cannot be read."""
        if self.pixels is not None:
            return np.array(self.pixels[row])
        pixels = read_item(self.items[row], self.whole)
        return pixels if isinstance(pixels, Unreadable) else pixels.transpose(1, 2, 0).astype(np.uint8)


def open_training_images(
    items: Sequence[Item], preprocessing: Preprocessing, config: DataConfig, *, cache: Path, progress: Progress
) -> TrainingImages:
    """Open the items to draw from. With `config.cache` "decoded", decode all of them into a file without a name.

    The file is in the folder `cache` and disappears with the process. Raises InvalidInput if an item has no label or
    the disk has no room, NotEnoughEvidence if there are fewer than two classes or no class has two images,
    TooManyFailures as `read_items` does.
    """
    if unlabelled := [item.id for item in items if not item.label]:
        raise InvalidInput(
            f"every image to train on needs a label, {len(unlabelled)} have none, for instance {unlabelled[0]!r}: add "
            "labels, or remove these images"
        )
    _require_pairs(items)  # before hours of decoding
    side = preprocessing.resize
    whole = replace(preprocessing, crop=side, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    if config.cache == "none":
        return _labelled(items, whole, None, (), 0, None)
    file, pixels = _reserve(cache, (len(items), side, side, _CHANNELS))
    read: list[Item] = []
    unreadable: list[Unreadable] = []
    checksum = 0
    for batch in read_items(items, whole, max_unreadable=config.max_unreadable, progress=progress):
        rows = pixels[len(read) : len(read) + len(batch.items)]
        rows[:] = batch.pixels.transpose(0, 2, 3, 1)
        checksum = zlib.adler32(rows.data, checksum)
        read += batch.items
        unreadable += batch.unreadable
    return _labelled(read, whole, pixels[: len(read)], tuple(unreadable), checksum, file)


def unchanged(
    images: TrainingImages, preprocessing: Preprocessing, *, size: int = 64
) -> Iterator[tuple[NDArray[np.int64], Tensor]]:
    """Read all images as production sees them, in chunks: their rows, and pixels [m, 3, crop, crop] float32.

    Rows that cannot be read are left out; they are reported when they are drawn.
    """
    for start in range(0, len(images.labels), size):
        squares = [(row, images.square(row)) for row in range(start, min(start + size, len(images.labels)))]
        read = [(row, square) for row, square in squares if not isinstance(square, Unreadable)]
        if read:
            rows = np.array([row for row, _ in read], dtype=np.int64)
            yield rows, normalise(torch.from_numpy(np.stack([square for _, square in read])), preprocessing)


def normalise(pixels: Tensor, preprocessing: Preprocessing) -> Tensor:
    """Crop and normalise [n, side, side, 3] uint8 as production does: centre squares [n, 3, crop, crop] float32."""
    edge = (preprocessing.resize - preprocessing.crop) // 2
    centre = pixels[:, edge : edge + preprocessing.crop, edge : edge + preprocessing.crop]
    mean = torch.tensor(preprocessing.mean, device=pixels.device).view(_CHANNELS, 1, 1)
    std = torch.tensor(preprocessing.std, device=pixels.device).view(_CHANNELS, 1, 1)
    images = (centre.permute(0, 3, 1, 2).float() - mean) / std
    return images.contiguous(memory_format=torch.channels_last)


def remarks(images: TrainingImages, schedule: ScheduleConfig) -> list[str]:
    """Return notes about the images, for people to read before training."""
    lines = [f"{len(images.labels):,} images of {len(images.classes):,} classes to train on"]
    lines += [f"skipped {failure.item.uri}: {failure.reason}" for failure in images.unreadable]
    if single := images.single_image_classes:
        lines.append(f"{len(single)} classes have only one image and no true positive pair, for instance {single[0]!r}")
    if len(images.classes) < schedule.classes:
        lines.append(
            f"schedule.classes is {schedule.classes}, but there are only {len(images.classes)} classes: "
            "a batch holds all of them"
        )
    return lines


def _require_pairs(items: Sequence[Item]) -> None:
    n_classes = len({item.label for item in items})
    if n_classes < 2 or n_classes == len(items):
        raise NotEnoughEvidence(
            f"training needs at least two classes and two images of a class, found {len(items)} images of "
            f"{n_classes} classes: add images, or give images of one thing the same label"
        )


def _labelled(
    items: Sequence[Item],
    whole: Preprocessing,
    pixels: NDArray[np.uint8] | None,
    unreadable: tuple[Unreadable, ...],
    checksum: int,
    file: NamelessFile | None,
) -> TrainingImages:
    _require_pairs(items)
    classes, labels = number_classes([item.label for item in items])
    return TrainingImages(
        items=tuple(items),
        labels=labels,
        classes=classes,
        whole=whole,
        pixels=pixels,
        unreadable=unreadable,
        digest=digest_json([checksum, *([item.id, item.label] for item in items)]),
        file=file,
    )


def _reserve(folder: Path, shape: tuple[int, ...]) -> tuple[NamelessFile, NDArray[np.uint8]]:
    """Reserve an array in a file without a name, which does not outlive the run."""
    needed = math.prod(shape)
    try:
        if needed > shutil.disk_usage(folder).free:  # checked first: a failed reservation fills the disk
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        file = NamelessFile(folder, needed)
    except OSError as error:
        if error.errno not in _NO_ROOM:
            raise
        raise InvalidInput(
            f"{folder}: decoded images need {needed:,} bytes, {shutil.disk_usage(folder).free:,} are free: make room, "
            'lower input.resize, or set data.cache = "none" to decode images each time they are drawn'
        ) from error
    return file, np.memmap(file.path, mode="r+", dtype=np.uint8, shape=shape)
