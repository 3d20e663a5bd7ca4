"""Rounds of searches in a gallery whose items are pulled to their class, and a slow list of their pairs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from retrieval.consistency import LabelledVectors, SearchRound, divide, in_rounds


class Meeting(NamedTuple):
    """A query and an item that met in a round, by their rows in the arrays of the test, and their score."""

    number: int
    query: int
    item: int
    score: float


def pulled(rows: NDArray[np.float32], labels: Sequence[str], pull: float) -> NDArray[np.float32]:
    """Pull each row towards the mean of its class."""
    names = np.array(labels)
    means = np.stack([rows[names == name].mean(axis=0) for name in names]) if len(names) else rows
    mixed = (1 - pull) * rows + pull * means
    unit: NDArray[np.float32] = (mixed / np.linalg.norm(mixed, axis=1, keepdims=True)).astype(np.float32)
    return unit


def searches(
    rows: NDArray[np.float32], labels: Sequence[str], *, n_rounds: int = 3, pull: float = 0.7, seed: int = 0
) -> LabelledVectors:
    """Return the rounds of random halves of each class."""
    rounds = []
    for division in divide(labels, n_rounds, rng=np.random.default_rng(seed)):
        gallery = pulled(rows[division.items], [labels[row] for row in division.items], pull)
        rounds.append(SearchRound(division, rows[division.queries], gallery))
    return in_rounds(labels, rounds)


def meetings(vectors: LabelledVectors) -> Iterator[Meeting]:
    """Yield each pair of each round, one by one."""
    for number, (queries, items) in enumerate(vectors.rounds):
        for i in range(queries.start, queries.stop):
            for j in range(items.start, items.stop):
                score = float(np.float32(vectors.query[i] @ vectors.gallery[j]))
                yield Meeting(number, int(vectors.order[i]), int(vectors.gallery_order[j]), score)
