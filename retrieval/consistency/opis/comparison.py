"""A paired test whether one model, or one score, is more consistent than another on the same images and classes.

It compares the debiased OPIS that `measure` computes.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from retrieval.consistency.arguments import checked
from retrieval.consistency.intervals import Interval
from retrieval.consistency.opis.debiased import MIN_CLASSES, DebiasedShares
from retrieval.consistency.opis.measure import OpisResult, consistency_report
from retrieval.consistency.opis.noise import MIN_IMAGES_FOR_NOISE
from retrieval.consistency.opis.options import OpisOptions
from retrieval.consistency.opis.weighting import differs_from_zero, mean_over_classes, resampled_weights
from retrieval.consistency.pairs.vectors import LabelledVectors, check_same_images
from retrieval.errors import InvalidInput, NotEnoughEvidence


@dataclass(frozen=True, slots=True, kw_only=True)
class OpisComparison:
    """Two models or scores on the same images; the intervals have the stated confidence."""

    first: OpisResult
    second: OpisResult
    difference: float  # debiased OPIS of the first less that of the second: below 0 if the first is more consistent
    difference_interval: Interval
    ratio: float | None  # first over second; None if the second may be 0
    ratio_interval: Interval | None
    p_value: float  # two-sided, of the hypothesis that the true difference is 0
    n_classes: int  # with four images
    confidence: float

    def __str__(self) -> str:
        sure = f"{100 * self.confidence:g} % interval"
        if 0 in self.difference_interval:
            verdict = "no difference is shown"
        else:
            verdict = f"the {'first' if self.difference < 0 else 'second'} is more consistent"
        ratio = "" if self.ratio is None else f", ratio {self.ratio:.3g} ({self.ratio_interval})"
        return (
            f"debiased OPIS {self.first.debiased:.3g} and {self.second.debiased:.3g}, difference {self.difference:.3g} "
            f"({sure} {self.difference_interval}; p {self.p_value:.2g}){ratio}: {verdict}; over {self.n_classes} "
            f"classes, pooled FAR {self.first.far_low:.3g} to {self.first.far_high:.3g}, {self.first.axis} axis"
        )


@checked
def compare_consistency(
    first: LabelledVectors,
    second: LabelledVectors,
    options: OpisOptions = OpisOptions(axis="log_far", n_bootstrap=2000),
    *,
    rng: np.random.Generator,
) -> OpisComparison:
    """Return how the debiased OPIS of two models or scores of the same images differs, with a paired test over classes.

    The band is the same pooled FAR for both, at each one's own thresholds. On the axis "distance" it would be wider for
    one than for the other: use that for two versions of one model at most. See `compare_results` for the test.

    Cost: twice that of `consistency_report`.

    Raises:
        InvalidInput, InvalidEmbeddings: see `consistency_report`; also two that are not of the same images and classes.
        NotEnoughEvidence: fewer than 10 classes with four images; or see `consistency_report`.

    >>> from retrieval.consistency import labelled
    >>> draw = np.random.default_rng(0)
    >>> rows = draw.normal(size=(60, 8)).astype(np.float32)
    >>> rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    >>> vectors = labelled(rows, [str(row % 12) for row in range(60)])
    >>> same = compare_consistency(vectors, vectors, rng=draw)
    >>> same.difference == 0 and same.p_value == 1
    True
    """
    check_same_images(first, second)
    results = [consistency_report(vectors, options, rng=rng) for vectors in (first, second)]
    return compare_results(results[0], results[1], n_bootstrap=options.n_bootstrap, rng=rng)


@checked
def compare_results(
    first: OpisResult, second: OpisResult, *, n_bootstrap: int, rng: np.random.Generator
) -> OpisComparison:
    """Return the comparison of two results of `consistency_report` on the same images and classes.

    Every replicate draws the same classes for both. The interval and the p-value are those of a symmetric studentised
    bootstrap of the mean over classes of their differences in share; the interval of the ratio holds the ratios that
    the same test does not reject, so that it holds 1 where no difference is shown (with other draws).

    Raises:
        InvalidInput: the results counted different classes.
        NotEnoughEvidence: fewer than 10 classes with four images.

    Source: see `mean_over_classes`.
    """
    first_shares, second_shares = first.shares, second.shares
    if first_shares is None or second_shares is None or first_shares.method != "pairs":
        raise NotEnoughEvidence(
            f"a comparison takes {MIN_CLASSES} classes of at least {MIN_IMAGES_FOR_NOISE} images; add images per class"
        )
    if not np.array_equal(first_shares.rows, second_shares.rows):
        raise InvalidInput("expected two results on the same images and classes; these counted different classes")
    weights = first_shares.weights
    apart = first_shares.shares - second_shares.shares
    difference = mean_over_classes(apart, weights, n_bootstrap=n_bootstrap, confidence=first.confidence, rng=rng)
    ratio_interval = _ratio_interval(first_shares, second_shares, n_bootstrap, first.confidence, rng)
    return OpisComparison(
        first=first,
        second=second,
        difference=difference.value,
        difference_interval=difference.interval,
        ratio=first_shares.mean / second_shares.mean if ratio_interval else None,
        ratio_interval=ratio_interval,
        p_value=difference.p_value,
        n_classes=len(apart),
        confidence=first.confidence,
    )


def _ratio_interval(
    first: DebiasedShares, second: DebiasedShares, n_bootstrap: int, confidence: float, rng: np.random.Generator
) -> Interval | None:
    """Return the interval of the ratio of both means; None if too many replicates of the second are 0 or less.

    A ratio is inside if the mean of first - ratio * second is not significantly different from 0, by a symmetric
    studentised bootstrap of the same draws for every ratio.

    Source: Fieller, "Some problems in interval estimation", JRSS B 16 (1954).
    """
    weights = first.weights
    draws = np.concatenate(list(resampled_weights(weights, n_bootstrap, rng)))
    replicates = draws @ second.shares
    if np.mean(replicates <= 0) >= (1 - confidence) / 2 or second.mean <= 0:
        return None

    def possible(ratio: float) -> bool:
        return not differs_from_zero(first.shares - ratio * second.shares, weights, draws, confidence)

    estimate = first.mean / second.mean
    step = max(abs(estimate), float(np.std(draws @ first.shares)) / second.mean)
    return Interval(_edge(possible, estimate, -step), _edge(possible, estimate, step))


def _edge(possible: Callable[[float], bool], inside: float, step: float) -> float:
    """Return the last possible value from inside on, in the direction of the step; infinite if there is no end."""
    for _ in range(12):
        if not possible(inside + step):
            break
        inside, step = inside + step, 2 * step
    else:
        return math.copysign(math.inf, step)
    outside = inside + step
    for _ in range(30):
        middle = (inside + outside) / 2
        inside, outside = (middle, outside) if possible(middle) else (inside, middle)
    return outside
