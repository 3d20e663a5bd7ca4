from __future__ import annotations

import numpy as np
import pytest

from retrieval.consistency import labelled, operating_curves, parse_target
from retrieval.consistency.opis.utility import utility
from retrieval.consistency.thresholds.near_optimum import _of_rates, _of_utility, near_optimum
from retrieval.consistency.thresholds.reaching import reach

THRESHOLDS = np.array([0.2, 0.4, 0.6])


def achieved_by_weighted_classes(target, weights, accepted, negatives, curves, column):
    """What classes with weights achieve: [b]; accepted, negatives: [b, T], weighted by the opponent."""
    matches, positives = curves.positives_accepted[:, column], curves.positives
    if target.kind == "utility":
        of_class = utility(np.broadcast_to(matches / positives, accepted.shape), accepted / negatives, target.value)
        return (weights * of_class).sum(axis=1) / weights.sum(axis=1)
    tar, far = weights @ matches / (weights @ positives), (weights * accepted).sum(axis=1)
    return target.of_rates(tar, far / (weights * negatives).sum(axis=1))


@pytest.mark.parametrize("text", ["utility", "utility=2", "f1@0.01", "f2@0.1"])
def test_influence_is_the_change_with_the_weight_of_a_class(text: str, family) -> None:
    """Each class weighs a little more in turn, in its own terms and in those of the others."""
    rows, labels = family(np.random.default_rng(0), n_classes=12, n_images=4, dimension=8, spread=0.4)
    rows, labels = rows[:-2], labels[:-2]
    target, vectors = parse_target(text), labelled(rows, labels)
    curves = operating_curves(labelled(rows, labels), thresholds=THRESHOLDS)
    influence = (
        _of_utility(vectors, curves, target.value, exact=True)
        if target.kind == "utility"
        else _of_rates(curves, target)
    )
    codes, n_images, step = vectors.codes, vectors.n_images.astype(float), 1e-4
    weights = np.vstack([np.ones(12), np.ones(12) + step * np.eye(12)])
    negatives = n_images * ((weights @ n_images)[:, None] - weights * n_images)
    member = (codes[:, None] == np.arange(12)).astype(float)
    for column, threshold in enumerate(THRESHOLDS):
        between = member.T @ (rows @ rows.T >= threshold) @ member
        np.fill_diagonal(between, 0)
        values = achieved_by_weighted_classes(target, weights, weights @ between, negatives, curves, column)
        change = (values[1:] - values[0]) / step
        # A weighted mean of the classes does not change with all weights: only differences from the mean matter.
        assert influence[:, column] - influence[:, column].mean() == pytest.approx(change - change.mean(), abs=2e-3)


def test_the_range_holds_the_best_threshold_of_the_population(family) -> None:
    """Over 20 draws of 40 classes, with 90 % confidence: conservative, so nearly always."""
    rng = np.random.default_rng(1)
    options = {"n_images": 4, "dimension": 16, "spread": 0.3, "crowding": 0.5}
    population = family(rng, n_classes=300, **options)
    grid = np.linspace(-0.2, 1, 301)
    curves = operating_curves(labelled(*population), thresholds=grid)
    for text in ("utility", "f1@0.02"):
        target = parse_target(text)
        best, hits, widths = grid[target.achieved(curves).argmax()], 0, []
        for _ in range(20):
            vectors = labelled(*family(rng, n_classes=40, **options))
            found = near_optimum(vectors, target, reach(vectors, target), confidence=0.9)
            hits += best in found
            widths.append(found.high - found.low)
        assert hits >= 17, text
        assert np.median(widths) < 0.35, text
