from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import f, t

from retrieval.consistency.subgroups.clustered import RateEstimates
from retrieval.consistency.subgroups.differentials import (
    compare_rates,
    fairness_discrepancy_rate,
    garbe,
    gini,
    holm,
    max_geometric_mean,
    max_min_ratio,
)

rates_of_groups = st.lists(st.floats(1e-6, 1), min_size=2, max_size=8).map(np.array)


def estimates(errors: list[float], pairs: float = 10_000, n_clusters: int = 50) -> RateEstimates:
    """Rates with the variance of independent pairs."""
    k = len(errors)
    rates = np.array(errors) / pairs
    return RateEstimates(
        errors=np.array(errors, dtype=float),
        pairs=np.full(k, pairs),
        variances=rates * (1 - rates) / pairs,
        n_clusters=np.full(k, n_clusters),
    )


@given(rates=rates_of_groups)
def test_differentials_by_their_definitions(rates: np.ndarray) -> None:
    n = len(rates)
    pairs = itertools.product(rates, rates)
    assert gini(rates) == pytest.approx(n / (n - 1) * sum(abs(a - b) for a, b in pairs) / (2 * n**2 * rates.mean()))
    assert max_min_ratio(rates) == pytest.approx(max(rates) / min(rates))
    assert max_geometric_mean(rates) == pytest.approx(max(rates) / np.prod(rates) ** (1 / n), rel=1e-6)


@given(rates=rates_of_groups, scale=st.floats(0.01, 1))
def test_differentials_of_ratios_do_not_depend_on_the_level_or_the_order(rates: np.ndarray, scale: float) -> None:
    for differential in (gini, max_min_ratio, max_geometric_mean):
        expected = differential(rates)
        assert differential(rates * scale) == pytest.approx(expected, abs=1e-9)
        assert differential(rates[::-1]) == pytest.approx(expected, abs=1e-9)
        assert expected is not None
        assert expected >= -1e-12


def test_equal_rates_and_rates_of_zero() -> None:
    equal, none, one = np.full(4, 0.02), np.zeros(3), np.array([0.0, 0.0, 0.3])
    assert (max_min_ratio(equal), max_geometric_mean(equal), gini(equal)) == (1, pytest.approx(1), 0)
    assert (max_min_ratio(none), max_geometric_mean(none), gini(none)) == (1, 1, 0)
    assert (max_min_ratio(one), max_geometric_mean(one), gini(one)) == (None, None, pytest.approx(1))
    assert garbe(1, 0) == 0.5
    assert fairness_discrepancy_rate(0, 0) == 1
    assert fairness_discrepancy_rate(1, 1) == 0


@given(p_values=st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_by_its_definition(p_values: list[float]) -> None:
    """The k-th smallest of m times m - k + 1, and no smaller than the ones before; at most 1."""
    ordered = sorted(p_values)
    m = len(ordered)
    expected = [max(min(1.0, (m - k) * ordered[k]) for k in range(rank + 1)) for rank in range(m)]
    adjusted = holm(p_values)
    assert sorted(adjusted) == pytest.approx(expected)
    assert all(after >= before for before, after in zip(p_values, adjusted, strict=True))


def test_two_independent_groups_by_hand() -> None:
    """One ratio: the F test of all groups is the t test of either, squared."""
    both = estimates([100, 160])
    report = compare_rates(["a", "b"], both, np.diag(both.variances), confidence=0.95, rng=np.random.default_rng(0))
    smoothed = (both.errors + 0.5) / (both.pairs + 1)
    error = np.sqrt(((1 - smoothed) / smoothed / 10_000).sum())
    statistic = np.log(smoothed[0] / smoothed[1]) / error
    assert report.p_equal == pytest.approx(f.sf(statistic**2, 1, 49), rel=0.01)
    assert report.tests[0].p_value == pytest.approx(2 * t.sf(abs(statistic), 49), rel=0.01)
    assert report.tests[0].p_value == pytest.approx(report.tests[1].p_value)
    assert report.tests[0].p_adjusted == pytest.approx(2 * report.tests[0].p_value)
    assert report.tests[1].ratio == pytest.approx(160.5 / 100.5)
    assert report.tests[1].ratio in report.tests[1].interval
    assert report.tests[1].differs
    assert report.max_min_ratio == pytest.approx(1.6)
    assert report.max_difference == pytest.approx(0.006)


def test_what_all_groups_share_does_not_hide_a_difference() -> None:
    """Classes that are hard for every group move all rates together: the difference is as sure as ever."""
    three = estimates([100, 100, 200])
    alone = np.diag(three.variances)
    together = alone + 4 * np.outer(three.rates, three.rates) * 0.01
    for covariance in (alone, together):
        report = compare_rates(["a", "b", "c"], three, covariance, confidence=0.95, rng=np.random.default_rng(0))
        assert report.p_equal is not None
        assert report.p_equal < 1e-4
        assert [test.differs for test in report.tests] == [True, True, True]


def test_chance_alone_is_what_equal_rates_show() -> None:
    """Rates drawn as uncertain as these around one value differ as much, on average, as the report says."""
    rng = np.random.default_rng(1)
    drawn = [rng.binomial(10_000, 0.01, size=5) / 10_000 for _ in range(400)]
    observed = estimates([100.0] * 5)
    report = compare_rates(list("abcde"), observed, np.diag(observed.variances), confidence=0.95, rng=rng)
    assert report.max_min_ratio_by_chance == pytest.approx(np.mean([max_min_ratio(rates) for rates in drawn]), rel=0.05)
    assert report.gini_by_chance == pytest.approx(np.mean([gini(rates) for rates in drawn]), rel=0.05)
    assert report.max_difference_by_chance == pytest.approx(np.mean([np.ptp(rates) for rates in drawn]), rel=0.05)
    assert report.p_equal == pytest.approx(1)


def test_a_group_without_errors_is_tested_all_the_same() -> None:
    lucky = estimates([0, 60, 60])
    report = compare_rates(
        ["a", "b", "c"], lucky, np.diag(lucky.variances), confidence=0.95, rng=np.random.default_rng(0)
    )
    assert report.max_min_ratio is None
    assert report.tests[0].ratio < 0.05
    assert report.p_equal is not None


def test_too_few_classes_for_a_test_of_all_groups() -> None:
    few = estimates([10, 20, 30, 40], n_clusters=3)
    report = compare_rates(list("abcd"), few, np.diag(few.variances), confidence=0.95, rng=np.random.default_rng(0))
    assert report.p_equal is None
