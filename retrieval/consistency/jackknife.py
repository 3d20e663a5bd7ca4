"""The uncertainty of a figure, from its values without each class (or each image) in turn.

For a figure over *pairs* of classes, leaving out a class removes every pair with an end in it, which accounts for the
many terms that a class takes part in, without random numbers. The caller decides which units vary.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from retrieval.consistency.intervals import Interval, check_confidence, student_quantile, wilson_interval
from retrieval.errors import InvalidInput


def jackknife_error(replicates: NDArray[np.float64]) -> float:
    """Return the standard error of a figure from its values without each of n units: [n] float64, n >= 2.

    Source: Tukey, "Bias and confidence in not quite large samples", Annals of Mathematical Statistics 29 (1958).

    >>> jackknife_error(np.array([2.0, 3.0, 4.0]))  # sqrt(2 / 3 * ((2 - 3)^2 + 0 + (4 - 3)^2))
    1.1547
    """
    n = len(replicates)
    return float(np.sqrt((n - 1) / n * np.square(replicates - replicates.mean()).sum()))


def jackknife_interval(
    estimate: float, replicates: NDArray[np.float64], confidence: float, *, proportion: bool = False
) -> Interval:
    """Return the interval of a figure: the estimate plus and minus Student's quantile times the jackknife's error.

    proportion: the figure lies in [0, 1] and the interval is made in its logit, so that it stays there; a figure of
    exactly 0 or 1 gets Wilson's interval with the units as trials, which is wide, in place of one without width.

    Raises:
        InvalidInput: confidence not strictly between 0 and 1, or a value that is not finite.
    """
    check_confidence(confidence)
    if not (math.isfinite(estimate) and np.isfinite(replicates).all()):
        raise InvalidInput(f"an interval needs finite values, found an estimate of {estimate} and its replicates")
    quantile = student_quantile(len(replicates), confidence)
    if not proportion:
        half_width = quantile * jackknife_error(replicates)
        return Interval(estimate - half_width, estimate + half_width)
    if estimate <= 0 or estimate >= 1:
        width = wilson_interval(0, len(replicates), confidence).high
        return Interval(0.0, width) if estimate <= 0 else Interval(1 - width, 1.0)
    from scipy.special import expit, logit

    # The error is converted to the logit: the logits themselves would be infinite if one unit brings all hits.
    half_width = quantile * jackknife_error(replicates) / (estimate * (1 - estimate))
    return Interval(float(expit(logit(estimate) - half_width)), float(expit(logit(estimate) + half_width)))


def rate_interval(
    hits: NDArray[np.int64], trials: NDArray[np.int64], total_hits: int, total_trials: int, confidence: float
) -> Interval:
    """Return the interval of total_hits / total_trials over the draw of classes.

    hits, trials: [T] int64, what the totals lose with each class; a pair across classes counts at both its ends. No
    trials at all give 0 to 1.

    Raises:
        InvalidInput: see `jackknife_interval`.

    >>> # without each 5, 4, 3 of 20: error 0.0577; logit(0.2) -+ 4.303 * 0.0577 / 0.16
    >>> print(rate_interval(np.array([1, 2, 3]), np.array([10, 10, 10]), 6, 30, 0.95))
    0.05026 to 0.5415
    """
    left = total_trials - trials
    usable = left > 0
    if total_trials == 0 or np.count_nonzero(usable) < 2:
        return Interval(0.0, 1.0)
    replicates = (total_hits - hits[usable]) / left[usable]
    return jackknife_interval(total_hits / total_trials, replicates, confidence, proportion=True)
