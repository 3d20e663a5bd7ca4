"""Find which thresholds may be the best in the population, if one of them is the best in the sample.

The place of a maximum is known far less well than its height, and its error is not normal: an interval from a standard
error, or from plain resampling, would be too narrow. So all thresholds that are not significantly worse are kept.
"""

from __future__ import annotations

import numpy as np
from scipy.special import stdtrit

from retrieval.consistency.curves import OperatingCurves, Rates, count_accepted
from retrieval.consistency.intervals import Interval
from retrieval.consistency.pairs.batches import scored_pairs
from retrieval.consistency.pairs.products import float32_at_least
from retrieval.consistency.pairs.vectors import LabelledVectors
from retrieval.consistency.thresholds.targets import Target

_N_COARSE = 512
_N_FINE = 33


def near_optimum(vectors: LabelledVectors, target: Target, best: float, *, confidence: float) -> Interval:
    """Return the range of thresholds that are not significantly worse than the best one.

    33 thresholds are compared with the best by the difference of what they achieve and its standard error over the draw
    of classes, at a level divided by 33 (Bonferroni), so that the range holds the best threshold of the population with
    at least the stated confidence. It is often wide: near its top, the curve is flat.

    Cost: some four passes for F-beta; for utility also 33 times the accepted pairs.

    Source: for why resampling does not serve, Kim, Pollard, "Cube root asymptotics", Annals of Statistics 18 (1990).
    """
    longest = np.linalg.norm(vectors.query, axis=1).max() * np.linalg.norm(vectors.gallery, axis=1).max()
    grid = np.linspace(-1.0001 * longest, 1.0001 * longest, _N_COARSE)
    # A coarse search: without the part of a class in the FAR of others, and at a generous level.
    low, high = _not_worse(vectors, target, np.append(grid, best), confidence, exact=False)
    fine = np.append(np.linspace(low, high, _N_FINE), best)
    return Interval(*_not_worse(vectors, target, fine, confidence, exact=True))


def _not_worse(
    vectors: LabelledVectors, target: Target, thresholds: Rates, confidence: float, *, exact: bool
) -> tuple[float, float]:
    """Return the lowest and highest threshold kept, one step further out; the last one given is the best."""
    best, thresholds = float(thresholds[-1]), np.unique(thresholds)
    curves = count_accepted(vectors, thresholds)
    achieved, column = target.achieved(curves), int(np.searchsorted(thresholds, best))
    if target.kind == "utility":
        influence = _of_utility(vectors, curves, target.value, exact=exact)
    else:
        influence = _of_rates(curves, target)
    n_classes = int(np.count_nonzero(curves.with_positives))
    error = np.sqrt(((influence - influence[:, [column]]) ** 2).sum(axis=0) * n_classes / (n_classes - 1))
    quantile = stdtrit(n_classes - 1, 1 - (1 - confidence) / _N_FINE) * (1.0 if exact else 1.5)
    kept = np.flatnonzero(achieved[column] - achieved <= quantile * error)
    # The end is known to one step only.
    first, last = max(int(kept[0]) - 1, 0), min(int(kept[-1]) + 1, len(thresholds) - 1)
    return float(thresholds[first]), float(thresholds[last])


def _of_rates(curves: OperatingCurves, target: Target) -> Rates:
    """Return the influence of each class on F-beta: [T, m]."""
    tar, far, prevalence, weight = curves.pooled_tar, curves.pooled_far, target.at or 0.0, target.value**2
    denominator = prevalence * tar + (1 - prevalence) * far + weight * prevalence
    by_tar = (1 + weight) * prevalence * ((1 - prevalence) * far + weight * prevalence) / denominator**2
    by_far = -(1 + weight) * prevalence * tar * (1 - prevalence) / denominator**2
    of_tar = (curves.positives_accepted - tar * curves.positives[:, None]) / curves.positives.sum()
    of_far = (curves.negatives_accepted - far * curves.negatives[:, None]) / curves.n_negative_pairs
    return np.asarray(by_tar * of_tar + by_far * of_far)


def _of_utility(vectors: LabelledVectors, curves: OperatingCurves, c: float, *, exact: bool) -> Rates:
    """Return the influence of each class on the mean utility, by its own FAR and by that of the others: [T, m]."""
    rows = curves.with_positives
    n_with = int(np.count_nonzero(rows))
    trr, tar = 1 - curves.far[rows], curves.tar
    denominator = np.maximum(c * c * trr + tar, 1e-12)
    utilities = (1 + c * c) * trr * tar / denominator
    influence = np.zeros(curves.negatives_accepted.shape)
    influence[rows] = (utilities - utilities.mean(axis=0)) / n_with
    if not exact:
        return influence
    weights = np.zeros_like(influence)  # how the mean changes with one more false accept of each class
    weights[rows] = -(1 + c * c) * (tar / denominator) ** 2 / (n_with * curves.negatives[rows, None])
    expected = vectors.sizes.weighted(weights * curves.far)
    return np.asarray(influence + _opponent_sums(vectors, curves.thresholds, weights) - expected, dtype=np.float64)


def _opponent_sums(vectors: LabelledVectors, thresholds: Rates, weights: Rates) -> Rates:
    """Return for each class the sum over its false accepts of the weight of the other class: [T, m]."""
    limits, sums = float32_at_least(thresholds), np.zeros_like(weights)
    n_classes, m = weights.shape
    for batch in scored_pairs(vectors, lowest=limits[0]):
        differs = ~batch.matches
        first, second = batch.first[differs], batch.second[differs]
        own, others = np.append(first, second), np.append(second, first)
        columns = np.tile(np.searchsorted(limits, batch.scores[differs], side="right") - 1, 2)
        for column in range(m):
            accepted = columns >= column
            sums[:, column] += np.bincount(own[accepted], weights[others[accepted], column], minlength=n_classes)
    return sums
