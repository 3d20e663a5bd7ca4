from __future__ import annotations

import numpy as np
import pytest

from retrieval.consistency import (
    CALIBRATOR_KINDS,
    cross_validate_calibrators,
    fit_best_calibrator,
    fit_scores,
    labelled,
    reliability,
)
from retrieval.errors import InvalidInput, NotEnoughEvidence


def pairs_of(rows, n_images):
    """Scores and matches of all pairs, of classes of n_images in a row."""
    first, second = np.triu_indices(len(rows), 1)
    return (rows @ rows.T)[first, second], first // n_images == second // n_images


def test_every_kind_is_compared_best_first_and_said(family) -> None:
    rows, labels = family(np.random.default_rng(0), n_classes=40, n_images=4, spread=0.3)
    comparison = cross_validate_calibrators(labelled(rows, labels), prevalence=0.05, rng=np.random.default_rng(0))
    assert {score.kind for score in comparison.scores} == set(CALIBRATOR_KINDS)
    losses = [score.log_loss for score in comparison.scores]
    assert losses == sorted(losses)
    assert comparison.best == comparison.scores[0].kind
    assert (comparison.scores[0].excess, comparison.scores[0].excess_error) == (0, 0)
    # Knowing nothing but the prevalence costs its entropy.
    assert losses[-1] < -(0.05 * np.log(0.05) + 0.95 * np.log(0.95))
    for score in comparison.scores:
        assert score.excess == pytest.approx(score.log_loss - losses[0])
        assert min(score.log_loss_error, score.brier_error, score.ece_error) > 0
        assert score.reliability.log_loss == pytest.approx(score.log_loss)
        assert score.reliability.weight.sum() == pytest.approx(1)
        assert score.reliability.ece < 0.05
    assert (comparison.n_folds, comparison.n_classes, comparison.prevalence) == (5, 40, 0.05)


