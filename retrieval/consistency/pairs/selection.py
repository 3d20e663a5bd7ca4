"""The score at which a stated share of negative pairs is accepted, exact to the last bit, and grids built from it.

Two passes over the pairs each make a histogram of float32 bit patterns; nothing is sorted or interpolated.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from retrieval.consistency.arguments import checked
from retrieval.consistency.pairs.tiles import Counts, Tile, sum_over_tiles, tiles_of
from retrieval.consistency.pairs.vectors import LabelledVectors
from retrieval.errors import InvalidInput, NotEnoughEvidence

_SIGN = np.uint32(0x80000000)
# About two million pairs: their FAR of 1 % has a standard error of a few per cent, even if classes differ much.
_PILOT_IMAGES = 2048
_WORTH_A_PILOT = 3
_PILOT_MARGIN = 1.5
_PILOT_FALSE_ACCEPTS = 100


@checked
def thresholds_at_far(
    vectors: LabelledVectors, fars: Sequence[float] | NDArray[np.float64], *, threads: int | None = None
) -> NDArray[np.float64]:
    """Return, for each target, the smallest float32 threshold whose pooled FAR does not exceed it: [len(fars)] float64.

    Equal scores are accepted or rejected together, so the FAR may stay below the target but never exceeds it. A target
    of 0 gives the first value above every negative pair.

    Raises:
        InvalidInput: no target, or one outside [0, 1).
        NotEnoughEvidence: no pair across classes.

    >>> from retrieval.consistency import labelled
    >>> rows = np.array([[1, 0], [0.8, 0.6], [0, 1]], dtype=np.float32)
    >>> thresholds_at_far(labelled(rows, ["a", "a", "b"]), [0.5]).round(6)  # negatives score 0 and 0.6
    array([0.])
    """
    fars = np.asarray(fars, dtype=np.float64)
    if fars.ndim != 1 or not fars.size or not ((fars >= 0) & (fars < 1)).all():
        raise InvalidInput(f"expected at least one FAR target, all in [0, 1), found {fars.tolist()}")
    n_negatives = vectors.n_negatives
    if n_negatives == 0:
        raise NotEnoughEvidence("no two images of different classes make a pair; exclude fewer pairs or add classes")
    allowed = np.floor(fars * n_negatives).astype(np.int64)
    allowed += (allowed + 1) / n_negatives <= fars  # the product rounds below whole numbers
    ranks = n_negatives - 1 - allowed  # the best-scoring negative to reject, counted from the lowest
    high, inside = _locate(_high_counts(vectors, threads), ranks)
    selected, position = np.unique(high, return_inverse=True)
    low = np.empty_like(high)
    for row, counts in enumerate(_low_counts(vectors, selected, threads)):
        low[position == row] = _locate(counts, inside[position == row])[0]
    rejected = _scores_of((high * len(counts)) | low)
    return np.nextafter(rejected, np.float32(np.inf)).astype(np.float64)


@checked
def threshold_grid(
    vectors: LabelledVectors,
    *,
    far_low: float = 1e-2,
    far_high: float = 1e-1,
    n_band: int = 1000,
    threads: int | None = None,
) -> NDArray[np.float64]:
    """Return ascending thresholds for operating curves: [m] float64, m about n_band + 100.

    n_band equally spaced ones cover exactly the band of OPIS, in which the pooled FAR goes from far_high to far_low; 16
    per decade of FAR cover the rest, up to the first threshold without any false accept.

    Raises:
        InvalidInput: not 0 < far_low < far_high < 1, or n_band below 2.
        NotEnoughEvidence: see `thresholds_at_far`.
    """
    _check_band(far_low, far_high, n_band)
    lowest_far = 1 / max(vectors.n_negatives, 2)
    n_levels = 1 + int(np.ceil(-16 * np.log10(lowest_far)))
    levels = np.geomspace(lowest_far, 1, n_levels)[:-1]
    outside = levels[(levels < far_low) | (levels > far_high)]
    fars = np.concatenate([[far_high, far_low, 0.0, 1 - lowest_far], outside])
    thresholds = thresholds_at_far(vectors, fars, threads=threads)
    return np.unique(np.concatenate([np.linspace(thresholds[0], thresholds[1], n_band), thresholds]))


def one_pass_grid(
    vectors: LabelledVectors, *, far_low: float, far_high: float, n_band: int, threads: int | None = None
) -> NDArray[np.float64]:
    """Return a grid for many images from a few of them: ascending [m] float64, m about n_band + 100.

    Its n_band equally spaced thresholds reach a little beyond the band, so that the counts at them cover it; 64 more
    cover the scores above, up to one that no pair reaches. There are none below, because counting those pairs would
    double the cost. Few images are not sampled, and get the grid of `threshold_grid`.
    """
    _check_band(far_low, far_high, n_band)
    step = min(len(vectors.codes), len(vectors.gallery_codes)) // _PILOT_IMAGES
    if step < _WORTH_A_PILOT or vectors.rounds:
        return threshold_grid(vectors, far_low=far_low, far_high=far_high, n_band=n_band, threads=threads)
    # Sorted by class: every step-th image meets all classes, and few of its own.
    kept = slice(None, None, step)
    pilot = vectors.subset(np.arange(0, len(vectors.codes), step)) if vectors.one_set else vectors.part(kept, kept)
    rarest = _PILOT_FALSE_ACCEPTS / max(pilot.n_negatives, 1)
    if far_low / _PILOT_MARGIN < rarest:
        return threshold_grid(vectors, far_low=far_low, far_high=far_high, n_band=n_band, threads=threads)
    fars = [min(far_high * _PILOT_MARGIN, (1 + far_high) / 2), far_low / _PILOT_MARGIN, rarest]
    low, high, rare = thresholds_at_far(pilot, fars, threads=threads)
    longest = [float(np.linalg.norm(side, axis=1).max()) for side in (vectors.query, vectors.gallery)]
    never = longest[0] * longest[1] * (1 + 1e-5)  # Cauchy-Schwarz, and the rounding of float32
    parts = [np.linspace(low, high, n_band), np.linspace(high, rare, 16), np.linspace(rare, never, 48)]
    return np.unique(np.concatenate(parts))


def _check_band(far_low: float, far_high: float, n_band: int) -> None:
    if not 0 < far_low < far_high < 1 or n_band < 2:
        raise InvalidInput(
            f"expected 0 < far_low < far_high < 1 and n_band >= 2, found {far_low}, {far_high} and {n_band}"
        )


def _high_counts(vectors: LabelledVectors, threads: int | None) -> Counts:
    from retrieval.consistency.pairs import kernels

    def count(counts: Counts, scores: NDArray[np.float32], tile: Tile) -> None:
        kernels.count_high_bits(scores.view(np.uint32), *vectors.labels_of(*tile), counts)

    return sum_over_tiles(vectors, tiles_of(vectors), count, (1 << (32 - kernels.LOW_BITS),), threads=threads)


def _low_counts(vectors: LabelledVectors, selected: NDArray[np.int64], threads: int | None) -> Counts:
    from retrieval.consistency.pairs import kernels

    row_of = np.full(1 << (32 - kernels.LOW_BITS), -1, dtype=np.int16)
    row_of[selected] = np.arange(len(selected))

    def count(counts: Counts, scores: NDArray[np.float32], tile: Tile) -> None:
        kernels.count_low_bits(scores.view(np.uint32), *vectors.labels_of(*tile), row_of, counts)

    shape = len(selected), 1 << kernels.LOW_BITS
    return sum_over_tiles(vectors, tiles_of(vectors), count, shape, threads=threads)


def _locate(counts: Counts, ranks: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the bin of each rank and the rank inside that bin."""
    filled = np.flatnonzero(counts)
    cumulative = np.cumsum(counts[filled])
    place = np.searchsorted(cumulative, ranks, side="right")
    bins = filled[place].astype(np.int64)
    return bins, ranks - (cumulative[place] - counts[bins])


def _scores_of(keys: NDArray[np.int64]) -> NDArray[np.float32]:
    """Return the float32 values of integers that order alike, see `kernels`."""
    bits = keys.astype(np.uint32)
    return np.where(bits & _SIGN, bits ^ _SIGN, ~bits).astype(np.uint32).view(np.float32)
