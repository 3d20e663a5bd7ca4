"""Measure how different the error rates of groups are: the differentials used in biometrics, and tests.

Which groups are large enough to be compared is decided in `comparison`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import fdtrc, stdtr, stdtrit

from retrieval.consistency.intervals import Interval
from retrieval.consistency.subgroups.clustered import RateEstimates, Values

_N_DRAWS = 2000


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupTest:
    """One group against the others, for one rate."""

    name: str
    ratio: float  # its rate over the geometric mean of the others' rates, every group counting the same
    interval: Interval  # of the ratio
    p_value: float  # of "the ratio is 1", two-sided
    p_adjusted: float  # corrected for the number of groups, see `holm`
    differs: bool  # p_adjusted is at most 1 - confidence


@dataclass(frozen=True, slots=True, kw_only=True)
class RateDifferential:
    """How different the rates of the groups are, for one kind of error.

    ..._by_chance: the average that chance alone would give if all groups had the same rate: compare a differential with
    it. max_min_ratio, max_geometric_mean: None if a group has no error, because no ratio exists.
    """

    n_groups: int
    max_min_ratio: float | None
    max_min_ratio_by_chance: float
    max_geometric_mean: float | None
    max_geometric_mean_by_chance: float
    gini: float  # 0 for equal rates, 1 if one group has all errors
    gini_by_chance: float
    max_difference: float  # largest difference of two rates
    max_difference_by_chance: float
    p_equal: float | None  # of "all groups have the same rate"; None with too few classes for so many groups
    tests: tuple[GroupTest, ...]  # one for each group, in order of name


def max_min_ratio(rates: Values) -> float | None:
    """Return the highest rate over the lowest, [k]; None if the lowest is 0 and the highest is not.

    Source: Grother, "Face Recognition Vendor Test (FRVT) Part 8: Summarizing Demographic Differentials", NISTIR 8429
    (2022), which compares it with the next one.

    >>> max_min_ratio(np.array([0.01, 0.02, 0.04]))
    4.0
    """
    low, high = float(rates.min()), float(rates.max())
    if high == 0:
        return 1.0
    return high / low if low > 0 else None


def max_geometric_mean(rates: Values) -> float | None:
    """Return the highest rate over the geometric mean of all, [k]; None if a rate is 0 and another is not.

    Source: as `max_min_ratio`.

    >>> max_geometric_mean(np.array([0.01, 0.02, 0.04]))
    2.0
    """
    if rates.max() == 0:
        return 1.0
    return float(rates.max() / math.exp(np.log(rates).mean())) if rates.min() > 0 else None


def gini(rates: Values) -> float:
    """Return Gini's coefficient of k rates, corrected for k: 0 when equal, 1 when one group has all errors.

    n / (n - 1) * sum_ij |x_i - x_j| / (2 n^2 mean(x)); GARBE is its weighted mean over FMR and FNMR.

    Source: Howard, Laird, Sirotin, Rubin, Tipton, Vemury, "Evaluating proposed fairness models for face recognition
    algorithms", 2022 (arXiv 2203.05051).

    >>> round(gini(np.array([1.0, 2.0, 3.0])), 4)  # 3/2 * 8 / (2 * 9 * 2)
    0.3333
    """
    n, total = len(rates), float(rates.sum())
    if n < 2 or total == 0:
        return 0.0
    return float(np.abs(rates[:, None] - rates).sum() / (2 * (n - 1) * total))


def garbe(far_gini: float, frr_gini: float) -> float:
    """Return the Gini aggregation rate for biometric equitability: 0 is equitable, 1 the opposite. Source: as `gini`.

    >>> garbe(0.2, 0.4)
    0.3
    """
    return 0.5 * far_gini + 0.5 * frr_gini


def fairness_discrepancy_rate(far_difference: float, frr_difference: float) -> float:
    """Return 1 less the mean of the largest difference of two FARs and that of two FRRs: 1 is fair.

    It uses differences, not ratios: at a FAR of 1e-4 only FRR counts.

    Source: de Freitas Pereira, Marcel, "Fairness in biometrics: a figure of merit to assess biometric verification
    systems", IEEE Transactions on Biometrics, Behavior, and Identity Science, 2021.

    >>> fairness_discrepancy_rate(0.01, 0.2)
    0.895
    """
    return 1 - (0.5 * far_difference + 0.5 * frr_difference)


def holm(p_values: Sequence[float]) -> list[float]:
    """Return corrected p-values: at level a, any true hypothesis is rejected with probability at most a.

    Holm's correction holds under any dependence. That of Benjamini and Hochberg does not: here an outlying group lowers
    every other group's ratio, a negative dependence. A flag accuses one group, so one false flag in a report counts,
    not the share of false flags.

    Source: Holm, "A simple sequentially rejective multiple test procedure", Scandinavian Journal of Statistics 6
    (1979).

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    order = np.argsort(p_values, kind="stable")
    adjusted = np.empty(len(p_values))
    scaled = np.arange(len(p_values), 0, -1) * np.array(p_values)[order]
    adjusted[order] = np.maximum.accumulate(np.minimum(scaled, 1))
    return [float(value) for value in adjusted]


