"""Labelled unit rows, and TCM by its definition: pair by pair, class by class."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from training.losses import Remembered

# Four vectors of pytorch-metric-learning's own test of TCM.
WORKED = nn.functional.normalize(torch.tensor([[0.0, 1.0], [0.43, 0.9], [1.0, 0.0], [0.5, 0.5]]))
WORKED_LABELS = torch.tensor([0, 0, 1, 1])


def random_batch(
    seed: int, *, n: int = 24, classes: int = 6, dimension: int = 4, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(n, dimension, generator=generator, dtype=dtype)
    return nn.functional.normalize(rows, dim=1), torch.randint(classes, (n,), generator=generator)


def random_memory(seed: int, *, n: int = 10, dtype: torch.dtype = torch.float32) -> Remembered:
    return Remembered(*random_batch(seed + 1000, n=n, dtype=dtype))


def slow_tcm(
    embeddings: Tensor,
    labels: Tensor,
    *,
    positive_margin: float = 0.9,
    negative_margin: float = 0.5,
    average: str = "active",
    balance: str = "pairs",
    memory: Remembered | None = None,
) -> float:
    """The definition, one pair after the other, in double precision."""
    rows = [*zip(embeddings.double(), labels.tolist(), strict=True)]
    kept = [] if memory is None else [*zip(memory.embeddings.double(), memory.labels.tolist(), strict=True)]
    total = 0.0
    for is_positive in (True, False):
        by_group: defaultdict[int, list[tuple[bool, float]]] = defaultdict(list)
        for (a, label), (b, other) in itertools.chain(itertools.combinations(rows, 2), itertools.product(rows, kept)):
            if (label == other) == is_positive:
                s = float(a @ b)
                excess = positive_margin - s if is_positive else s - negative_margin
                for group in {label, other} if balance == "classes" else {0}:
                    by_group[group].append((excess >= 0, max(excess, 0.0)))
        total += _mean_of_means(by_group.values(), average)
    return total


def _mean_of_means(groups: Iterable[list[tuple[bool, float]]], average: str) -> float:
    counted = [[excess for active, excess in group if active or average == "all"] for group in groups]
    means = [sum(excesses) / len(excesses) for excesses in counted if excesses]
    return sum(means) / len(means) if means else 0.0
