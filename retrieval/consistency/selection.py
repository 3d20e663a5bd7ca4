"""The score at which a stated share of negative pairs is accepted, exact to the last bit, and grids built from it.

Two passes over the pairs, each a histogram of float32 bit patterns; nothing is sorted and nothing is interpolated.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from retrieval.consistency.pairs import LabelledVectors, Vectors, labelled_vectors, scored_pairs
from retrieval.errors import InvalidInput

# The first pass resolves sign, exponent and 11 bits of the fraction; the second pass the remaining 12 bits.
_LOW_BITS = 12
_SIGN = np.uint32(0x80000000)


def thresholds_at_far(
    query_vectors: Vectors,
    labels: Sequence[str],
    *,
    gallery_vectors: Vectors | None = None,
    fars: Sequence[float],
    tile: int = 1024,
) -> NDArray[np.float64]:
    """Return, for each target, the smallest float32 threshold whose pooled FAR does not exceed it: [len(fars)] float64.

    Tied scores are accepted or rejected together, so the FAR may stay below the target but never passes it. A target of
    0 gives the first value above every negative pair.

    Raises:
        InvalidInput: a target outside [0, 1).
        InvalidEmbeddings, NotEnoughEvidence: see `labelled_vectors`.

    >>> rows = np.array([[1, 0], [0.8, 0.6], [0, 1]], dtype=np.float32)
    >>> thresholds_at_far(rows, ["a", "a", "b"], fars=[0.5]).round(6)  # negatives score 0 and 0.6
    array([0.])
    """
    vectors = labelled_vectors(query_vectors, labels, gallery_vectors)
    return select_thresholds(vectors, np.asarray(fars, dtype=np.float64), tile=tile)


def select_thresholds(vectors: LabelledVectors, fars: NDArray[np.float64], *, tile: int) -> NDArray[np.float64]:
    """Do what `thresholds_at_far` promises for vectors that are checked already."""
    if not ((fars >= 0) & (fars < 1)).all():
        raise InvalidInput(f"FAR targets must lie in [0, 1), found {fars.tolist()}")
    n_negatives = vectors.n_negatives
    allowed = np.floor(fars * n_negatives).astype(np.int64)
    allowed += (allowed + 1) / n_negatives <= fars  # the product rounds below whole numbers
    ranks = n_negatives - 1 - allowed  # the best-scoring negative to reject, counted from the lowest
    high, inside = _locate(_high_counts(vectors, tile), ranks)
    selected, position = np.unique(high, return_inverse=True)
    low = np.empty_like(high)
    for row, counts in enumerate(_low_counts(vectors, selected, tile)):
        low[position == row] = _locate(counts, inside[position == row])[0]
    rejected = _scores_of((high << _LOW_BITS) | low)
    return np.nextafter(rejected, np.float32(np.inf)).astype(np.float64)


def threshold_grid(
    query_vectors: Vectors,
    labels: Sequence[str],
    *,
    gallery_vectors: Vectors | None = None,
    far_low: float = 1e-2,
    far_high: float = 1e-1,
    n_band: int = 1000,
    tile: int = 1024,
) -> NDArray[np.float64]:
    """Return ascending thresholds for operating curves: [m] float64, m about n_band + 100.

    n_band equally spaced ones cover exactly the band in which the pooled FAR goes from far_high to far_low, where OPIS
    is integrated; 16 per decade of FAR cover the rest, up to the first threshold without any false accept.

    Raises:
        InvalidInput: not 0 < far_low < far_high < 1, or n_band below 2.
        InvalidEmbeddings, NotEnoughEvidence: see `labelled_vectors`.
    """
    vectors = labelled_vectors(query_vectors, labels, gallery_vectors)
    return build_grid(vectors, far_low=far_low, far_high=far_high, n_band=n_band, tile=tile)


def build_grid(
    vectors: LabelledVectors, *, far_low: float, far_high: float, n_band: int, tile: int
) -> NDArray[np.float64]:
    """Do what `threshold_grid` promises for vectors that are checked already."""
    if not 0 < far_low < far_high < 1 or n_band < 2:
        raise InvalidInput(
            f"expected 0 < far_low < far_high < 1 and n_band >= 2, found {far_low}, {far_high} and {n_band}"
        )
    lowest_far = 1 / vectors.n_negatives
    n_levels = 1 + int(np.ceil(-16 * np.log10(lowest_far)))
    levels = np.geomspace(lowest_far, 1, n_levels)[:-1]
    outside = levels[(levels < far_low) | (levels > far_high)]
    fars = np.concatenate([[far_high, far_low, 0.0, 1 - lowest_far], outside])
    thresholds = select_thresholds(vectors, fars, tile=tile)
    return np.unique(np.concatenate([np.linspace(thresholds[0], thresholds[1], n_band), thresholds]))


def _high_counts(vectors: LabelledVectors, tile: int) -> NDArray[np.int64]:
    counts = np.zeros(1 << (32 - _LOW_BITS), dtype=np.int64)
    for batch in scored_pairs(vectors, tile=tile):
        keys = _keys_of(batch.scores[~batch.matches]) >> _LOW_BITS
        if len(keys):
            first = int(keys.min())
            found = np.bincount(keys - first)
            counts[first : first + len(found)] += found
    return counts


def _low_counts(vectors: LabelledVectors, selected: NDArray[np.int64], tile: int) -> NDArray[np.int64]:
    counts = np.zeros(len(selected) << _LOW_BITS, dtype=np.int64)
    lowest = _scores_of(selected[:1] << _LOW_BITS)[0]
    for batch in scored_pairs(vectors, lowest=lowest, tile=tile):
        keys = _keys_of(batch.scores[~batch.matches])
        row = np.searchsorted(selected, keys >> _LOW_BITS)
        hit = selected[np.minimum(row, len(selected) - 1)] == keys >> _LOW_BITS
        low = keys[hit] & ((1 << _LOW_BITS) - 1)
        counts += np.bincount((row[hit] << _LOW_BITS) | low, minlength=len(counts))
    return counts.reshape(len(selected), -1)


def _locate(counts: NDArray[np.int64], ranks: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the bin of each ascending rank and the rank inside that bin."""
    cumulative = np.cumsum(counts)
    bins = np.searchsorted(cumulative, ranks, side="right").astype(np.int64)
    return bins, ranks - (cumulative[bins] - counts[bins])


def _keys_of(scores: NDArray[np.float32]) -> NDArray[np.int64]:
    """Map float32 values to integers in [0, 2^32) that order alike."""
    bits = scores.view(np.uint32)
    return np.where(bits & _SIGN, ~bits, bits | _SIGN).astype(np.int64)


def _scores_of(keys: NDArray[np.int64]) -> NDArray[np.float32]:
    """Undo `_keys_of`."""
    bits = keys.astype(np.uint32)
    return np.where(bits & _SIGN, bits ^ _SIGN, ~bits).astype(np.uint32).view(np.float32)
