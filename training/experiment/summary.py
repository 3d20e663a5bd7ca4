"""Summarises arms over seeds: means with intervals, and differences between arms, paired by seed and by class.

Decides how seeds and classes are combined; `report.py` and `plots.py` present the result.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from retrieval.consistency import Interval, mean_over_classes, student_quantile
from training.experiment.figures import FIGURES, Measured
from training.experiment.plan import Arm

CONFIDENCE = 0.95
MIN_SEEDS = 3
_N_BOOTSTRAP = 2000

Results = Mapping[str, Mapping[int, Measured]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """A figure over seeds. interval: 95 %, Student's t over seeds, None with fewer than 3 seeds; values: by seed."""

    mean: float
    interval: Interval | None
    values: Mapping[int, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """The arm's figure minus that of the other arm, over the seeds that both have.

    interval, p_value: Student's t over the differences of the seeds, two-sided, None with fewer than 3 seeds; they
    generalise to new seeds. relative, relative_interval: difference in units of the other arm's figure, seed by seed;
    for OPIS only, None if one of these figures may be 0. class_p_value: two-sided, over the draw of classes, for OPIS
    on the log-FAR axis only; it generalises to new test classes with the same trained models.
    """

    mean: float
    interval: Interval | None
    p_value: float | None
    relative: float | None
    relative_interval: Interval | None
    class_p_value: float | None
    n_seeds: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ArmSummary:
    """One arm over its seeds. figures: by name; differences: from the arm `against`; missing: reasons, by name."""

    name: str
    against: str | None
    n_seeds: int
    figures: Mapping[str, Estimate]
    differences: Mapping[str, Difference]
    missing: Mapping[str, str]


def summarise(arms: Sequence[Arm], results: Results) -> list[ArmSummary]:
    """Summarise each arm that has a result, in order. results: arm -> seed -> figures."""
    return [
        ArmSummary(
            name=arm.name,
            against=arm.against,
            n_seeds=len(results[arm.name]),
            figures=_estimates(results[arm.name]),
            differences=_differences(results[arm.name], results.get(arm.against or "", {})),
            missing={name: reason for found in results[arm.name].values() for name, reason in found.missing.items()},
        )
        for arm in arms
        if results.get(arm.name)
    ]


def over_seeds(values: Sequence[float]) -> tuple[float, Interval | None]:
    """Compute the mean of values, and its interval by Student's t if there are 3 values or more.

    >>> over_seeds([1.0, 2.0, 3.0])  # 2 -+ 4.303 / sqrt(3)
    (2.0, Interval(low=-0.484..., high=4.484...))
    """
    mean = float(np.mean(values))
    if len(values) < MIN_SEEDS:
        return mean, None
    half_width = student_quantile(len(values), CONFIDENCE) * float(np.std(values, ddof=1)) / math.sqrt(len(values))
    return mean, Interval(mean - half_width, mean + half_width)


def combine_p_values(differences: Sequence[float], p_values: Sequence[float]) -> float:
    """Combine the two-sided p-values of single seeds to one that is valid for any dependence between the seeds.

    Each p-value is made one-sided, in the direction of the mean difference. Twice their mean is a valid p-value for any
    dependence; another factor of 2 accounts for the choice of the direction by the data.

    Source: Vovk, Wang, "Combining p-values via averaging", Biometrika 107 (2020).

    >>> combine_p_values([-1.0, -2.0], [0.02, 0.04])  # one-sided 0.01 and 0.02; 4 times their mean
    0.06
    """
    down = np.mean(differences) < 0
    one_sided = [
        p / 2 if (difference < 0) == down else 1 - p / 2 for difference, p in zip(differences, p_values, strict=True)
    ]
    return min(1.0, 4 * float(np.mean(one_sided)))


def _estimates(of_seeds: Mapping[int, Measured]) -> dict[str, Estimate]:
    estimates = {}
    for name in FIGURES:
        values = {
            seed: value for seed, found in of_seeds.items() if (value := getattr(found.figures, name)) is not None
        }
        if values:
            mean, interval = over_seeds(list(values.values()))
            estimates[name] = Estimate(mean=mean, interval=interval, values=values)
    return estimates


def _differences(own: Mapping[int, Measured], other: Mapping[int, Measured]) -> dict[str, Difference]:
    differences = {}
    for name in FIGURES:
        pairs = {
            seed: (first, second)
            for seed in own
            if seed in other
            and (first := getattr(own[seed].figures, name)) is not None
            and (second := getattr(other[seed].figures, name)) is not None
        }
        if pairs:
            by_class = [_by_class(own[seed], other[seed], name) for seed in pairs]
            divisible = all(name in other[seed].above_zero for seed in pairs)
            differences[name] = _difference(list(pairs.values()), [found for found in by_class if found], divisible)
    return differences


def _difference(
    pairs: Sequence[tuple[float, float]], by_class: Sequence[tuple[float, float]], divisible: bool
) -> Difference:
    apart = [first - second for first, second in pairs]
    mean, interval = over_seeds(apart)
    relative = over_seeds([first / second - 1 for first, second in pairs]) if divisible else (None, None)
    return Difference(
        mean=mean,
        interval=interval,
        p_value=_paired_p_value(apart),
        relative=relative[0],
        relative_interval=relative[1],
        class_p_value=combine_p_values(*zip(*by_class, strict=True)) if by_class else None,
        n_seeds=len(pairs),
    )


def _paired_p_value(apart: Sequence[float]) -> float | None:
    if len(apart) < MIN_SEEDS:
        return None
    if np.ptp(apart) == 0:  # without variance there is no test, except for equal arms
        return 1.0 if apart[0] == 0 else None
    return float(stats.ttest_1samp(apart, 0.0).pvalue)


def _by_class(own: Measured, other: Measured, name: str) -> tuple[float, float] | None:
    """Compute the difference of debiased OPIS and its p-value over the draw of classes, like `compare_consistency`."""
    first, second = own.shares.get(name), other.shares.get(name)
    if first is None or second is None:
        return None
    if own.classes != other.classes or not np.array_equal(first.rows, second.rows):
        return None
    found = mean_over_classes(
        first.shares - second.shares,
        first.weights,
        n_bootstrap=_N_BOOTSTRAP,
        confidence=CONFIDENCE,
        rng=np.random.default_rng(0),
    )
    return found.value, found.p_value
