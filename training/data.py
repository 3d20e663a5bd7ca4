"""Training images: decoded once by the production code, drawn in batches of classes, changed a little each time.

Every random choice is a function of seed and step, so that a resumed run sees what an uninterrupted one would.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import fsspec
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from retrieval.contract.manifest import Item
from retrieval.contract.preprocessing import Preprocessing, preprocess
from retrieval.errors import NotEnoughEvidence, RetrievalError, TooManyFailures
from training.config import AugmentationConfig

Progress = Callable[[int, int], None]

_STRETCH = 64  # images decoded and held at once: work for every thread, little memory


@dataclass(frozen=True, slots=True)
class Unreadable:
    """An item whose image could not be decoded, and why."""

    item: Item
    reason: str


@dataclass(frozen=True, slots=True, eq=False)
class PreprocessedItems:
    """pixels: [m, 3, crop, crop] float32, of `items`; unreadable: the items of the same stretch that were skipped."""

    pixels: NDArray[np.float32]
    items: tuple[Item, ...]
    unreadable: tuple[Unreadable, ...]


@dataclass(frozen=True, slots=True, eq=False)
class TrainingImages:
    """pixels: [n, side, side, 3] uint8, on disk; labels: [n] int64, index into classes (sorted names)."""

    pixels: NDArray[np.uint8]
    labels: NDArray[np.int64]
    classes: tuple[str, ...]
    unreadable: tuple[Unreadable, ...]

    @property
    def members(self) -> list[NDArray[np.int64]]:
        """The rows of each class."""
        return [np.flatnonzero(self.labels == row) for row in range(len(self.classes))]

    @property
    def single_image_classes(self) -> tuple[str, ...]:
        """Classes with one image: their only positive pairs are changed copies of it."""
        counts = np.bincount(self.labels, minlength=len(self.classes))
        return tuple(name for name, count in zip(self.classes, counts, strict=True) if count == 1)


def read_items(
    items: Sequence[Item], preprocessing: Preprocessing, *, max_unreadable: float, progress: Progress
) -> Iterator[PreprocessedItems]:
    """The items as the encoder sees them, in order, a stretch at a time; those that cannot be read are reported.

    `progress` gets the items done and their number. Raises TooManyFailures as soon as the share of unreadable items
    exceeds `max_unreadable`.
    """
    n_unreadable = 0
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for start in range(0, len(items), _STRETCH):
            stretch = items[start : start + _STRETCH]
            results = list(pool.map(lambda item: _read(item, preprocessing), stretch))
            unreadable = tuple(result for result in results if isinstance(result, Unreadable))
            n_unreadable += len(unreadable)
            if n_unreadable > max_unreadable * len(items):
                raise TooManyFailures(
                    f"{n_unreadable} of the first {start + len(stretch)} images cannot be read, at most "
                    f"{max_unreadable:.1%} of {len(items)} may be; the last is {unreadable[-1].item.uri}: "
                    f"{unreadable[-1].reason}. Mend or remove them, or raise max_unreadable"
                )
            read = [(i, r) for i, r in zip(stretch, results, strict=True) if not isinstance(r, Unreadable)]
            pixels = np.empty((len(read), 3, preprocessing.crop, preprocessing.crop), dtype=np.float32)
            for row, (_, array) in enumerate(read):
                pixels[row] = array
            yield PreprocessedItems(pixels, tuple(item for item, _ in read), unreadable)
            progress(start + len(stretch), len(items))


def _read(item: Item, preprocessing: Preprocessing) -> NDArray[np.float32] | Unreadable:
    try:
        filesystem, path = fsspec.core.url_to_fs(item.uri)
        return preprocess(filesystem.cat_file(path), preprocessing)
    except (OSError, RetrievalError) as error:
        return Unreadable(item, str(error))


def load_training_images(
    items: Sequence[Item], preprocessing: Preprocessing, cache: Path, *, max_unreadable: float, progress: Progress
) -> TrainingImages:
    """Decode every item once into a file without a name beside `cache`: `resize` x `resize` x 3 bytes an image.

    Raises NotEnoughEvidence where there are fewer than two classes or no class has two images, TooManyFailures as
    `read_items` does.
    """
    side = preprocessing.resize
    whole = replace(preprocessing, crop=side, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    pixels = np.lib.format.open_memmap(cache, mode="w+", dtype=np.uint8, shape=(len(items), side, side, 3))
    cache.unlink()  # the mapping outlives the name: nothing stays behind, however the run ends
    names: list[str] = []
    unreadable: list[Unreadable] = []
    for batch in read_items(items, whole, max_unreadable=max_unreadable, progress=progress):
        pixels[len(names) : len(names) + len(batch.items)] = batch.pixels.transpose(0, 2, 3, 1)
        names += [item.label for item in batch.items]
        unreadable += batch.unreadable
    classes, labels = np.unique(np.asarray(names, dtype=np.str_), return_inverse=True)
    if len(classes) < 2 or len(classes) == len(names):
        raise NotEnoughEvidence(
            f"training needs at least two classes and two images of a class, found {len(names)} images of "
            f"{len(classes)} classes"
        )
    return TrainingImages(pixels[: len(names)], labels.astype(np.int64), tuple(map(str, classes)), tuple(unreadable))


def draw_batch(
    members: Sequence[NDArray[np.int64]], *, classes: int, images: int, rng: np.random.Generator
) -> NDArray[np.int64]:
    """Rows of a batch: [classes * images] int64, `images` of each of `classes` classes (of all, if fewer).

    members: the rows of each class. A class with fewer images gives some of them more than once.
    """
    chosen = rng.choice(len(members), size=min(classes, len(members)), replace=False)
    return np.concatenate([rng.choice(members[row], size=images, replace=len(members[row]) < images) for row in chosen])


def augment(pixels: Tensor, config: AugmentationConfig, preprocessing: Preprocessing) -> Tensor:
    """Change each image a little and normalise: [n, side, side, 3] uint8 -> [n, 3, crop, crop] float32.

    The whole batch at once, which is several times faster than transforming image after image. Without any change it
    gives what production preprocessing gives. Draws from torch's global generator.
    """
    crop = preprocessing.crop
    images = pixels.permute(0, 3, 1, 2).float()
    grid = functional.affine_grid(_geometry(pixels, config, crop), [len(pixels), 3, crop, crop], align_corners=False)
    images = functional.grid_sample(images, grid, padding_mode="reflection", align_corners=False)
    images = torch.einsum("nij,njhw->nihw", _colours(pixels, config), images).clamp(0, 255)
    return _normalise(images, preprocessing)


def normalise(pixels: Tensor, preprocessing: Preprocessing) -> Tensor:
    """What production preprocessing gives for [n, side, side, 3] uint8: centre squares [n, 3, crop, crop] float32."""
    edge = (preprocessing.resize - preprocessing.crop) // 2
    centre = pixels[:, edge : edge + preprocessing.crop, edge : edge + preprocessing.crop]
    return _normalise(centre.permute(0, 3, 1, 2).float(), preprocessing)


def _normalise(images: Tensor, preprocessing: Preprocessing) -> Tensor:
    mean = torch.tensor(preprocessing.mean, device=images.device).view(3, 1, 1)
    std = torch.tensor(preprocessing.std, device=images.device).view(3, 1, 1)
    return ((images - mean) / std).contiguous(memory_format=torch.channels_last)


def _geometry(pixels: Tensor, config: AugmentationConfig, crop: int) -> Tensor:
    """Affine maps [n, 2, 3] from the crop to the image, in grid_sample's coordinates (-1 to 1)."""
    n, side = pixels.shape[:2]
    zoom = torch.exp(_uniform(pixels, config.zoom)) * crop / side
    stretch = torch.exp(_uniform(pixels, config.stretch) / 2)
    angle = torch.deg2rad(_uniform(pixels, config.rotate_degrees))
    mirror = 1 - 2 * (torch.rand(n, device=pixels.device) < config.flip).float()
    cosine, sine = torch.cos(angle) * zoom, torch.sin(angle) * zoom
    across = torch.stack([mirror * cosine * stretch, -sine * stretch, 2 * _uniform(pixels, config.shift)], dim=1)
    down = torch.stack([mirror * sine / stretch, cosine / stretch, 2 * _uniform(pixels, config.shift)], dim=1)
    return torch.stack([across, down], dim=1)


def _colours(pixels: Tensor, config: AugmentationConfig) -> Tensor:
    """Colour matrices [n, 3, 3]. Their rows sum to the image's brightness, so that white stays white before that."""
    n, device = len(pixels), pixels.device
    mixed = torch.eye(3, device=device) + config.mix_colours * torch.randn(n, 3, 3, device=device)
    mixed = mixed / mixed.sum(dim=2, keepdim=True).clamp(min=0.5)
    is_grey = (torch.rand(n, device=device) < config.grey).view(n, 1, 1)
    matrices = torch.where(is_grey, torch.full_like(mixed, 1 / 3), mixed)
    return matrices * (1 + _uniform(pixels, config.brightness)).view(n, 1, 1)


def _uniform(pixels: Tensor, limit: float) -> Tensor:
    """One number per image, [n], between -limit and limit."""
    return (2 * torch.rand(len(pixels), device=pixels.device) - 1) * limit
