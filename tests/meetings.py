"""Rounds of searches, and a slow list of the images that met in them, by the rows in the arrays of the test."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from retrieval.consistency import LabelledVectors, in_rounds
from tests.searches import search_rounds


class Meeting(NamedTuple):
    """A query and an item that met in a round, and their score."""

    number: int
    query: int
    item: int
    score: float


def searches(rows: NDArray[np.float32], labels: Sequence[str], *, n_rounds: int = 3, seed: int = 0) -> LabelledVectors:
    """Return the rounds of random halves of each class."""
    return in_rounds(labels, search_rounds(rows, labels, n_rounds, np.random.default_rng(seed)))


def meetings(vectors: LabelledVectors) -> Iterator[Meeting]:
    """Yield each pair of each round, one by one."""
    for number, (queries, items) in enumerate(vectors.rounds):
        for i in range(queries.start, queries.stop):
            for j in range(items.start, items.stop):
                score = float(np.float32(vectors.query[i] @ vectors.gallery[j]))
                yield Meeting(number, int(vectors.order[i]), int(vectors.gallery_order[j]), score)
