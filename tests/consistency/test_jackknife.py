from __future__ import annotations

import numpy as np
import pytest

from retrieval.consistency.intervals import Interval
from retrieval.consistency.jackknife import jackknife_error, jackknife_interval, rate_interval
from retrieval.errors import InvalidInput


def test_the_error_of_a_mean_is_the_familiar_one() -> None:
    values = np.random.default_rng(0).normal(size=20)
    without = (values.sum() - values) / 19
    assert jackknife_error(without) == pytest.approx(values.std(ddof=1) / np.sqrt(20))


def test_an_interval_of_a_proportion_stays_inside_0_and_1() -> None:
    interval = jackknife_interval(0.98, np.array([0.97, 0.975, 0.999]), 0.95, proportion=True)
    assert 0 < interval.low < 0.98 < interval.high < 1
    plain = jackknife_interval(0.98, np.array([0.97, 0.975, 0.999]), 0.95)
    assert plain.high > 1


@pytest.mark.parametrize(("estimate", "inside"), [(0.0, 0.0), (1.0, 1.0)])
def test_a_proportion_of_none_or_all_has_an_interval_of_some_width(estimate: float, inside: float) -> None:
    interval = jackknife_interval(estimate, np.full(10, estimate), 0.95, proportion=True)
    assert inside in interval
    assert interval.high - interval.low > 0.1


def test_one_class_that_brings_every_hit_does_not_blow_up_the_interval() -> None:
    interval = rate_interval(np.array([50, 0, 0, 0, 0]), np.full(5, 1000), 50, 5000, 0.95)
    assert 0 < interval.low < 0.01 < interval.high < 0.2


def test_a_rate_of_no_pairs_is_anywhere() -> None:
    nothing = np.zeros(5, dtype=np.int64)
    assert rate_interval(nothing, nothing, 0, 0, 0.95) == Interval(0.0, 1.0)


def test_a_rate_over_pairs_of_classes_is_covered_as_often_as_promised() -> None:
    """Pairs are hit where the two classes' hidden values are close: a class takes part in many pairs."""
    rng, covered, truth = np.random.default_rng(1), 0, None
    for n_classes, repeats in ((4000, 1), (30, 300)):
        for _ in range(repeats):
            values = rng.normal(size=n_classes)
            hit = (np.abs(values[:, None] - values[None, :]) < 0.3) & ~np.eye(n_classes, dtype=bool)
            ends, trials = hit.sum(axis=1), np.full(n_classes, n_classes - 1)
            total = n_classes * (n_classes - 1) // 2
            if truth is None:
                truth = hit.sum() / 2 / total
            else:
                covered += truth in rate_interval(ends, trials, int(hit.sum()) // 2, total, 0.95)
    # 300 draws: the promised 285 less three standard errors of 3.8
    assert covered >= 273


def test_what_no_interval_can_be_made_of_is_refused() -> None:
    with pytest.raises(InvalidInput, match="finite"):
        jackknife_interval(np.nan, np.array([1.0, 2.0]), 0.95)
    with pytest.raises(InvalidInput, match="confidence"):
        jackknife_interval(0.5, np.array([0.4, 0.6]), 1.0)
