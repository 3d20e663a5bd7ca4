"""Pairs with their scores, one tile after another, for what cannot be counted in compiled loops.

What is made of them is decided by the callers; `counting` and `selection` count without listing pairs.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from retrieval.consistency.pairs.products import float32_at_least, scores_of
from retrieval.consistency.pairs.tiles import tiles_of
from retrieval.consistency.pairs.vectors import Codes, LabelledVectors


@dataclass(frozen=True, slots=True, eq=False)
class PairBatch:
    """The p pairs of one tile; inside one set of images first <= second."""

    scores: NDArray[np.float32]  # [p], never -0.0
    first: Codes  # [p], class of one end
    second: Codes  # [p], class of the other
    first_rows: NDArray[np.int64]  # [p], row of the sorted query
    second_rows: NDArray[np.int64]  # [p], row of the sorted gallery

    @property
    def matches(self) -> NDArray[np.bool_]:
        """Whether both ends are of one class: [p] bool."""
        return np.equal(self.first, self.second)


def scored_pairs(vectors: LabelledVectors, *, lowest: np.float32 | float = -np.inf) -> Iterator[PairBatch]:
    """Yield every pair that scores at least `lowest`, once, one batch per tile.

    Cost: one matrix product of all pairs; memory: a few tiles.
    """
    floor = np.float32(lowest)
    for rows, columns in tiles_of(vectors):
        scores = scores_of(vectors.query[rows], vectors.gallery[columns])
        kept = scores >= floor
        for attribute in range(vectors.groups.shape[1]):
            groups = vectors.groups[rows, attribute, None]
            kept &= (groups != vectors.gallery_groups[columns, attribute]) | (groups < 0)
        if vectors.one_set and rows == columns:
            kept = np.triu(kept, k=1)
        i, j = np.nonzero(kept)
        # Adding zero turns -0.0 into 0.0, which would otherwise order differently as bits and as a number.
        reached = scores[i, j] + np.float32(0)
        i, j = i + rows.start, j + columns.start
        yield PairBatch(reached, vectors.codes[i], vectors.gallery_codes[j], i, j)


def accepted_pairs(vectors: LabelledVectors, threshold: float) -> Iterator[PairBatch]:
    """Yield every pair that scores at least the threshold, once, one batch per tile."""
    yield from scored_pairs(vectors, lowest=float32_at_least(np.array([threshold]))[0])
