"""Pairs at or above each of many thresholds, counted by class in one pass.

The counts of shards add up to those of the whole for any order and number of threads, because they are integers.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from retrieval.consistency.pairs.products import float32_at_least
from retrieval.consistency.pairs.tiles import Counts, Tile, sum_over_tiles
from retrieval.consistency.pairs.vectors import LabelledVectors, Progress, pair_totals


def count_tiles(
    vectors: LabelledVectors,
    thresholds: NDArray[np.float64],
    tiles: Sequence[Tile],
    *,
    threads: int | None,
    progress: Progress | None = None,
) -> tuple[Counts, Counts]:
    """Return the accepted positives and negatives among the pairs of some tiles: two [T, m] int64."""
    from retrieval.consistency.pairs import kernels

    limits = np.append(float32_at_least(thresholds), np.float32(np.inf))
    guess = kernels.limit_guess(limits[:-1])

    def count(counts: Counts, scores: NDArray[np.float32], tile: Tile) -> None:
        kernels.count_accepted_pairs(scores, *vectors.labels_of(*tile), limits, guess, *counts)

    shape = 2, len(vectors.classes), len(thresholds)
    total = sum_over_tiles(vectors, tiles, count, shape, threads=threads, progress=progress)
    # In place, from the highest threshold down: a pair that reaches a threshold reaches all lower ones.
    np.cumsum(total[..., ::-1], axis=2, out=total[..., ::-1])
    return total[0], total[1]


def total_of_tiles(vectors: LabelledVectors, tiles: Sequence[Tile]) -> tuple[Counts, Counts]:
    """Return the positives and negatives of each class among the pairs of some tiles: two [T] int64."""
    total = np.zeros((2, len(vectors.classes)), dtype=np.int64)
    for tile in tiles:
        total += pair_totals(vectors.labels_of(*tile), len(vectors.classes))
    return total[0], total[1]
