"""Pairs at or above each of many thresholds, counted by class in one pass.

Integers all the way: the counts of shards add up to those of the whole, whatever the order.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from retrieval.consistency.pairs import LabelledVectors, Progress, float32_at_least, scored_pairs, tile_bounds

Counts = NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class PairCounts:
    """positives_accepted, negatives_accepted: [T, m] int64; positives, negatives: [T] int64, pairs visited."""

    positives_accepted: Counts
    negatives_accepted: Counts
    positives: Counts
    negatives: Counts


def count_pairs(
    vectors: LabelledVectors,
    thresholds: NDArray[np.float64],
    *,
    tile: int,
    shard: tuple[int, int],
    progress: Progress | None,
) -> PairCounts:
    """Count the pairs of a shard that reach each of the strictly ascending thresholds [m], for each class.

    A positive pair counts for its class, a negative pair for the class of either end.
    """
    limits = float32_at_least(thresholds)
    shape = (len(vectors.classes), len(thresholds))
    positives, negatives = np.zeros(shape, dtype=np.int64), np.zeros(shape, dtype=np.int64)
    for batch in scored_pairs(vectors, lowest=limits[0], tile=tile, shard=shard, progress=progress):
        column = np.searchsorted(limits, batch.scores, side="right") - 1
        matches = batch.matches
        _add(positives, batch.first[matches], column[matches])
        differs = ~matches
        _add(negatives, batch.first[differs], column[differs])
        _add(negatives, batch.second[differs], column[differs])
    return PairCounts(_accepted(positives), _accepted(negatives), *_pair_totals(vectors, tile, shard))


def _add(histogram: Counts, rows: NDArray[np.int64], columns: NDArray[np.int64]) -> None:
    """Count (row, column) into the histogram; rows of one tile are a short range because images are sorted by class."""
    if len(rows) == 0:
        return
    first, m = int(rows.min()), histogram.shape[1]
    n_rows = int(rows.max()) - first + 1
    counts = np.bincount((rows - first) * m + columns, minlength=n_rows * m)
    histogram[first : first + n_rows] += counts.reshape(n_rows, m)


def _accepted(histogram: Counts) -> Counts:
    return np.ascontiguousarray(histogram[:, ::-1].cumsum(axis=1)[:, ::-1])


def _pair_totals(vectors: LabelledVectors, tile: int, shard: tuple[int, int]) -> tuple[Counts, Counts]:
    """Return the positives and negatives of each class that the shard visits: two [T] int64."""
    n_classes = len(vectors.classes)
    positives, negatives = np.zeros(n_classes, dtype=np.int64), np.zeros(n_classes, dtype=np.int64)
    for rows, columns in tile_bounds(len(vectors.codes), tile, shard):
        above = np.bincount(vectors.codes[rows], minlength=n_classes)
        beside = np.bincount(vectors.codes[columns], minlength=n_classes)
        if rows == columns:
            positives += above * (above - 1) // 2
            negatives += above * (above.sum() - above)
        else:
            positives += above * beside
            negatives += above * (beside.sum() - beside) + beside * (above.sum() - above)
    return positives, negatives
