from __future__ import annotations

import numpy as np
import pytest

from retrieval.consistency.curves import operating_curves
from retrieval.consistency.intervals import class_weights
from retrieval.consistency.pairs.vectors import labelled_vectors
from retrieval.consistency.thresholds.targets import parse_target
from retrieval.consistency.thresholds.threshold_bootstrap import _achieved, bootstrap_threshold_interval
from retrieval.consistency.thresholds.thresholds import choose_threshold
from retrieval.errors import InvalidInput

TARGETS = ["far=0.05", "class-far=0.05", "frr=0.3", "precision=0.2@0.02", "f1@0.02", "utility"]


@pytest.mark.parametrize("text", TARGETS)
def test_a_replicate_is_the_data_with_its_classes_repeated(text: str, family) -> None:
    """Two draws of a class become two classes that make no pairs with each other: counted pair by pair."""
    rows, labels = family(np.random.default_rng(0), n_classes=10, n_images=4, dimension=6, spread=0.4)
    rows, labels = rows[1:], labels[1:]
    vectors, target, grid = labelled_vectors(rows, labels), parse_target(text), np.linspace(-0.2, 0.9, 12)
    weights = class_weights(10, 3, np.random.default_rng(1))
    found = _achieved(vectors, target, grid, weights, 16)
    for row, drawn in enumerate(weights.astype(int)):
        origin = np.repeat(np.arange(10), drawn)
        members = [np.flatnonzero(vectors.codes == code) for code in origin]
        rates = []
        for threshold in grid:
            accepted = vectors.query @ vectors.gallery.T >= threshold
            false, negatives = np.zeros(len(origin)), np.zeros(len(origin))
            for i, one in enumerate(members):
                for j, other in enumerate(members):
                    if origin[i] != origin[j]:
                        false[i] += accepted[np.ix_(one, other)].sum()
                        negatives[i] += len(one) * len(other)
            inside = [(accepted[np.ix_(one, one)].sum() - len(one)) / 2 for one in members]
            pairs = np.array([len(one) * (len(one) - 1) / 2 for one in members])
            tar, far = np.array(inside) / pairs, false / negatives
            if text == "utility":
                total = 1 - far + tar
                rates.append(np.mean(np.where(total > 0, 2 * (1 - far) * tar / np.where(total > 0, total, 1), 0)))
            elif text.startswith("class-far"):
                rates.append(-far.mean())
            else:
                pooled = np.array([np.sum(inside) / pairs.sum()]), np.array([false.sum() / negatives.sum()])
                rates.append(target.of_rates(*pooled)[0])
        assert found[row] == pytest.approx(rates)


@pytest.mark.parametrize("text", TARGETS)
def test_it_lies_around_the_threshold_and_grows_with_the_confidence(text: str, family) -> None:
    rows, labels = family(np.random.default_rng(2), n_classes=40, n_images=4, dimension=12, spread=0.3)
    intervals = []
    for confidence in (0.5, 0.95):
        choice = choose_threshold(rows, labels, target=parse_target(text), confidence=confidence)
        rng = np.random.default_rng(3)
        intervals.append(bootstrap_threshold_interval(choice, rows, labels, rng=rng, n_bootstrap=200))
    assert intervals[1].low <= intervals[0].low <= intervals[0].high <= intervals[1].high
    assert choice.threshold in intervals[1]


def test_equal_seeds_give_equal_intervals(family) -> None:
    rows, labels = family(np.random.default_rng(4), n_classes=30, n_images=3)
    choice = choose_threshold(rows, labels, target=parse_target("far=0.02"))
    one, two = (
        bootstrap_threshold_interval(choice, rows, labels, rng=np.random.default_rng(5), n_bootstrap=50, tile=tile)
        for tile in (1024, 7)
    )
    assert (one.low, one.high) == pytest.approx((two.low, two.high), abs=1e-5)


def test_no_replicate_is_refused(family) -> None:
    rows, labels = family(np.random.default_rng(4), n_classes=30, n_images=3)
    choice = choose_threshold(rows, labels, target=parse_target("far=0.02"))
    with pytest.raises(InvalidInput, match="at least 1 replicate, found 0"):
        bootstrap_threshold_interval(choice, rows, labels, rng=np.random.default_rng(5), n_bootstrap=0)


def test_positives_only_in_some_classes(family) -> None:
    """A replicate may draw nearly no class with positives; nothing becomes NaN."""
    rows, labels = family(np.random.default_rng(6), n_classes=60, n_images=2)
    kept = [row for row in range(120) if row % 2 == 0 or row < 44]
    rows, labels = rows[kept], [labels[row] for row in kept]
    for text in ("frr=0.5", "utility"):
        target = parse_target(text)
        grid = np.linspace(-0.2, 0.9, 9)
        weights = class_weights(60, 20, np.random.default_rng(7))
        assert np.isfinite(_achieved(labelled_vectors(rows, labels), target, grid, weights, 1024)).all()
    assert operating_curves(rows, labels, thresholds=[0.5]).n_excluded == 38
