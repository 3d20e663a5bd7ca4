from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retrieval.consistency import IsotonicCalibrator, fit_isotonic, fit_isotonic_scores, reliability
from retrieval.errors import InvalidInput, NotEnoughEvidence


def gaussian_pairs(rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Matches score N(1, 1), others N(-1, 1): the likelihood ratio at s is exp(2 s)."""
    matches = np.arange(n) % 2 == 0
    return (rng.normal(size=n) + np.where(matches, 1, -1)).astype(np.float32), matches


def test_pooled_violators_by_hand() -> None:
    """Others at 0 and 2, matches at 1 and 3, plus the two added: blocks of weight 1/6 each pool to 1/2 throughout."""
    scores = np.array([0, 1, 2, 3], dtype=np.float32)
    calibrator = fit_isotonic_scores(scores, np.array([False, True, False, True]), prevalence=0.5)
    np.testing.assert_allclose(calibrator.probability(scores), 0.5)


def test_laplace_ends_by_hand() -> None:
    """Three others at 0, three matches at 1: one of four pairs at either end is the added one."""
    scores = np.array([0, 0, 0, 1, 1, 1], dtype=np.float32)
    calibrator = fit_isotonic_scores(scores, scores > 0, prevalence=0.5)
    np.testing.assert_allclose(calibrator.probability([-5, 0, 0.5, 1, 5]), [0.25, 0.25, 0.5, 0.75, 0.75])


@pytest.mark.parametrize("prevalence", [0.5, 0.01])
def test_probability_meets_bayes_rule(prevalence: float) -> None:
    scores, matches = gaussian_pairs(np.random.default_rng(0), 400_000)
    calibrator = fit_isotonic_scores(scores, matches, prevalence=prevalence)
    at = np.linspace(-1.5, 1.5, 21)
    odds = np.exp(2 * at) * prevalence / (1 - prevalence)
    # Isotonic regression converges with the cube root of n.
    np.testing.assert_allclose(calibrator.probability(at), odds / (1 + odds), atol=0.03)
    assert (calibrator.n_positives, calibrator.n_negatives) == (200_000, 200_000)


@settings(deadline=None)
@given(
    pairs=st.lists(st.tuples(st.floats(-2, 2, width=32), st.booleans()), min_size=2, max_size=60).filter(
        lambda pairs: 0 < sum(match for _, match in pairs) < len(pairs)
    ),
    prevalence=st.floats(1e-4, 0.9999),
)
def test_map_rises_stays_inside_and_survives_json(pairs: list[tuple[float, bool]], prevalence: float) -> None:
    scores = np.array([score for score, _ in pairs], dtype=np.float32)
    calibrator = fit_isotonic_scores(scores, np.array([match for _, match in pairs]), prevalence=prevalence)
    probabilities = calibrator.probability(np.linspace(-3, 3, 200))
    assert (np.diff(probabilities) >= 0).all()
    assert ((probabilities > 0) & (probabilities < 1)).all()
    assert IsotonicCalibrator.from_json(json.loads(json.dumps(calibrator.to_json()))) == calibrator


def test_knots_are_bounded_and_held_out_pairs_are_calibrated(family) -> None:
    rng = np.random.default_rng(1)
    rows, labels = family(rng, n_classes=60, n_images=6, spread=0.3)
    calibrator = fit_isotonic(rows, labels, prevalence=0.3, rng=rng)
    assert len(calibrator.scores) <= 256
    assert (calibrator.n_positives, calibrator.n_negatives) == (60 * 15, 360 * 359 // 2 - 60 * 15)
    rows, labels = family(rng, n_classes=60, n_images=6, spread=0.3)
    first, second = np.triu_indices(360, 1)
    codes = np.array(labels)
    matches = codes[first] == codes[second]
    probabilities = calibrator.probability((rows @ rows.T)[first, second])
    weights = np.where(matches, 0.3 / matches.sum(), 0.7 / (~matches).sum())
    report = reliability(probabilities, matches, weights=weights)
    assert report.ece < 0.05
    assert report.brier < 0.3 * 0.7 / 2


def test_thinned_pairs_keep_the_map(family) -> None:
    rows, labels = family(np.random.default_rng(2), n_classes=60, n_images=6)
    full = fit_isotonic(rows, labels, prevalence=0.1, rng=np.random.default_rng(0))
    thin = fit_isotonic(rows, labels, prevalence=0.1, rng=np.random.default_rng(0), max_pairs=5000)
    assert thin.n_positives == full.n_positives
    assert abs(thin.n_negatives - 5000) < 300  # four standard deviations of the draw
    at = np.linspace(-0.2, 0.9, 50)
    assert np.abs(full.probability(at) - thin.probability(at)).mean() < 0.05


def test_one_kind_of_pair_or_an_impossible_prevalence_is_refused(family) -> None:
    scores = np.array([0.1, 0.2], dtype=np.float32)
    with pytest.raises(NotEnoughEvidence, match="found 2 matches, 0 others"):
        fit_isotonic_scores(scores, np.array([True, True]), prevalence=0.5)
    for prevalence in (0.0, 1.0):
        with pytest.raises(InvalidInput, match="prevalence"):
            fit_isotonic_scores(scores, np.array([True, False]), prevalence=prevalence)
    rows, labels = family(np.random.default_rng(3), n_classes=4, n_images=2)
    with pytest.raises(InvalidInput, match="max_pairs"):
        fit_isotonic(rows, labels, prevalence=0.5, rng=np.random.default_rng(0), max_pairs=0)


@pytest.mark.parametrize(
    "change",
    [
        {"kind": "platt"},
        {"scores": None},
        {"scores": [0.5, 0.1]},
        {"scores": [0.1]},
        {"probabilities": [0.9, 0.1]},
        {"probabilities": [0.1, 1.0]},
        {"scores": [], "probabilities": []},
        {"prevalence": "often"},
    ],
)
def test_broken_documents_are_refused(change: dict[str, object]) -> None:
    good = IsotonicCalibrator((0.1, 0.5), (0.2, 0.9), 0.5, 10, 10).to_json()
    with pytest.raises(InvalidInput, match="calibrator"):
        IsotonicCalibrator.from_json({**good, **change})
    with pytest.raises(InvalidInput, match="NaN"):
        IsotonicCalibrator.from_json(good).probability([float("nan")])


def test_reliability_by_hand() -> None:
    """Two bins: forecasts 0.2 and 0.4 with rate 1/2, forecast 1.0 with rate 1."""
    report = reliability(np.array([0.2, 0.4, 1.0, 1.0]), np.array([False, True, True, True]), n_bins=2)
    np.testing.assert_allclose(report.mean_probability, [0.3, 1.0])
    np.testing.assert_allclose(report.match_rate, [0.5, 1.0])
    np.testing.assert_allclose(report.weight, [0.5, 0.5])
    assert report.brier == pytest.approx((0.04 + 0.36) / 4)
    assert report.ece == pytest.approx(0.1)
    empty = reliability(np.array([0.9]), np.array([True]), weights=np.array([3.0]), n_bins=2)
    assert empty.match_rate.tolist() == [0, 1]


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
    with pytest.raises(InvalidInput):
        reliability(
            np.array(probabilities),
            np.array(matches, dtype=bool),
            weights=None if weights is None else np.array(weights),
        )