def compare_rates(
    names: Sequence[str], estimates: RateEstimates, covariance: Values, *, confidence: float, rng: np.random.Generator
) -> RateDifferential:
    """Return the differentials of the rates of at least two groups, those of chance alone, and the tests.

    Tests use the logarithm of the rates, half an error added, with their covariance over classes: Hotelling's F for all
    ratios, Student's t for one group. The number of classes is that of the group with the fewest.

    Source: Hotelling, "The generalization of Student's ratio", Annals of Mathematical Statistics 2 (1931).
    """
    k = len(names)
    log_rates, covariance = _log_rates(estimates, covariance)
    n_clusters = float(estimates.n_clusters.min())
    rates = estimates.rates
    equal = np.exp(
        np.log((estimates.errors.sum() + 0.5) / (estimates.pairs.sum() + 1))
        + rng.multivariate_normal(np.zeros(k), covariance, size=_N_DRAWS, method="eigh")
    )
    drawn = np.minimum(equal, 1.0)
    high = drawn.max(axis=1)
    return RateDifferential(
        n_groups=k,
        max_min_ratio=max_min_ratio(rates),
        max_min_ratio_by_chance=float((high / drawn.min(axis=1)).mean()),
        max_geometric_mean=max_geometric_mean(rates),
        max_geometric_mean_by_chance=float((high / np.exp(np.log(drawn).mean(axis=1))).mean()),
        gini=gini(rates),
        gini_by_chance=float(np.mean([gini(row) for row in drawn])),
        max_difference=float(rates.max() - rates.min()),
        max_difference_by_chance=float((high - drawn.min(axis=1)).mean()),
        p_equal=_p_equal(log_rates, covariance, n_clusters),
        tests=_group_tests(names, log_rates, covariance, n_clusters, confidence),
    )


def level_of(confidence: float) -> float:
    """Return the significance level of tests reported with intervals of this confidence, without a rounding error."""
    return round(1 - confidence, 12)


def _log_rates(estimates: RateEstimates, covariance: Values) -> tuple[Values, Values]:
    """Return the logarithms of the rates, half an error added, and their covariance, at least that of single pairs."""
    smoothed = (estimates.errors + 0.5) / (estimates.pairs + 1)
    covariance = covariance / np.outer(smoothed, smoothed)
    independent = (1 - smoothed) / (smoothed * np.maximum(estimates.pairs, 1))
    least = estimates.design_effects * independent
    covariance = covariance + np.diag(np.maximum(least - np.diag(covariance), 0))
    return np.log(smoothed), covariance


def _p_equal(log_rates: Values, covariance: Values, n_clusters: float) -> float | None:
    contrasts = np.eye(len(log_rates))[1:] - np.eye(len(log_rates))[0]
    n_ratios, free = len(contrasts), n_clusters - len(contrasts)
    if free < 1:
        return None
    ratios = contrasts @ log_rates
    statistic = float(ratios @ np.linalg.solve(contrasts @ covariance @ contrasts.T, ratios))
    return float(fdtrc(n_ratios, free, statistic * free / (n_ratios * (n_clusters - 1))))


def _group_tests(
    names: Sequence[str], log_rates: Values, covariance: Values, n_clusters: float, confidence: float
) -> tuple[GroupTest, ...]:
    k = len(names)
    contrasts = np.eye(k) - (1 - np.eye(k)) / (k - 1)
    ratios, errors = contrasts @ log_rates, np.sqrt(np.diag(contrasts @ covariance @ contrasts.T))
    free = max(n_clusters - 1, 1)
    p_values = (2 * stdtr(free, -np.abs(ratios / errors))).tolist()
    half_widths = float(stdtrit(free, (1 + confidence) / 2)) * errors
    return tuple(
        GroupTest(
            name=name,
            ratio=math.exp(ratio),
            interval=Interval(math.exp(ratio - half_width), math.exp(ratio + half_width)),
            p_value=p_value,
            p_adjusted=p_adjusted,
            differs=p_adjusted <= level_of(confidence),
        )
        for name, ratio, half_width, p_value, p_adjusted in zip(
            names, ratios.tolist(), half_widths.tolist(), p_values, holm(p_values), strict=True
        )
    )
