"""Labelled unit rows, and TCM and densities by their definition: pair by pair, class by class."""

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
    offsets: Tensor | None = None,
) -> float:
    """The definition, one pair after the other, in double precision."""
    return slow_autograd_tcm(
        embeddings,
        labels,
        positive_margin=positive_margin,
        negative_margin=negative_margin,
        average=average,
        balance=balance,
        memory=memory,
        offsets=offsets,
    ).item()


def slow_autograd_tcm(
    embeddings: Tensor,
    labels: Tensor,
    *,
    positive_margin: float,
    negative_margin: float,
    average: str,
    balance: str,
    memory: Remembered | None,
    offsets: Tensor | None,
) -> Tensor:
    """The same as a tensor that autograd differentiates by `embeddings`; `offsets`: of the batch, then the memory."""
    rows, names = [*embeddings.double()], labels.tolist()
    n = len(rows)
    if memory is not None:
        rows, names = [*rows, *memory.embeddings.double()], names + memory.labels.tolist()
    less = [0.0] * len(rows) if offsets is None else offsets.tolist()
    total = embeddings.double().sum() * 0
    for is_positive in (True, False):
        by_group: defaultdict[int, list[tuple[bool, Tensor]]] = defaultdict(list)
        for a, b in itertools.chain(
            itertools.combinations(range(n), 2), itertools.product(range(n), range(n, len(rows)))
        ):
            if (names[a] == names[b]) == is_positive:
                s = rows[a] @ rows[b] - less[a] - less[b]
                excess = positive_margin - s if is_positive else s - negative_margin
                for group in {names[a], names[b]} if balance == "classes" else {0}:
                    by_group[group].append((bool(excess >= 0), excess.clamp(min=0)))
        total = total + _mean_of_means(by_group.values(), average)
    return total


def slow_density(embeddings: Tensor, labels: Tensor, reference: Remembered, *, k: int) -> Tensor:
    """The mean of the k largest similarities to reference rows of other labels, row by row, in double precision."""
    kept = [*zip(reference.embeddings.double(), reference.labels.tolist(), strict=True)]
    found = []
    for row, label in zip(embeddings.double(), labels.tolist(), strict=True):
        largest = sorted((float(row @ other) for other, name in kept if name != label), reverse=True)[:k]
        found.append(sum(largest) / len(largest) if largest else 0.0)
    return torch.tensor(found, dtype=torch.float64)


def _mean_of_means(groups: Iterable[list[tuple[bool, Tensor]]], average: str) -> Tensor:
    counted = [[excess for active, excess in group if active or average == "all"] for group in groups]
    means = [torch.stack(excesses).mean() for excesses in counted if excesses]
    return torch.stack(means).mean() if means else torch.zeros((), dtype=torch.float64)
