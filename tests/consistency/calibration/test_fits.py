from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit
from sklearn.isotonic import IsotonicRegression
from sklearn.linear_model import LogisticRegression

from retrieval.consistency import (
    CALIBRATOR_KINDS,
    BetaCalibrator,
    PlattCalibrator,
    VennAbersCalibrator,
    calibrator_from_json,
    fit_scores,
    labelled,
    reliability,
)
from retrieval.consistency.calibration.choice import draw_pairs
from retrieval.errors import InvalidInput, NotEnoughEvidence


def fit_vectors(rows, labels, *, kind, prevalence, rng, max_pairs=2_000_000):
    pairs = draw_pairs(labelled(rows, labels), rng=rng, max_pairs=max_pairs)
    return fit_scores(pairs.scores, pairs.matches, kind=kind, prevalence=prevalence)


def gaussian_pairs(rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Matches score N(1, 1), others N(-1, 1): the likelihood ratio at s is exp(2 s)."""
    matches = np.arange(n) % 2 == 0
    return (rng.normal(size=n) + np.where(matches, 1, -1)).astype(np.float32), matches


def test_pooled_violators_by_hand() -> None:
    """Others at 0 and 2, matches at 1 and 3, plus the two added: blocks of weight 1/6 each pool to 1/2 throughout."""
    scores = np.array([0, 1, 2, 3], dtype=np.float32)
    calibrator = fit_scores(scores, np.array([False, True, False, True]), kind="isotonic", prevalence=0.5)
    np.testing.assert_allclose(calibrator.probability(scores), 0.5)


def test_laplace_ends_by_hand() -> None:
    """Three others at 0, three matches at 1: one of four pairs at either end is the added one."""
    scores = np.array([0, 0, 0, 1, 1, 1], dtype=np.float32)
    calibrator = fit_scores(scores, scores > 0, kind="isotonic", prevalence=0.5)
    np.testing.assert_allclose(calibrator.probability([-5, 0, 0.5, 1, 5]), [0.25, 0.25, 0.5, 0.75, 0.75])


@pytest.mark.parametrize("kind", CALIBRATOR_KINDS)
@pytest.mark.parametrize("prevalence", [0.5, 0.01])
def test_probability_meets_bayes_rule(kind: str, prevalence: float) -> None:
    scores, matches = gaussian_pairs(np.random.default_rng(0), 400_000)
    calibrator = fit_scores(scores, matches, kind=kind, prevalence=prevalence)
    at = np.linspace(-1.5, 1.5, 21)
    odds = np.exp(2 * at) * prevalence / (1 - prevalence)
    # Isotonic regression converges with the cube root of n.
    tolerance = 0.005 if kind in {"platt", "beta"} else 0.03
    np.testing.assert_allclose(calibrator.probability(at), odds / (1 + odds), atol=tolerance)
    assert (calibrator.n_positives, calibrator.n_negatives) == (200_000, 200_000)


@pytest.mark.parametrize("kind", CALIBRATOR_KINDS)
@settings(deadline=None, max_examples=40)
@given(
    pairs=st.lists(st.tuples(st.floats(-2, 2, width=32), st.booleans()), min_size=2, max_size=60).filter(
        lambda pairs: 0 < sum(match for _, match in pairs) < len(pairs)
    ),
    prevalence=st.floats(1e-4, 0.9999),
)
def test_map_rises_stays_inside_and_survives_json(
    kind: str, pairs: list[tuple[float, bool]], prevalence: float
) -> None:
    scores = np.array([score for score, _ in pairs], dtype=np.float32)
    calibrator = fit_scores(scores, np.array([match for _, match in pairs]), kind=kind, prevalence=prevalence)
    probabilities = calibrator.probability(np.linspace(-3, 3, 200))
    assert (np.diff(probabilities) >= 0).all()
    assert ((probabilities >= 0) & (probabilities <= 1)).all()
    if kind in {"isotonic", "venn-abers"}:
        assert ((probabilities > 0) & (probabilities < 1)).all()
    assert calibrator_from_json(json.loads(json.dumps(calibrator.to_json()))) == calibrator


@pytest.mark.parametrize("kind", CALIBRATOR_KINDS)
def test_scores_that_point_the_wrong_way_give_the_prevalence_at_all(kind: str) -> None:
    """Matches that score lower than others: the map is flat, it never turns the ranking round."""
    scores, matches = gaussian_pairs(np.random.default_rng(1), 4000)
    probabilities = fit_scores(-scores, matches, kind=kind, prevalence=0.2).probability([-2.0, 0.0, 2.0])
    np.testing.assert_allclose(probabilities, 0.2, atol=0.01)


@pytest.mark.parametrize("kind", CALIBRATOR_KINDS)
def test_the_unit_of_the_score_does_not_matter(kind: str) -> None:
    """Cohort scores lie anywhere: shifted and stretched scores have the probabilities of the original ones."""
    scores, matches = gaussian_pairs(np.random.default_rng(2), 2000)
    at = np.linspace(-2, 2, 9)
    original = fit_scores(scores, matches, kind=kind, prevalence=0.1).probability(at)
    moved = fit_scores(64 * scores + 512, matches, kind=kind, prevalence=0.1).probability(64 * at + 512)
    np.testing.assert_allclose(moved, original, atol=1e-4)  # float32 rounds 512 + s at 3e-5


@pytest.mark.parametrize("prevalence", [0.5, 0.02])
def test_platt_and_beta_are_logistic_regressions(prevalence: float) -> None:
    """scikit-learn, without a penalty, finds the same coefficients where none is negative."""
    rng = np.random.default_rng(3)
    matches = np.arange(3000) % 10 == 0
    scores = np.where(matches, rng.normal(0.6, 0.2, 3000), rng.normal(0.1, 0.15, 3000)).astype(np.float32)
    x = np.concatenate([scores, [scores.min(), scores.max()]]).astype(np.float64)
    y = np.concatenate([matches, [True, False]])
    weights = np.where(y, prevalence / 301, (1 - prevalence) / 2701)

    def reference(features: np.ndarray, weights: np.ndarray) -> np.ndarray:
        model = LogisticRegression(C=np.inf, solver="newton-cholesky", tol=1e-10)
        model.fit(features, y, sample_weight=weights / weights.mean())
        return np.append(model.coef_[0], model.intercept_[0])

    platt = fit_scores(scores, matches, kind="platt", prevalence=prevalence)
    assert isinstance(platt, PlattCalibrator)
    np.testing.assert_allclose([platt.slope, platt.intercept], reference(x[:, None], weights), rtol=1e-4)
    beta = fit_scores(scores, matches, kind="beta", prevalence=prevalence)
    assert isinstance(beta, BetaCalibrator)
    even = reference(x[:, None], np.where(y, 0.5 / 301, 0.5 / 2701))
    np.testing.assert_allclose([beta.scale, beta.offset], even, rtol=1e-4)
    u = expit(x * even[0] + even[1])
    expected = reference(np.column_stack([np.log(u), -np.log(1 - u)]), weights)
    assert (expected[:2] > 0).all()
    np.testing.assert_allclose([beta.a, beta.b, beta.c], expected, rtol=1e-3)


def test_beta_leaves_out_a_coefficient_that_would_be_negative() -> None:
    """Above the middle, higher scores match less often: unbounded, b would be negative."""
    rng = np.random.default_rng(4)
    scores = rng.uniform(-1, 1, 6000).astype(np.float32)
    rate = np.where(scores < 0, 0.1, 0.9 - 0.6 * np.maximum(scores, 0))
    beta = fit_scores(scores, rng.random(6000) < rate, kind="beta", prevalence=0.4)
    assert isinstance(beta, BetaCalibrator)
    assert (beta.a > 0, beta.b) == (True, 0.0)


def test_many_pairs_are_binned_without_a_trace() -> None:
    """60,000 pairs in 32,768 bins have the logistic regression of the pairs themselves."""
    scores, matches = gaussian_pairs(np.random.default_rng(5), 60_000)
    calibrator = fit_scores(scores, matches, kind="platt", prevalence=0.1)
    assert isinstance(calibrator, PlattCalibrator)
    x = np.concatenate([scores, [scores.min(), scores.max()]]).astype(np.float64)
    y = np.concatenate([matches, [True, False]])
    model = LogisticRegression(C=np.inf, solver="newton-cholesky", tol=1e-10)
    model.fit(x[:, None], y, sample_weight=np.where(y, 0.2, 1.8))
    np.testing.assert_allclose([calibrator.slope, calibrator.intercept], [model.coef_[0, 0], model.intercept_[0]], 1e-5)


@pytest.mark.parametrize("prevalence", [0.5, 0.05])
def test_venn_abers_by_its_definition(prevalence: float) -> None:
    """At every score: isotonic regression of the pairs and one more, once as no match and once as a match."""
    rng = np.random.default_rng(6)
    matches = np.arange(60) % 3 == 0
    scores = np.round(rng.normal(size=60) + matches, 1).astype(np.float32)
    calibrator = fit_scores(scores, matches, kind="venn-abers", prevalence=prevalence)
    assert isinstance(calibrator, VennAbersCalibrator)
    at = np.unique(scores)
    expected = []
    for score in at:
        for match in (False, True):
            x, y = np.append(scores, score), np.append(matches, match)
            weights = np.where(y, prevalence / 21, (1 - prevalence) / 41)
            fitted = IsotonicRegression().fit(x, y.astype(float), sample_weight=weights * 60)
            expected.append(float(fitted.predict([score])[0]))
    lower, upper = np.array(expected).reshape(-1, 2).T
    for found, reference in zip(calibrator.interval(at), (lower, upper), strict=True):
        np.testing.assert_allclose(found, reference, atol=1e-6)
    np.testing.assert_allclose(calibrator.probability(at), upper / (1 - lower + upper), atol=1e-6)


def test_venn_abers_is_wide_where_pairs_are_few() -> None:
    scores, matches = gaussian_pairs(np.random.default_rng(7), 20_000)
    widths = []
    for n in (100, 20_000):
        calibrator = fit_scores(scores[:n], matches[:n], kind="venn-abers", prevalence=0.5)
        assert isinstance(calibrator, VennAbersCalibrator)
        assert len(calibrator.scores) <= 256
        widths.append(calibrator.width([0.0, 3.5]))
    assert (widths[0] > 5 * widths[1]).all()
    assert widths[1][1] > 2 * widths[1][0], "the end has fewer pairs than the middle"


def test_knots_are_bounded_and_held_out_pairs_are_calibrated(family) -> None:
    rng = np.random.default_rng(1)
    rows, labels = family(rng, n_classes=60, n_images=6, spread=0.3)
    calibrator = fit_vectors(rows, labels, kind="isotonic", prevalence=0.3, rng=rng)
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
    full = fit_vectors(rows, labels, kind="isotonic", prevalence=0.1, rng=np.random.default_rng(0))
    thin = fit_vectors(rows, labels, kind="isotonic", prevalence=0.1, rng=np.random.default_rng(0), max_pairs=5000)
    assert thin.n_positives == full.n_positives
    assert abs(thin.n_negatives - 5000) < 300  # four standard deviations of the draw
    at = np.linspace(-0.2, 0.9, 50)
    assert np.abs(full.probability(at) - thin.probability(at)).mean() < 0.05


def test_one_kind_of_pair_or_an_impossible_prevalence_is_refused(family) -> None:
    scores = np.array([0.1, 0.2], dtype=np.float32)
    with pytest.raises(NotEnoughEvidence, match="found 2 matches, 0 others"):
        fit_scores(scores, np.array([True, True]), kind="isotonic", prevalence=0.5)
    for prevalence in (0.0, 1.0):
        with pytest.raises(InvalidInput, match="prevalence"):
            fit_scores(scores, np.array([True, False]), kind="isotonic", prevalence=prevalence)
    with pytest.raises(InvalidInput, match="kind: expected one of platt, beta, isotonic, venn-abers, found 'spline'"):
        fit_scores(scores, np.array([True, False]), kind="spline", prevalence=0.5)
    with pytest.raises(InvalidInput, match="1 of them not finite"):
        fit_scores(np.array([0, np.nan], dtype=np.float32), np.array([True, False]), kind="platt", prevalence=0.5)
    with pytest.raises(InvalidInput, match="found 2 scores, 0 of them not finite, and 1 matches"):
        fit_scores(scores, np.array([True]), kind="platt", prevalence=0.5)
    rows, labels = family(np.random.default_rng(3), n_classes=4, n_images=2)
    with pytest.raises(InvalidInput, match="max_pairs"):
        fit_vectors(rows, labels, kind="isotonic", prevalence=0.5, rng=np.random.default_rng(0), max_pairs=0)


def test_drawn_pairs_are_all_pairs_where_they_fit(family) -> None:
    rows, labels = family(np.random.default_rng(8), n_classes=5, n_images=3)
    vectors = labelled(rows, labels)
    pairs = draw_pairs(vectors, rng=np.random.default_rng(0), max_pairs=100)
    assert (len(pairs.scores), np.count_nonzero(pairs.matches)) == (15 * 14 // 2, 15)
    weights = pairs.weights(0.2)
    assert weights.sum() == pytest.approx(1)
    assert weights[pairs.matches].sum() == pytest.approx(0.2)
