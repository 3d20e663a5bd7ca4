"""Estimate the variance of the error rates at one threshold, over the draw of classes.

FAR averages over *pairs* of classes, so a class takes part in many terms. Treating the rates of classes as independent
would understate the variance up to four times.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy.special import expit, logit

from retrieval.consistency.curves import OperatingCurves, Rates
from retrieval.consistency.intervals import Interval, student_quantile
from retrieval.consistency.pairs.vectors import LabelledVectors
from retrieval.consistency.subgroups.counts import Counts, accepted_class_pairs


@dataclass(frozen=True, slots=True)
class RateVariances:
    """Variances at one threshold."""

    class_variance: float  # of log pooled FAR, the part that falls with 1 / n_classes
    pair_variance: float  # of log pooled FAR, the part that falls with 1 / n_classes^2
    mean_far: float  # of log class-mean FAR
    tar: float  # of logit pooled TAR
    precision: float  # of logit precision, which is log TAR - log FAR and a constant


def rate_variances(vectors: LabelledVectors, curves: OperatingCurves) -> RateVariances:
    """Return the variances at the one threshold of the curves, which must accept some negative pair.

    FAR: the dyadic-robust variance; a bootstrap that weights the pair (i, j) by w_i * w_j would count the part of
    single pairs three times. TAR: that of a ratio of class totals.
    Cost: one pass; memory: the class pairs with false accepts.

    Source: Aronow, Samii, Assenova, "Cluster-robust variance estimation for dyadic data", Political Analysis 23 (2015).
    """
    pairs = accepted_class_pairs(vectors, float(curves.thresholds[0]))
    n_images = vectors.n_images.astype(np.float64)
    n_classes = len(n_images)
    far, mean_far = float(curves.pooled_far[0]), float(curves.mean_far[0])
    # Pooled FAR gives every image pair the weight u_i + u_j = 1 / N, class-mean FAR (1 / N_i + 1 / N_j) / T.
    by_class, by_pair = _residuals(pairs, n_images, far, np.full(n_classes, 1 / curves.negatives.sum()))
    shared = max(float((by_class**2).sum()) - 2 * by_pair, 0.0)
    mean_by_class, mean_by_pair = _residuals(pairs, n_images, mean_far, 1 / (n_classes * curves.negatives))
    tar_by_class = _log_tar_residuals(curves)
    pair_variance = by_pair / far**2
    of_precision = float(((by_class / far - tar_by_class) ** 2).sum()) - pair_variance
    return RateVariances(
        class_variance=shared / far**2,
        pair_variance=pair_variance,
        mean_far=max(float((mean_by_class**2).sum()) - mean_by_pair, mean_by_pair) / mean_far**2,
        tar=_logit_tar_variance(curves),
        precision=max(of_precision, pair_variance),
    )


def _residuals(
    pairs: tuple[Counts, Counts, Counts], n_images: Rates, rate: float, weights: Rates
) -> tuple[Rates, float]:
    """Return the residual of each class, [T], and the sum of squares over class pairs.

    The residual of the class pair (i, j) is (u_i + u_j)(accepted_ij - rate * n_i * n_j), weights: u; that of a class is
    the sum over its pairs. Most pairs accept nothing and are summed by formula.
    """
    u, n, (i, j), accepted = weights, n_images, pairs[:2], pairs[2].astype(np.float64)
    of_pair = (u[i] + u[j]) * accepted
    by_class = np.bincount(i, of_pair, minlength=len(n)) + np.bincount(j, of_pair, minlength=len(n))
    by_class = by_class - rate * n * (u * (n.sum() - n) + (u * n).sum() - u * n)
    squares, once, twice = n**2, u * n**2, u**2 * n**2
    every_product = twice.sum() * squares.sum() - (twice * squares).sum() + once.sum() ** 2 - (once**2).sum()
    by_pair = ((u[i] + u[j]) ** 2 * (accepted**2 - 2 * rate * accepted * n[i] * n[j])).sum()
    return by_class, float(by_pair + rate**2 * every_product)


def _log_tar_residuals(curves: OperatingCurves) -> Rates:
    """Return the contribution of each class to the log of TAR: [T], 0 for a class without positives."""
    accepted, n_with = curves.positives_accepted[:, 0], int(np.count_nonzero(curves.with_positives))
    total = max(float(accepted.sum()), 0.5)
    rate = float(curves.pooled_tar[0])
    correction = math.sqrt(n_with / max(n_with - 1, 1))
    return np.asarray((accepted - rate * curves.positives) / total * correction, dtype=np.float64)


def _logit_tar_variance(curves: OperatingCurves) -> float:
    """Return the variance of logit TAR as a ratio of class totals, at least that of independent pairs."""
    rows = curves.with_positives
    accepted, positives = curves.positives_accepted[rows, 0], curves.positives[rows]
    total, n_classes = float(positives.sum()), len(positives)
    residuals = accepted - accepted.sum() / total * positives
    rate = (accepted.sum() + 0.5) / (total + 1)  # keeps the logit finite if all or none are accepted
    of_rate = max(float((residuals**2).sum()) * n_classes / (n_classes - 1) / total**2, rate * (1 - rate) / total)
    return float(of_rate / (rate * (1 - rate)) ** 2)


def log_interval(rate: float, variance: float, n_classes: float, confidence: float) -> Interval:
    """Return the interval of a rate that is symmetric in its logarithm, with Student's quantile; at most 1."""
    factor = math.exp(student_quantile(n_classes, confidence) * math.sqrt(variance))
    return Interval(rate / factor, min(rate * factor, 1.0))


def logit_interval(rate: float, variance: float, n_classes: int, confidence: float) -> Interval:
    """Return the interval of a rate that is symmetric in its logit; it ends at 0 or 1 if the rate does."""
    half_width = student_quantile(n_classes, confidence) * math.sqrt(variance)
    centre = float(logit(min(max(rate, 1e-6), 1 - 1e-6)))
    low, high = float(expit(centre - half_width)), float(expit(centre + half_width))
    return Interval(0.0 if rate == 0 else low, 1.0 if rate == 1 else high)
