from __future__ import annotations

import numpy as np
import pytest

from retrieval.consistency import labelled, operating_curves
from retrieval.consistency.thresholds.rate_variances import log_interval, logit_interval, rate_variances


def test_variances_agree_with_sums_over_pairs_of_class_pairs(family) -> None:
    """Every two class pairs that share a class contribute the product of their residuals; uneven classes."""
    rows, labels = family(np.random.default_rng(2), n_classes=22, n_images=4, dimension=16, spread=0.3, crowding=1.0)
    sizes = np.array([3] * 18 + [2, 2, 1, 4])
    kept = [4 * code + image for code, size in enumerate(sizes) for image in range(size)]
    rows, labels = rows[kept], [labels[row] for row in kept]
    threshold = 0.45
    vectors, curves = labelled(rows, labels), operating_curves(labelled(rows, labels), thresholds=[threshold])
    found = rate_variances(vectors, curves)
    codes = np.repeat(np.arange(22), sizes)
    accepted = rows @ rows.T >= threshold
    pairs = [(i, j) for i in range(22) for j in range(i + 1, 22)]
    counts = np.array([accepted[np.ix_(codes == i, codes == j)].sum() for i, j in pairs], dtype=float)
    products = np.array([sizes[i] * sizes[j] for i, j in pairs])
    shared = np.array([[len({*one, *other}) < 4 for other in pairs] for one in pairs])
    far = counts.sum() / products.sum()
    pooled = (counts - far * products) / counts.sum()
    assert found.class_variance + found.pair_variance == pytest.approx(pooled @ shared @ pooled)
    assert found.pair_variance == pytest.approx(pooled @ pooled)
    n_negatives = sizes * (sizes.sum() - sizes)
    weights = np.array([1 / n_negatives[i] + 1 / n_negatives[j] for i, j in pairs]) / 22
    mean_far = (weights * counts).sum()
    assert mean_far == pytest.approx(curves.mean_far[0])
    mean = weights * (counts - mean_far * products) / mean_far
    assert found.mean_far == pytest.approx(mean @ shared @ mean)


def test_precision_is_as_uncertain_as_its_replicates(family) -> None:
    """The variance of log TAR - log FAR over 200 fresh draws of the classes, which needs no theory."""
    rng = np.random.default_rng(5)
    ratios, claimed = [], []
    for _ in range(200):
        rows, labels = family(rng, n_classes=40, n_images=4, dimension=12, spread=0.3, crowding=0.5)
        curves = operating_curves(labelled(rows, labels), thresholds=[0.5])
        ratios.append(np.log(curves.pooled_tar[0] / curves.pooled_far[0]))
        claimed.append(rate_variances(labelled(rows, labels), curves).precision)
    assert np.mean(claimed) == pytest.approx(np.var(ratios), rel=0.3)  # 200 draws know a variance to 10 %


def test_equal_classes_have_equal_variances_of_both_fars(family) -> None:
    rows, labels = family(np.random.default_rng(1), n_classes=30, n_images=3, dimension=12, crowding=0.8)
    curves = operating_curves(labelled(rows, labels), thresholds=[0.4])
    found = rate_variances(labelled(rows, labels), curves)
    assert found.mean_far == pytest.approx(found.class_variance + found.pair_variance)


def test_intervals_hold_their_rate_and_stay_between_0_and_1() -> None:
    assert log_interval(0.01, 0.0, 50, 0.95).low == log_interval(0.01, 0.0, 50, 0.95).high == 0.01
    wide = log_interval(0.5, 4.0, 50, 0.95)
    assert 0 < wide.low < 0.5 < wide.high == 1
    assert logit_interval(1.0, 0.5, 50, 0.95).high == 1
    assert logit_interval(0.0, 0.5, 50, 0.95).low == 0
    inside = logit_interval(0.9, 0.5, 50, 0.95)
    assert 0 < inside.low < 0.9 < inside.high < 1
