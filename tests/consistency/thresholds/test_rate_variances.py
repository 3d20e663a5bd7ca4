from __future__ import annotations

import numpy as np
import pytest

from retrieval.consistency import labelled, operating_curves
from retrieval.consistency.thresholds.rate_variances import (
    log_interval,
    predicted_interval,
    predicted_tar_interval,
    rate_variances,
    rates_holding,
    tar_evidence,
    tar_interval,
)


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
    far = counts.sum() / products.sum()
    pooled = (counts - far * products) / counts.sum()
    by_class = corrected(pooled, pairs, products / products.sum())
    assert found.pair_variance == pytest.approx(pooled @ pooled)
    touching = np.array([[code in pair for pair in pairs] for code in range(22)], dtype=float)
    shares = touching @ (products / products.sum())
    even = (by_class**2 / shares).sum() / shares.sum() * (shares @ shares)
    total = max(by_class @ by_class, even) - pooled @ pooled
    assert found.class_variance + found.pair_variance == pytest.approx(total)
    assert found.far_units == pytest.approx((by_class**2).sum() ** 2 / (by_class**4).sum())
    n_negatives = sizes * (sizes.sum() - sizes)
    weights = np.array([1 / n_negatives[i] + 1 / n_negatives[j] for i, j in pairs]) / 22
    mean_far = (weights * counts).sum()
    assert mean_far == pytest.approx(curves.mean_far[0])
    mean = weights * (counts - mean_far * products) / mean_far
    by_class = corrected(mean, pairs, weights * products)
    assert found.mean_far == pytest.approx(by_class @ by_class - mean @ mean)


def corrected(residuals: np.ndarray, pairs: list[tuple[int, int]], shares: np.ndarray) -> np.ndarray:
    """Sums over the pairs of each class, by 1 - its share of all pairs."""
    touching = np.array([[code in pair for pair in pairs] for code in range(1 + max(map(max, pairs)))], dtype=float)
    return (touching @ residuals) / (1 - touching @ shares)


def test_classes_of_one_family_count_as_one_unit(family) -> None:
    """Families of one class change nothing; pairs of families are those of all their classes, inside and across."""
    rows, labels = family(np.random.default_rng(2), n_classes=24, n_images=3, dimension=12, crowding=0.8)
    curves = operating_curves(labelled(rows, labels), thresholds=[0.4])
    plain = rate_variances(labelled(rows, labels), curves)
    assert rate_variances(labelled(rows, labels, families=labels), curves) == plain
    assert rate_variances(labelled(rows, labels, families=[""] * len(labels)), curves) == plain
    codes = np.repeat(np.arange(24), 3)
    names = [f"family {code // 4}" for code in codes]
    found = rate_variances(labelled(rows, labels, families=names), curves)
    accepted = (rows @ rows.T >= 0.4) & (codes[:, None] < codes)
    differs = codes[:, None] < codes
    far = accepted.sum() / differs.sum()
    residual = np.where(differs, accepted - far, 0.0) / accepted.sum()
    unit = codes // 4
    dyads = np.array([[residual[np.ix_(unit == f, unit == g)].sum() for g in range(6)] for f in range(6)])
    shares = np.array([[differs[np.ix_(unit == f, unit == g)].sum() for g in range(6)] for f in range(6)])
    shares = shares / differs.sum()
    by_unit = (dyads.sum(0) + dyads.sum(1) - dyads.diagonal()) / (
        1 - (shares.sum(0) + shares.sum(1) - shares.diagonal())
    )
    across = np.triu(dyads, 1)
    assert found.pair_variance == pytest.approx((across**2).sum())
    assert found.class_variance + found.pair_variance == pytest.approx((by_unit**2).sum() - (across**2).sum())
    assert found.tar.units == pytest.approx(6)


def test_precision_is_as_uncertain_as_its_replicates(family) -> None:
    """The variance of log TAR - log FAR over 200 fresh draws of the classes, which needs no theory."""
    rng = np.random.default_rng(5)
    ratios, claimed = [], []
    for _ in range(200):
        rows, labels = family(rng, n_classes=40, n_images=4, dimension=12, spread=0.3, crowding=0.5)
        curves = operating_curves(labelled(rows, labels), thresholds=[0.5])
        ratios.append(np.log(curves.pooled_tar[0] / curves.pooled_far[0]))
        claimed.append(rate_variances(labelled(rows, labels, families=labels), curves).precision)
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
    assert tar_interval(1.0, 30, 50, 0.95).low < 1 == tar_interval(1.0, 30, 50, 0.95).high
    assert tar_interval(0.0, 30, 50, 0.95).low == 0 < tar_interval(0.0, 30, 50, 0.95).high
    inside = tar_interval(0.9, 30, 50, 0.95)
    assert 0 < inside.low < 0.9 < inside.high < 1


@pytest.mark.parametrize("variance", [0.0, 0.02, 1.5])
def test_a_threshold_is_kept_where_its_interval_would_hold_the_target(variance: float) -> None:
    """The ends are those measured rates whose own interval just reaches the true one."""
    kept = rates_holding(0.001, variance, 30, 0.95)
    assert log_interval(kept.low, variance, 30, 0.95).high == pytest.approx(0.001)
    assert log_interval(kept.high, variance, 30, 0.95).low == pytest.approx(0.001)
    assert rates_holding(0.5, 1e9, 30, 0.95).high == 1


@pytest.mark.parametrize("rate", [0.0, 0.02, 0.6, 0.97, 1.0])
def test_predictions_hold_the_intervals_of_the_rate_itself(rate: float) -> None:
    known = tar_interval(rate, 30, 50, 0.95)
    for new_trials in (1e9, 30, 3):
        predicted = predicted_tar_interval(rate, (30, 50), new_trials, 0.95)
        assert 0 <= predicted.low <= known.low + 1e-6
        assert known.high - 1e-6 <= predicted.high <= 1
        assert rate in predicted


def test_few_events_may_not_come_again() -> None:
    """A FAR that rests on three independent events: as many new classes may well see none."""
    assert predicted_interval(0.01, (0.3, 0.3), 100, 0.95).low == 0
    many = predicted_interval(0.01, (0.001, 0.001), 100, 0.95)
    assert 0.009 < many.low < 0.01 < many.high < 0.012


def test_tar_of_1_is_known_from_classes_and_not_from_their_pairs() -> None:
    all_accepted = tar_evidence(np.full(40, 6.0), np.full(40, 6.0))
    assert (all_accepted.trials, all_accepted.units) == (pytest.approx(40), pytest.approx(40))
    assert tar_interval(1.0, all_accepted.trials, all_accepted.units, 0.95).low == pytest.approx(0.907, abs=1e-3)
    # With many classes that reject half of their pairs, the pairs of a class are as good as independent.
    halves = tar_evidence(np.array([3.0, 2.0, 4.0] * 100), np.full(300, 6.0))
    assert halves.trials > 0.9 * 1800


def test_one_large_class_knows_nothing_of_others() -> None:
    """79,800 pairs of one class beside 990 of 99 others: the residual by 1 - share, and as good as one class."""
    found = tar_evidence(np.array([78_000.0] + [5.0] * 99), np.array([79_800.0] + [10.0] * 99))
    assert found.units == pytest.approx(1.025, abs=1e-3)
    assert (tar_interval(0.97, found.trials, found.units, 0.95).low) == 0