def test_folds_by_hand(family) -> None:
    """Two folds of the four classes: each is judged by a calibrator fitted on the other two."""
    rows, labels = family(np.random.default_rng(1), n_classes=4, n_images=5, spread=0.5)
    comparison = cross_validate_calibrators(
        labelled(rows, labels), prevalence=0.3, rng=np.random.default_rng(2), kinds=["platt"], n_folds=2
    )
    order = np.random.default_rng(2).permutation(4)
    reports = []
    for fold in range(2):
        inside = np.isin(np.arange(20) // 5, order[fold::2])
        calibrator = fit_scores(*pairs_of(rows[~inside], 5), kind="platt", prevalence=0.3)
        scores, matches = pairs_of(rows[inside], 5)
        weights = np.where(matches, 0.3 / 20, 0.7 / 25)
        reports.append(reliability(calibrator.probability(scores), matches, weights=weights))
    (score,) = comparison.scores
    losses = [report.log_loss for report in reports]
    assert score.log_loss == pytest.approx(np.mean(losses))
    # float32 products of other tiles differ in the last digit
    assert score.log_loss_error == pytest.approx(abs(losses[0] - losses[1]) / 2, rel=1e-4)
    assert score.brier == pytest.approx(np.mean([report.brier for report in reports]))
    assert score.ece == pytest.approx(np.mean([report.ece for report in reports]))


def test_a_shape_that_is_not_logistic_is_seen(family) -> None:
    """Classes that crowd in places: two numbers cannot follow, four can."""
    rng = np.random.default_rng(3)
    rows, labels = family(rng, n_classes=40, n_images=4, dimension=16, crowding=1.5, spread=0.8)
    comparison = cross_validate_calibrators(labelled(rows, labels), prevalence=0.3, rng=rng, kinds=["platt", "beta"])
    assert comparison.best == "beta"
    assert comparison.scores[1].excess > 0


@pytest.mark.parametrize(("crowding", "spread"), [(0.0, 0.0), (1.5, 0.8)])
def test_the_kind_with_the_least_loss_on_held_out_classes_is_fitted_on_all_pairs(
    family, crowding: float, spread: float
) -> None:
    """Folds, losses and pairs are worked out here, pair by pair."""
    rows, labels = family(
        np.random.default_rng(4), n_classes=20, n_images=3, dimension=16, crowding=crowding, spread=spread
    )
    best = fit_best_calibrator(labelled(rows, labels), prevalence=0.1, rng=np.random.default_rng(0))
    order, losses = np.random.default_rng(0).permutation(20), dict.fromkeys(CALIBRATOR_KINDS, 0.0)
    for fold in range(5):
        inside = np.isin(np.arange(60) // 3, order[fold::5])
        scores, matches = pairs_of(rows[inside], 3)
        for kind in losses:
            p = fit_scores(*pairs_of(rows[~inside], 3), kind=kind, prevalence=0.1).probability(scores)
            losses[kind] -= 0.1 * np.log(p[matches]).mean() + 0.9 * np.log(1 - p[~matches]).mean()
    assert best.kind == min(losses, key=lambda kind: losses[kind])
    expected = fit_scores(*pairs_of(rows, 3), kind=best.kind, prevalence=0.1)
    at = np.linspace(-0.5, 1, 31)
    # float32 products of other tiles differ in the last digit
    np.testing.assert_allclose(best.probability(at), expected.probability(at), atol=1e-4)
    assert (best.n_positives, best.n_negatives) == (60, 60 * 59 // 2 - 60)


def test_the_same_seed_gives_the_same_comparison(family) -> None:
    rows, labels = family(np.random.default_rng(5), n_classes=12, n_images=3)
    first, second = (
        cross_validate_calibrators(labelled(rows, labels), prevalence=0.1, rng=np.random.default_rng(7), max_pairs=500)
        for _ in range(2)
    )
    assert [(s.kind, s.log_loss) for s in first.scores] == [(s.kind, s.log_loss) for s in second.scores]


def test_too_few_classes_or_unusable_wishes_are_refused(family) -> None:
    rows, labels = family(np.random.default_rng(6), n_classes=9, n_images=2)
    rng = np.random.default_rng(0)
    with pytest.raises(NotEnoughEvidence, match="at least 5 classes with two images or more and 10 classes in all"):
        cross_validate_calibrators(labelled(rows, labels), prevalence=0.1, rng=rng)
    singles = [f"{label} {row}" if row > 5 else label for row, label in enumerate(labels)]
    with pytest.raises(NotEnoughEvidence, match="found 3 and 15"):
        cross_validate_calibrators(labelled(rows, singles), prevalence=0.1, rng=rng)
    for wish in ({"prevalence": 1.0}, {"kinds": []}, {"n_folds": 1}, {"kinds": ["spline"]}, {"max_pairs": 0}):
        with pytest.raises(
            InvalidInput, match=r"prevalence in \(0, 1\)|at least one kind|n_folds|kind: expected|max_pairs"
        ):
            cross_validate_calibrators(labelled(rows, labels), **{"prevalence": 0.1, "rng": rng, "n_folds": 2, **wish})


def test_pairs_are_drawn_once_and_thinned(family) -> None:
    """A tenth of the negative pairs ranks the kinds about as well, and nothing drawn is an error, not a NaN."""
    rows, labels = family(np.random.default_rng(7), n_classes=40, n_images=4, spread=0.3)
    vectors, losses = labelled(rows, labels), []
    for max_pairs in (10**6, 1200):
        options = {"rng": np.random.default_rng(0), "max_pairs": max_pairs, "kinds": ["platt"]}
        losses.append(cross_validate_calibrators(vectors, prevalence=0.1, **options).scores[0].log_loss)
    assert losses[1] == pytest.approx(losses[0], rel=0.25)
    with pytest.raises(NotEnoughEvidence, match="pairs of both kinds"):
        cross_validate_calibrators(labelled(rows, labels), prevalence=0.1, rng=np.random.default_rng(0), max_pairs=1)
