from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import binomtest

from retrieval.consistency import Interval, wilson_interval
from retrieval.consistency.intervals import percentile_interval
from retrieval.errors import InvalidInput


@pytest.mark.parametrize(("successes", "trials"), [(0, 7), (7, 7), (3, 1000), (50, 99)])
def test_wilson_agrees_with_scipy(successes: int, trials: int) -> None:
    expected = binomtest(successes, trials).proportion_ci(0.9, method="wilson")
    found = wilson_interval(successes, trials, 0.9)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))


@pytest.mark.parametrize("trials", range(1, 60))
def test_rates_of_0_and_1_lie_in_their_interval(trials: int) -> None:
    assert 0.0 in wilson_interval(0, trials)
    assert 1.0 in wilson_interval(trials, trials)


def test_no_trials_say_nothing_and_bad_confidence_is_refused() -> None:
    assert wilson_interval(0, 0) == Interval(0, 1)
    with pytest.raises(InvalidInput, match="confidence"):
        wilson_interval(1, 2, 1.0)
    with pytest.raises(InvalidInput, match="at least one replicate"):
        percentile_interval(np.zeros(0), 0.9)
    with pytest.raises(InvalidInput, match=r"strictly between 0 and 1, found 1\.0"):
        percentile_interval(np.zeros(3), 1.0)


def test_percentiles_hold_the_central_share_and_both_ends() -> None:
    interval = percentile_interval(np.arange(101.0), 0.9)
    assert (interval.low, interval.high) == pytest.approx((5, 95))
    assert interval.low in interval
    assert interval.high in interval
    assert 4.9 not in interval
