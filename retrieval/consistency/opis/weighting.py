"""Weights of the classes in a mean over classes, and the bootstrap interval of such a mean.

The caller decides which values are averaged.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from retrieval.consistency.arguments import checked
from retrieval.consistency.curves import Rates
from retrieval.consistency.intervals import Interval, check_confidence
from retrieval.errors import InvalidInput

Weighting: TypeAlias = Literal["equal", "images"] | Mapping[str, float]

# Bounds the memory of a bootstrap over many classes: 32 MiB a block of replicates.
_BLOCK_ENTRIES = 1 << 22


def weigh_classes(weighting: Weighting, classes: tuple[str, ...], n_images: NDArray[np.int64]) -> Rates:
    """Return the weight of each class, sum 1: [T] float64.

    weighting: see `OpisOptions`; names that are not among the classes, such as classes without a positive pair, are
    ignored.

    Raises:
        InvalidInput: an unknown word, a class without a weight, a negative or infinite weight, or all of them 0.

    >>> weigh_classes("images", ("a", "b"), np.array([1, 3]))
    array([0.25, 0.75])
    """
    if isinstance(weighting, Mapping):
        missing = [name for name in classes if name not in weighting]
        if missing:
            raise InvalidInput(f"every class needs a weight; {len(missing)} have none, the first is {missing[0]!r}")
        weights = np.array([weighting[name] for name in classes], dtype=np.float64)
    elif weighting == "equal":
        weights = np.ones(len(classes))
    elif weighting == "images":
        weights = n_images.astype(np.float64)
    else:
        raise InvalidInput(f"weighting is 'equal', 'images' or a weight for each class by name, found {weighting!r}")
    total = weights.sum()
    if not (np.isfinite(total) and total > 0 and (weights >= 0).all()):
        raise InvalidInput("weights of classes must be finite, not negative, and not all 0")
    return np.asarray(weights / total, dtype=np.float64)


@checked
def resampled_weights(weights: Rates, n_bootstrap: int, rng: np.random.Generator) -> Iterator[Rates]:
    """Yield bootstrap replicates of the weights of classes, sum 1 each, in blocks: [b, T] float64.

    Classes are drawn uniformly with replacement and keep their weights; a replicate without any weight is drawn again.

    Raises:
        InvalidInput: n_bootstrap is not positive, or there is no weight.
    """
    if n_bootstrap < 1:
        raise InvalidInput(f"expected at least one bootstrap replicate, found {n_bootstrap}")
    if weights.ndim != 1 or len(weights) == 0:
        raise InvalidInput(f"expected a weight for each of some classes, found {weights.shape}")
    n_classes = len(weights)
    block = max(1, _BLOCK_ENTRIES // n_classes)
    for done in range(0, n_bootstrap, block):
        size = min(block, n_bootstrap - done)
        drawn = np.empty((size, n_classes))
        for row in drawn:
            row[:] = _draw(weights, rng)
        yield drawn


def _draw(weights: Rates, rng: np.random.Generator) -> Rates:
    n_classes = len(weights)
    while True:
        drawn = np.bincount(rng.integers(n_classes, size=n_classes), minlength=n_classes) * weights
        total = drawn.sum()
        if total > 0:
            return np.asarray(drawn / total, dtype=np.float64)


@dataclass(frozen=True, slots=True)
class ClassMean:
    """A weighted mean over classes; p_value: two-sided, of the hypothesis that its expectation is 0."""

    value: float
    interval: Interval
    p_value: float


@checked
def mean_over_classes(
    values: Rates, weights: Rates, *, n_bootstrap: int, confidence: float, rng: np.random.Generator
) -> ClassMean:
    """Return the mean of values [k] by weights [k], positive, sum 1, with a symmetric studentised bootstrap interval.

    Values of few and unequal classes are skewed, so that percentile intervals would miss too often. The p-value agrees
    with this interval.

    Raises:
        InvalidInput: n_bootstrap is not positive, confidence is not strictly between 0 and 1, or values and weights
            differ in number.

    Source: Efron and Tibshirani, An Introduction to the Bootstrap (1993), the bootstrap-t interval; here of |t|.
    """
    check_confidence(confidence)
    if values.ndim != 1 or values.shape != weights.shape or len(values) == 0:
        raise InvalidInput(f"expected a value and a weight for each class, found {values.shape} and {weights.shape}")
    mean = float(weights @ values)
    centred = values - mean  # so that squares do not cancel
    parts = [_sizes(centred, weights, drawn) for drawn in resampled_weights(weights, n_bootstrap, rng)]
    sizes = np.concatenate(parts)
    reach = float(np.quantile(sizes, confidence))
    p_value = float((1 + np.count_nonzero(sizes >= abs(mean))) / (1 + n_bootstrap))
    return ClassMean(mean, Interval(mean - reach, mean + reach), p_value)


def differs_from_zero(values: Rates, weights: Rates, draws: Rates, confidence: float) -> bool:
    """Return whether the interval of `mean_over_classes` leaves out 0, with these draws: [b, k] weights."""
    mean = float(weights @ values)
    return abs(mean) > float(np.quantile(_sizes(values - mean, weights, draws), confidence))


def _sizes(centred: Rates, weights: Rates, draws: Rates) -> Rates:
    """Return |t| of each of the draws [b, k], in units of the mean of values whose mean is 0: [b]."""
    errors = _standard_errors(draws, weights, centred)
    ratios = np.divide(np.abs(draws @ centred), errors, out=np.zeros_like(errors), where=errors > 0)
    return np.asarray(ratios * _standard_errors(weights, weights, centred), dtype=np.float64)


def _standard_errors(drawn: Rates, weights: Rates, values: Rates) -> Rates:
    """Return standard errors [...] of the mean of values [k] by drawn [..., k], which are replicates of weights [k]."""
    per_draw = (drawn / weights).mean(axis=-1)  # weight of a single draw of a class of weight 1
    mean, own = drawn @ values, drawn * weights
    squares = own @ values**2 - 2 * mean * (own @ values) + mean**2 * own.sum(axis=-1)
    return np.asarray(np.sqrt(np.maximum(per_draw * squares, 0)), dtype=np.float64)
