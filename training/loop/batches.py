"""The batches of a run, each process's share of them, drawn as functions of seed and number."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count

import numpy as np
import torch
from torch import Tensor

from retrieval.contract.manifest import Item
from retrieval.contract.preprocessing import Preprocessing
from training.config import TrainingConfig
from training.data import TrainingImages, augment, draw_batch


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """One process's share of a batch. pixels: [n, 3, h, w] float32; labels: [n] int64; ids: of the n items."""

    step: int
    pixels: Tensor
    labels: Tensor
    ids: tuple[str, ...]


def batches(
    images: TrainingImages,
    items: Sequence[Item],
    config: TrainingConfig,
    preprocessing: Preprocessing,
    *,
    first: int,
    rank: int,
    world: int,
) -> Iterator[Batch]:
    """The batches from number `first` on, without end."""
    members = images.members
    skipped = {failure.item.id for failure in images.unreadable}
    ids = [item.id for item in items if item.id not in skipped]
    for number in count(first):
        rng = np.random.default_rng((config.seed, number))
        rows = draw_batch(members, classes=config.schedule.classes, images=config.schedule.images, rng=rng)
        torch.manual_seed(int(rng.integers(2**63)))
        pixels = augment(torch.from_numpy(images.pixels[rows]), config.augmentation, preprocessing)
        part = len(rows) // world
        own = slice(rank * part, (rank + 1) * part)
        labels = torch.from_numpy(images.labels[rows])
        yield Batch(number, pixels[own], labels[own], tuple(ids[row] for row in rows[own]))
