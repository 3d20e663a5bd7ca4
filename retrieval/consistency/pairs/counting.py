"""Pairs at or above each of many thresholds, counted by class in one pass.

Integers all the way: the counts of shards add up to those of the whole, whatever the order and the number of threads.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from retrieval.consistency.pairs.pairs import LabelledVectors, Progress, float32_at_least, pair_totals, tiles_of
from retrieval.consistency.pairs.tiles import Tile, sum_of, visit_tiles

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
    threads: int | None,
    progress: Progress | None,
) -> PairCounts:
    """Count the pairs of a shard that reach each of the strictly ascending thresholds [m], for each class.

    A positive pair counts for its class, a negative pair for the class of either end.
    """
    tiles = tiles_of(vectors, tile, shard)
    accepted = count_tiles(vectors, thresholds, tiles, threads=threads, progress=progress)
    if shard == (0, 1):
        return PairCounts(*accepted, vectors.positives, vectors.negatives)
    return PairCounts(*accepted, *total_of_tiles(vectors, tiles))


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

    def visit(counts: Counts, scores: NDArray[np.float32], tile: Tile) -> None:
        rows, columns = tile
        kernels.count_accepted_pairs(
            scores,
            vectors.codes[rows],
            vectors.gallery_codes[columns],
            vectors.groups[rows],
            vectors.gallery_groups[columns],
            is_diagonal(vectors, tile),
            limits,
            guess,
            *counts,
        )

    def none_yet() -> Counts:
        return np.zeros((2, len(vectors.classes), len(thresholds)), dtype=np.int64)

    total = sum_of(visit_tiles(vectors, tiles, visit, none_yet, threads=threads, progress=progress))
    # In place, from the highest threshold down: what reaches a threshold reaches all below it.
    np.cumsum(total[..., ::-1], axis=2, out=total[..., ::-1])
    return total[0], total[1]


def total_of_tiles(vectors: LabelledVectors, tiles: Sequence[Tile]) -> tuple[Counts, Counts]:
    """Return the positives and negatives of each class among the pairs of some tiles: two [T] int64."""
    total = np.zeros((2, len(vectors.classes)), dtype=np.int64)
    for rows, columns in tiles:
        codes, groups = vectors.codes[rows], vectors.groups[rows]
        diagonal = is_diagonal(vectors, (rows, columns))
        total += pair_totals(
            codes,
            codes if diagonal else vectors.gallery_codes[columns],
            groups,
            groups if diagonal else vectors.gallery_groups[columns],
            len(vectors.classes),
        )
    return total[0], total[1]


def is_diagonal(vectors: LabelledVectors, tile: Tile) -> bool:
    """Whether the tile pairs images with themselves, so that only the pairs above its diagonal count."""
    return vectors.one_set and tile[0] == tile[1]
