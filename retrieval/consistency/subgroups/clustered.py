"""Uncertainty of error rates whose pairs share images and classes: covariances and intervals.

Classes are drawn, not pairs. A rate over pairs of classes has the dyadic-robust covariance, one over pairs inside a
class that of a ratio of class totals.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from retrieval.consistency.intervals import Interval, check_confidence, student_quantile

Values = NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class RateEstimates:
    """k error rates over pairs, with their variances; a rate without pairs is 0 with variance 0."""

    errors: Values  # [k], counts
    pairs: Values  # [k], counts
    variances: Values  # [k], of the rates, over the draw of classes or images
    n_clusters: Values  # [k], independent units behind each rate, as if they were equal: see `effective_number`

    @property
    def rates(self) -> Values:
        """Errors over pairs: [k] float64; 0 without pairs."""
        return self.errors / np.maximum(self.pairs, 1)

    @property
    def design_effects(self) -> Values:
        """Variance of each rate over that of as many independent pairs, at least 1: [k] float64.

        A rate of 0 or 1 shows no variance; it gets the median design effect of the others, or without others that of
        one independent pair in each cluster.
        """
        rates = self.rates
        independent = rates * (1 - rates) / np.maximum(self.pairs, 1)
        seen = (independent > 0) & (self.n_clusters > 1)
        effects = np.ones(len(rates))
        effects[seen] = np.maximum(self.variances[seen] / independent[seen], 1)
        by_cluster = np.maximum(self.pairs / np.maximum(self.n_clusters, 1), 1)
        effects[~seen] = np.median(effects[seen]) if seen.any() else by_cluster[~seen]
        return np.minimum(effects, np.maximum(self.pairs, 1))

    def at(self, rows: NDArray[np.int64]) -> RateEstimates:
        """Return some of the rates."""
        return RateEstimates(self.errors[rows], self.pairs[rows], self.variances[rows], self.n_clusters[rows])

    def intervals(self, confidence: float) -> list[Interval]:
        """Return an interval for each rate, 0 to 1 without pairs; see `clustered_interval`."""
        effective = self.pairs / self.design_effects
        return [
            clustered_interval(rate, n, clusters, confidence)
            for rate, n, clusters in zip(self.rates.tolist(), effective.tolist(), self.n_clusters.tolist(), strict=True)
        ]


def clustered_interval(rate: float, n_effective: float, n_clusters: float, confidence: float) -> Interval:
    """Return Wilson's interval of a rate as if from n_effective independent pairs, with Student's quantile.

    n_effective: pairs over the design effect, 0 gives 0 to 1; n_clusters: units that the design effect is known from,
    one more than the degrees of freedom. Never outside [0, 1], and of positive width if the rate is 0 or 1.

    Raises:
        InvalidInput: confidence is not strictly between 0 and 1.

    Source: Korn, Graubard, "Confidence intervals for proportions with small expected number of positive counts
    estimated from survey data", Survey Methodology 24 (1998), for the effective number; `wilson_interval`.

    >>> print(clustered_interval(0.5, 10, 10**6, 0.95))  # many clusters: Wilson's interval of 5 in 10
    0.2366 to 0.7634
    """
    check_confidence(confidence)
    if n_effective <= 0 or n_clusters < 2:
        return Interval(0.0, 1.0)
    squared = student_quantile(n_clusters, confidence) ** 2
    centre = rate + squared / (2 * n_effective)
    half_width = np.sqrt(squared * (rate * (1 - rate) / n_effective + squared / (4 * n_effective**2)))
    scale = 1 + squared / n_effective
    low, high = (centre - half_width) / scale, (centre + half_width) / scale
    # If the rate is 0 or 1, rounding could leave it outside.
    return Interval(float(max(0.0, min(low, rate))), float(min(1.0, max(high, rate))))


def corrected_residuals(errors: Values, pairs: Values, *, ends: int = 1) -> Values:
    """Return errors less the pooled rate times pairs, by 1 - the share of the pairs: [T] or [T, k], like both.

    A class that holds most of the pairs pulls the rate towards itself, so that its residual would hide how much it
    differs from the others; by 1 - share it is the residual from the rate of the others. ends: of a pair that are
    counted, 2 if the pairs of a class are those with an end in it.

    Source: Bell, McCaffrey, "Bias reduction in standard errors for linear regression with multi-stage samples", Survey
    Methodology 28 (2002).

    >>> corrected_residuals(np.array([1.0, 0.0]), np.array([3.0, 1.0])).round(2)  # 1/4 / (1/4), -1/4 / (3/4)
    array([ 1.  , -0.33])
    """
    totals = np.maximum(pairs.sum(axis=0), 1)
    shares = np.minimum(ends * pairs / totals, 1)
    residuals = errors - errors.sum(axis=0) / totals * pairs
    return np.asarray(np.divide(residuals, 1 - shares, out=np.zeros_like(residuals), where=shares < 1))


def dyadic_covariance(by_class: Values, by_pair: Values) -> Values:
    """Return the covariance of k totals over pairs of classes: [k, k] float64.

    by_class: [T, k], sum of the residuals of the pairs of classes that class takes part in, as `corrected_residuals`
    has them; by_pair: [k, k], sum over pairs of classes of the products of their residuals. Two pairs of classes are
    correlated if they share a class; this part is kept positive, as a variance must be.

    Source: Aronow, Samii, Assenova, "Cluster-robust variance estimation for dyadic data", Political Analysis 23 (2015).

    >>> dyadic_covariance(np.array([[2.0], [1.0], [1.0]]), np.array([[1.0]]))  # 4 + 1 + 1 - 1
    array([[5.]])
    """
    values, vectors = np.linalg.eigh(class_covariance(by_class) - 2 * by_pair)
    shared: Values = (vectors * np.maximum(values, 0)) @ vectors.T
    return shared + by_pair


def dyadic_variances(by_class: Values, by_pair: Values) -> Values:
    """Return the variances of k totals over pairs of classes, each by itself: [k] float64; see `dyadic_covariance`.

    by_class: [T, k]; by_pair: [k], sum over pairs of classes of their squared residuals.
    """
    every = (by_class**2).sum(axis=0)
    return np.asarray(np.maximum(every - 2 * by_pair, 0) + by_pair, dtype=np.float64)


def class_covariance(by_class: Values) -> Values:
    """Return the covariance of k totals over classes, [T, k] corrected residuals of each: [k, k] float64.

    >>> class_covariance(np.array([[1.0], [-1.0]]))
    array([[2.]])
    """
    return np.asarray(by_class.T @ by_class, dtype=np.float64)
