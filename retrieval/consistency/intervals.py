"""Uncertainty intervals: percentiles of bootstrap replicates, and Wilson's interval of a single proportion.

The caller decides what is resampled and why. SciPy is imported inside the functions, because `Interval` is needed in
many places that compute none.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from retrieval.consistency.arguments import checked
from retrieval.errors import InvalidInput


@dataclass(frozen=True, slots=True)
class Interval:
    """A closed interval; `value in interval` includes both ends."""

    low: float
    high: float

    def __contains__(self, value: float) -> bool:
        return self.low <= value <= self.high

    def __str__(self) -> str:
        return f"{self.low:.4g} to {self.high:.4g}"


def check_confidence(confidence: float) -> None:
    """Raise InvalidInput unless the confidence lies strictly between 0 and 1."""
    if not 0 < confidence < 1:
        raise InvalidInput(f"confidence must lie strictly between 0 and 1, found {confidence}")


def normal_quantile(confidence: float) -> float:
    """Return z such that a standard normal variable lies within +-z with the given confidence.

    Raises:
        InvalidInput: confidence is not strictly between 0 and 1.
    """
    check_confidence(confidence)
    from scipy.special import ndtri

    return float(ndtri((1 + confidence) / 2))


@checked
def student_quantile(n_units: float, confidence: float) -> float:
    """Return the half-width, in standard errors, of an interval whose standard error is from n_units.

    n_units: one more than the degrees of freedom; an effective number need not be whole, and below 2 counts as 2.

    Raises:
        InvalidInput: confidence not strictly between 0 and 1.
    """
    check_confidence(confidence)
    from scipy.special import stdtrit

    return float(stdtrit(max(n_units - 1, 1.0), (1 + confidence) / 2))


def effective_number(weights: NDArray[np.float64]) -> float:
    """Return how many equal terms vary as much as terms of these weights [n]: at most n, 0 if all weights are 0.

    Source: Kish, Survey Sampling (1965).

    >>> effective_number(np.array([1.0, 1.0, 1.0])), effective_number(np.array([98.0, 1.0, 1.0])).__round__(2)
    (3.0, 1.04)
    """
    return float(effective_numbers(weights[:, None])[0])


def effective_numbers(weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the `effective_number` of each column of the weights [n, k]: [k] float64."""
    squares = (weights**2).sum(axis=0)
    totals = weights.sum(axis=0) ** 2
    return np.asarray(np.divide(totals, squares, out=np.zeros(weights.shape[1]), where=squares > 0), dtype=np.float64)


@checked
def percentile_interval(replicates: NDArray[np.float64], confidence: float) -> Interval:
    """Return the central interval that holds `confidence` of the replicates: [b] float64.

    Raises:
        InvalidInput: there is no replicate or one is NaN, or confidence is not strictly between 0 and 1.
    """
    check_confidence(confidence)
    if replicates.size == 0:
        raise InvalidInput("an interval needs at least one replicate, found none")
    if n_missing := np.count_nonzero(np.isnan(replicates)):
        raise InvalidInput(f"expected replicates that are numbers, found NaN in {n_missing} of {replicates.size}")
    low, high = np.quantile(replicates, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(float(low), float(high))


@checked
def wilson_interval(successes: int, trials: int, confidence: float = 0.95) -> Interval:
    """Return Wilson's score interval of a proportion; no trials give 0 to 1.

    Assumes independent trials. Pairs that share an image or a class are not: for rates over pairs the true interval is
    wider.

    Raises:
        InvalidInput: not 0 <= successes <= trials, or confidence is not strictly between 0 and 1.

    Source: Wilson, "Probable inference, the law of succession, and statistical inference", JASA 22 (1927).

    >>> print(wilson_interval(5, 10))
    0.2366 to 0.7634
    """
    if not 0 <= successes <= trials:
        raise InvalidInput(f"expected 0 <= successes <= trials, found {successes} successes in {trials} trials")
    z = normal_quantile(confidence)
    if trials == 0:
        return Interval(0.0, 1.0)
    rate = successes / trials
    centre = rate + z * z / (2 * trials)
    half_width = z * np.sqrt(rate * (1 - rate) / trials + z * z / (4 * trials * trials))
    scale = 1 + z * z / trials
    low, high = (centre - half_width) / scale, (centre + half_width) / scale
    # Rounding would leave a rate of 0 or 1 outside.
    return Interval(float(max(0.0, min(low, rate))), float(min(1.0, max(high, rate))))
