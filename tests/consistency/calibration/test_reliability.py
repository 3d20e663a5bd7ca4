from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import brier_score_loss, log_loss

from retrieval.consistency import reliability
from retrieval.consistency.calibration.reliability import mean_reliability
from retrieval.errors import InvalidInput


def test_reliability_by_hand() -> None:
    """Two bins: forecasts 0.2 and 0.4 with rate 1/2, forecast 1.0 with rate 1."""
    report = reliability(np.array([0.2, 0.4, 1.0, 1.0]), np.array([False, True, True, True]), n_bins=2)
    np.testing.assert_allclose(report.mean_probability, [0.3, 1.0])
    np.testing.assert_allclose(report.match_rate, [0.5, 1.0])
    np.testing.assert_allclose(report.weight, [0.5, 0.5])
    assert report.brier == pytest.approx((0.04 + 0.36) / 4)
    assert report.log_loss == pytest.approx(-(np.log(0.8) + np.log(0.4)) / 4)
    assert report.ece == pytest.approx(0.1)
    assert report.edges.tolist() == [0, 0.5, 1]
    empty = reliability(np.array([0.9]), np.array([True]), weights=np.array([3.0]), n_bins=2)
    assert empty.match_rate.tolist() == [0, 1]


def test_scores_are_those_of_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    probabilities, weights = rng.random(500), rng.random(500)
    matches = rng.random(500) < probabilities
    report = reliability(probabilities, matches, weights=weights)
    assert report.log_loss == pytest.approx(log_loss(matches, probabilities, sample_weight=weights))
    assert report.brier == pytest.approx(brier_score_loss(matches, probabilities, sample_weight=weights))


def test_what_was_called_impossible_costs_infinity() -> None:
    assert reliability(np.array([0.0]), np.array([True])).log_loss == np.inf
    assert reliability(np.array([0.0, 1.0]), np.array([False, True])).log_loss == 0
    unweighted = reliability(np.array([0.0, 1.0]), np.array([True, True]), weights=np.array([0.0, 1.0]))
    assert unweighted.log_loss == 0


def test_parts_of_equal_weight_give_the_whole() -> None:
    """The mean of halves is the reliability of all forecasts; gaps of opposite sign cancel in ECE."""
    rng = np.random.default_rng(1)
    probabilities = rng.random(400)
    matches = rng.random(400) < probabilities
    parts = [reliability(probabilities[rows], matches[rows]) for rows in (slice(0, 200), slice(200, 400))]
    whole, mean = reliability(probabilities, matches), mean_reliability(parts)
    for name in ("mean_probability", "match_rate", "weight", "brier", "ece", "log_loss"):
        np.testing.assert_allclose(getattr(mean, name), getattr(whole, name))
    assert mean.ece < (parts[0].ece + parts[1].ece) / 2


@pytest.mark.parametrize(
    ("probabilities", "matches", "weights"),
    [
        ([], [], None),
        ([0.5], [True, False], None),
        ([1.5], [True], None),
        ([0.5], [True], [0.0]),
        ([0.5], [True], [-1.0]),
    ],
)
def test_unusable_forecasts_are_refused(
    probabilities: list[float], matches: list[bool], weights: list[float] | None
) -> None:
    with pytest.raises(InvalidInput, match=r"as many probabilities as|must lie in \[0, 1\]"):
        reliability(
            np.array(probabilities),
            np.array(matches, dtype=bool),
            weights=None if weights is None else np.array(weights),
        )
