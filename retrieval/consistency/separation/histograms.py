"""Measure how far the scores of pairs within classes lie from those between classes, all classes together.

d' compares the means, AUC the order, the overlap the distributions. Pairs of classes are in `confusion`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from retrieval.consistency.arguments import checked
from retrieval.consistency.intervals import Interval
from retrieval.consistency.jackknife import jackknife_interval
from retrieval.consistency.pairs.batches import scored_pairs
from retrieval.consistency.pairs.products import scores_of
from retrieval.consistency.pairs.tiles import tiles_of
from retrieval.consistency.pairs.vectors import LabelledVectors, check_one_population, check_positives
from retrieval.errors import InvalidInput

Reals = NDArray[np.float64]
Counts = NDArray[np.int64]

# AUC uses bins that are finer by this factor: pairs in one bin count as ties, an error below 1e-4.
_FINER = 64


@dataclass(frozen=True, slots=True, eq=False)
class ScoreHistograms:
    """Counts of pairs by score, and how far the two kinds of pairs are apart.

    The intervals have the stated confidence over the draw of classes; they are None if fewer than three classes have
    two images, or neither kind of pair spreads.
    """

    edges: Reals  # [b + 1], from the lowest to the highest score
    within: Counts  # [b], pairs inside a class
    between: Counts  # [b], pairs across classes
    d_prime: float  # gap of the means in root mean squares of the two standard deviations; infinite if neither spreads
    auc: float  # probability that a pair within scores above one between, ties counted half, up to auc_error
    auc_error: float
    overlap: float  # sum over bins of the smaller share, from 0 (apart) to 1 (equal); it grows with coarser bins
    d_prime_interval: Interval | None
    auc_interval: Interval | None
    overlap_interval: Interval | None
    confidence: float


@checked
def score_histograms(vectors: LabelledVectors, *, n_bins: int = 100, confidence: float = 0.95) -> ScoreHistograms:
    """Return histograms of within- and between-class scores over equal bins, with d', AUC and the overlap.

    Intervals are from the values without each class in turn. Cost: two passes over the pairs; memory, next to a few
    tiles: two counts for each class and bin.

    Raises:
        InvalidInput: n_bins below 1, confidence outside (0, 1), two sets of images or excluded pairs.
        NotEnoughEvidence: no class has two images.

    Source: for AUC, Hanley, McNeil, "The meaning and use of the area under a ROC curve", Radiology 143 (1982); for the
    overlap, Inman, Bradley, "The overlapping coefficient as a measure of agreement between probability distributions",
    Communications in Statistics 18 (1989).

    >>> from retrieval.consistency import labelled
    >>> rows = np.array([[1, 0], [0.8, 0.6], [0, 1], [0.6, 0.8]], dtype=np.float32)
    >>> vectors = labelled(rows, ["a", "a", "b", "b"])
    >>> result = score_histograms(vectors, n_bins=2)  # within 0.8, 0.8; between 0, 0.6, 0.6, 0.96
    >>> result.within, result.between
    (array([0, 2]), array([1, 3]))
    >>> result.auc, result.overlap  # 0.8 is above three of four; 0 of the left bin and 3/4 of the right one are shared
    (0.75, 0.75)
    """
    if n_bins < 1 or not 0 < confidence < 1:
        raise InvalidInput(f"expected n_bins >= 1 and confidence in (0, 1), found {n_bins} and {confidence}")
    check_one_population(vectors)
    check_positives(vectors)
    low, high = _score_range(vectors)
    of_classes = class_moments(vectors)
    counts, fine = _class_histograms(vectors, low, high, n_bins=n_bins)
    pooled = fine.reshape(2, n_bins, _FINER).sum(axis=2)
    shares = fine / fine.sum(axis=1, keepdims=True)
    auc, overlap = float(area_under_curve(fine)), float(overlap_of(pooled))
    gap = float(d_prime(pooled_moments(of_classes)))
    usable = _usable(counts, pooled)
    left, moments_left = (pooled - counts)[usable], (pooled_moments(of_classes) - of_classes)[usable]
    return ScoreHistograms(
        # np.histogram widens a range of zero width in the same way.
        edges=np.histogram_bin_edges(np.array([low, high]), n_bins),
        within=pooled[0],
        between=pooled[1],
        d_prime=gap,
        auc=auc,
        auc_error=float((shares[0] * shares[1]).sum() / 2),
        overlap=overlap,
        d_prime_interval=_interval(gap, d_prime(moments_left), confidence, proportion=False),
        auc_interval=_interval(auc, area_under_curve(left), confidence),
        overlap_interval=_interval(overlap, overlap_of(left), confidence),
        confidence=confidence,
    )


def area_under_curve(counts: Counts) -> Reals:
    """Return the share of (within, between) in which within has the higher bin, ties half: [...] of [..., 2, b]."""
    within, between = counts[..., 0, :].astype(np.float64), counts[..., 1, :].astype(np.float64)
    below = between.cumsum(axis=-1) - between / 2
    return np.asarray((within * below).sum(axis=-1) / (within.sum(axis=-1) * between.sum(axis=-1)), dtype=np.float64)


def overlap_of(counts: Counts) -> Reals:
    """Return the sum over the bins of the smaller of the two shares: [...] of [..., 2, b]."""
    shares = counts / counts.sum(axis=-1, keepdims=True)
    return np.asarray(shares.min(axis=-2).sum(axis=-1), dtype=np.float64)


def class_moments(vectors: LabelledVectors) -> Reals:
    """Return (count, sum, sum of squares) of the scores of each class: [T, 2, 3] float64.

    [:, 0]: pairs within, counted once; [:, 1]: pairs between, counted for both their classes.
    Cost: one [n, n] / 2 matrix product, or those of all rounds; memory: a few tiles.
    """
    of_classes = np.zeros((len(vectors.classes), 2, 3))
    sides = [(codes, np.zeros((len(codes), 2, 3))) for codes in (vectors.codes, vectors.gallery_codes)]
    for rows, columns in tiles_of(vectors):
        scores = scores_of(vectors.query[rows], vectors.gallery[columns]).astype(np.float64)
        within = vectors.codes[rows][:, None] == vectors.gallery_codes[columns][None, :]
        pairs = np.ones_like(within)
        if vectors.one_set and rows == columns:
            pairs = np.triu(pairs, k=1)
        for kind, chosen in enumerate((pairs & within, pairs & ~within)):
            kept = np.where(chosen, scores, 0)
            for axis, images, (_, moments) in zip((1, 0), (rows, columns), sides, strict=True):
                moments[images, kind, 0] += chosen.sum(axis=axis)
                moments[images, kind, 1] += kept.sum(axis=axis)
                moments[images, kind, 2] += np.square(kept).sum(axis=axis)
    for codes, moments in sides:
        np.add.at(of_classes, codes, moments)
    of_classes[:, 0] /= 2
    return of_classes


def pooled_moments(of_classes: Reals) -> Reals:
    """Return the moments of all pairs, each once: [2, 3]."""
    pooled: Reals = of_classes.sum(axis=0)
    pooled[1] /= 2
    return pooled


def d_prime(moments: Reals) -> NDArray[np.float64]:
    """Return the distance of two means in units of the root mean square of the two standard deviations: [...].

    moments: [..., 2, 3], with at least one pair on each side. If neither side spreads, it is infinite, or 0 for equal
    means.

    Source: Macmillan, Creelman, "Detection Theory: A User's Guide" (2005), the index d_a.
    """
    counts, sums, squares = moments[..., 0], moments[..., 1], moments[..., 2]
    means = sums / counts
    # A smaller difference of squares is a rounding error of float64, not a spread.
    variances = squares / counts - means**2
    variances = np.where(variances > 1e-13 * np.maximum(squares / counts, 1e-300), variances, 0)
    spread = np.sqrt(variances.mean(axis=-1))
    gap = means[..., 0] - means[..., 1]
    values: NDArray[np.float64] = np.where(gap == 0, 0.0, np.copysign(np.inf, gap))
    np.divide(gap, spread, out=values, where=spread > 0)
    return values


def _score_range(vectors: LabelledVectors) -> tuple[float, float]:
    """Return the lowest and the highest score of any pair."""
    ends = [(b.scores.min(), b.scores.max()) for b in scored_pairs(vectors) if len(b.scores)]
    return float(min(end[0] for end in ends)), float(max(end[1] for end in ends))


def _class_histograms(vectors: LabelledVectors, low: float, high: float, *, n_bins: int) -> tuple[Counts, Counts]:
    """Count pairs over equal bins: of each class [T, 2, n_bins], of all on finer bins [2, n_bins * 64].

    [:, 0]: pairs within; [:, 1]: pairs between, which count for both their classes.
    """
    n_classes, n_fine = len(vectors.classes), n_bins * _FINER
    counts = np.zeros((n_classes, 2, n_bins), dtype=np.int64)
    fine = np.zeros((2, n_fine), dtype=np.int64)
    middle = high == low  # one value only: everything goes to the bin in the middle, as in np.histogram
    scale = 0.0 if middle else n_fine / (high - low)
    for batch in scored_pairs(vectors):
        place = np.minimum((batch.scores.astype(np.float64) - low) * scale, n_fine - 1).astype(np.int64)
        if middle:
            place[:] = n_fine // 2
        matches = batch.matches
        for side, chosen in enumerate((matches, ~matches)):
            fine[side] += np.bincount(place[chosen], minlength=n_fine)
            for ends in (batch.first,) if side == 0 else (batch.first, batch.second):
                cells = ends[chosen] * n_bins + place[chosen] // _FINER
                _add(counts[:, side], cells, n_bins)
    return counts, fine


def _add(counts: Counts, cells: Counts, n_bins: int) -> None:
    """Count cells (class * n_bins + bin) into [T, n_bins]; a tile meets a short range of classes."""
    if len(cells):
        first, last = int(cells.min()) // n_bins, int(cells.max()) // n_bins + 1
        found = np.bincount(cells - first * n_bins, minlength=(last - first) * n_bins)
        counts[first:last] += found.reshape(-1, n_bins)


def _usable(counts: Counts, pooled: Counts) -> NDArray[np.bool_]:
    """Return the classes without which pairs of both kinds are left: [T] bool; none if too few have positives."""
    left = pooled.sum(axis=1) - counts.sum(axis=2)
    enough = int(np.count_nonzero(counts[:, 0].sum(axis=1))) >= 3
    return np.asarray((left > 0).all(axis=1) & enough)


def _interval(estimate: float, without: Reals, confidence: float, *, proportion: bool = True) -> Interval | None:
    """Return the interval of a figure from its values without each class and all pairs with an end in it."""
    if len(without) < 3 or not np.isfinite([estimate, *without]).all():
        return None
    return jackknife_interval(estimate, without, confidence, proportion=proportion)
