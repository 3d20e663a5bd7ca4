"""Rates of classes and of groups in rounds of searches, against loops over every meeting of a query and an item."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from retrieval.consistency import class_rates, compare_groups, operating_curves, wilson_interval
from retrieval.consistency.pairs import tiles
from retrieval.consistency.subgroups.clustered import dyadic_covariance, dyadic_variances
from retrieval.consistency.subgroups.counts import count_groups
from retrieval.consistency.subgroups.estimates import class_estimates, false_accept_rates, false_reject_rates
from tests.consistency.searches import meetings, searches

N_CLASSES, THRESHOLD = 7, 0.4


@pytest.fixture
def drawn(family):
    """Rounds of classes of 1 to 6 images in mixed order, the code and the group of each image."""
    rng = np.random.default_rng(0)
    rows, labels = family(rng, n_classes=N_CLASSES, n_images=6, dimension=6)
    kept = rng.permutation([row for row in range(len(rows)) if row % 6 <= row // 6])
    names = [labels[row] for row in kept]
    groups = rng.choice(["a", "b", "c"], size=len(kept)).astype(object)
    vectors = searches(rows[kept], names, n_rounds=3)
    return vectors, groups, np.array([vectors.classes.index(name) for name in names])


def loops(vectors, groups, codes):
    """Meetings and accepted ones by (lower class, higher class, cell), one by one."""
    names = sorted(set(groups))
    cells = {cell: k for k, cell in enumerate(itertools.combinations_with_replacement(range(len(names)), 2))}
    shape = (N_CLASSES, N_CLASSES, len(cells))
    pairs, passed = np.zeros(shape), np.zeros(shape)
    for met in meetings(vectors):
        g, h = sorted((names.index(groups[met.query]), names.index(groups[met.item])))
        low, high = sorted((codes[met.query], codes[met.item]))
        pairs[low, high, cells[g, h]] += 1
        passed[low, high, cells[g, h]] += met.score >= THRESHOLD
    return pairs, passed, np.array(list(cells))


@pytest.mark.parametrize("tile", [4, 1024])
def test_counts_are_those_of_loops(drawn, tile: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiles, "TILE", tile)
    pairs, passed, cells = loops(*drawn)
    vectors, groups, codes = drawn
    counts = count_groups(vectors, groups, THRESHOLD)
    own = np.arange(N_CLASSES)
    np.testing.assert_array_equal(counts.cells, cells)
    np.testing.assert_array_equal(counts.n_images.sum(axis=1), np.bincount(codes))
    np.testing.assert_array_equal(counts.positives, pairs[own, own])
    np.testing.assert_array_equal(counts.positives_accepted, passed[own, own])
    found = np.zeros_like(passed)
    negatives = counts.negatives_accepted
    found[negatives.first, negatives.second, negatives.cell] = negatives.accepted
    passed[own, own] = 0
    np.testing.assert_array_equal(found, passed)


def test_false_accept_rates_of_groups_and_their_covariance_are_those_of_loops(drawn) -> None:
    vectors, groups, _ = drawn
    pairs, passed, _ = loops(*drawn)
    own = np.arange(N_CLASSES)
    pairs[own, own] = passed[own, own] = 0
    for chosen in (np.arange(6), np.array([0, 3, 5]), np.array([4])):
        estimates, covariance = false_accept_rates(count_groups(vectors, groups, THRESHOLD), chosen)
        n, a = pairs[..., chosen], passed[..., chosen]
        np.testing.assert_array_equal(estimates.pairs, n.sum(axis=(0, 1)))
        np.testing.assert_array_equal(estimates.errors, a.sum(axis=(0, 1)))
        residuals = a - estimates.rates * n
        pairs_of_class = n.sum(axis=0) + n.sum(axis=1)
        by_class = (residuals.sum(axis=0) + residuals.sum(axis=1)) / (1 - pairs_of_class / estimates.pairs)
        by_pair = np.einsum("ijc,ijd->cd", residuals, residuals)
        scale = np.outer(estimates.pairs, estimates.pairs)
        np.testing.assert_allclose(covariance, dyadic_covariance(by_class, by_pair) / scale, atol=1e-12)
        variances = dyadic_variances(by_class, np.diag(by_pair)) / estimates.pairs**2
        np.testing.assert_allclose(estimates.variances, variances, atol=1e-12)


@pytest.mark.parametrize("frr_pairs", ["within", "touching"])
def test_false_reject_rates_of_groups_are_those_of_loops(drawn, frr_pairs) -> None:
    vectors, groups, codes = drawn
    errors, pairs = np.zeros((N_CLASSES, 3)), np.zeros((N_CLASSES, 3))
    for met in meetings(vectors):
        for number, name in enumerate("abc"):
            ends = [groups[met.query] == name, groups[met.item] == name]
            if codes[met.query] == codes[met.item] and (all(ends) if frr_pairs == "within" else any(ends)):
                pairs[codes[met.query], number] += 1
                errors[codes[met.query], number] += met.score < THRESHOLD
    estimates, covariance = false_reject_rates(count_groups(vectors, groups, THRESHOLD), frr_pairs)
    np.testing.assert_array_equal(estimates.pairs, pairs.sum(axis=0))
    np.testing.assert_array_equal(estimates.errors, errors.sum(axis=0))
    residuals = (errors - estimates.rates * pairs) / (1 - pairs / np.maximum(estimates.pairs, 1))
    expected = residuals.T @ residuals / np.maximum(np.outer(estimates.pairs, estimates.pairs), 1)
    np.testing.assert_allclose(covariance, expected, atol=1e-15)


def test_rates_of_classes_are_those_of_loops(drawn) -> None:
    """Images vary as queries: FAR as they do, with the classes that they meet; FRR twice, for both ends of a pair."""
    vectors, _, codes = drawn
    n = np.bincount(codes)
    shape = len(codes), N_CLASSES
    asked, accepted = np.zeros(shape), np.zeros(shape)  # by query and class of the item
    for met in meetings(vectors):
        asked[met.query, codes[met.item]] += 1
        accepted[met.query, codes[met.item]] += met.score >= THRESHOLD
    by_class = [np.stack([of[codes == own].sum(axis=0) for own in range(N_CLASSES)]) for of in (asked, accepted)]
    far, frr = class_estimates(vectors, THRESHOLD)
    for own in range(N_CLASSES):
        inside, others = codes == own, np.arange(N_CLASSES) != own
        met, passed = (of[own] + of[:, own] for of in by_class)
        assert (far.errors[own], far.pairs[own]) == (passed[others].sum(), met[others].sum())
        rate = far.rates[own]
        over_classes = np.square(passed - rate * met)[others].sum() * (N_CLASSES - 1) / (N_CLASSES - 2)
        over_images, number = variance_over_images(accepted[inside][:, others], asked[inside][:, others])
        repeats = far.pairs[own] / (n[own] * (n.sum() - n[own]))
        expected = max(over_images + over_classes / far.pairs[own] ** 2, repeats * rate * (1 - rate) / far.pairs[own])
        assert far.variances[own] == pytest.approx(expected, abs=1e-12)
        assert far.n_clusters[own] == pytest.approx(min(number, N_CLASSES - 1) if n[own] > 1 else N_CLASSES - 1)
        rejected = asked[inside][:, [own]] - accepted[inside][:, [own]]
        assert (frr.errors[own], frr.pairs[own]) == (rejected.sum(), asked[inside][:, own].sum())
        one_end, number = variance_over_images(rejected, asked[inside][:, [own]])
        single = frr.rates[own] * (1 - frr.rates[own]) / max(n[own] * (n[own] - 1) / 2, 1)
        assert frr.variances[own] == pytest.approx(max(4 * one_end - single, single), abs=1e-12)
        assert frr.n_clusters[own] == pytest.approx(number if n[own] > 1 else 1)


def variance_over_images(errors, pairs) -> tuple[float, float]:
    """Variance of a ratio of sums over the rows, and the effective number of rows."""
    of_errors, of_pairs = errors.sum(axis=1), pairs.sum(axis=1)
    if not of_pairs.any():
        return 0.0, 0.0
    number = of_pairs.sum() ** 2 / np.square(of_pairs).sum()
    residuals = of_errors - of_errors.sum() / of_pairs.sum() * of_pairs
    several = number / (number - 1) if number > 1 else 0.0
    return float(np.square(residuals).sum() * several / of_pairs.sum() ** 2), number


def test_class_rates_are_those_of_the_curves(drawn) -> None:
    """An image alone in its class is an item only: it has false accepts and no true pair."""
    vectors = drawn[0]
    curves = operating_curves(vectors, thresholds=[THRESHOLD])
    rates = class_rates(vectors, THRESHOLD)
    assert [rate.far for rate in rates] == curves.far[:, 0].tolist()
    assert [1 - rate.frr for rate in rates if rate.frr is not None] == pytest.approx(curves.tar[:, 0].tolist())
    assert [rate.n_images for rate in rates] == [1, 2, 3, 4, 5, 6, 6]
    assert (rates[0].frr, rates[0].positives, rates[0].frr_interval.high) == (None, 0, 1)


def test_a_class_with_one_query_in_all_rounds_has_no_interval(family) -> None:
    """One image shows nothing about others of its class."""
    rows, labels = family(np.random.default_rng(2), n_classes=4, n_images=2)
    for rate in class_rates(searches(rows, labels, n_rounds=1), 0.3):
        assert (rate.far_interval.low, rate.far_interval.high) == (0, 1)
        assert (rate.frr_interval.low, rate.frr_interval.high) == (0, 1)


@pytest.mark.slow
def test_intervals_of_groups_cover_the_population(family) -> None:
    """Items are pulled to their class, so pairs of one class rise and fall together even more than in one set."""
    shape = {"dimension": 16, "spread": 0.3, "crowding": 0.5}
    truth = []
    for seed in range(10):
        rows, labels = family(np.random.default_rng(500 + seed), n_classes=300, n_images=6, **shape)
        curves = operating_curves(searches(rows, labels), thresholds=[0.6])
        truth.append([curves.pooled_far[0], 1 - curves.pooled_tar[0]])
    true_far, true_frr = np.mean(truth, axis=0)
    covered, n_intervals = np.zeros(3), 0
    for seed in range(120):
        rows, labels = family(np.random.default_rng(seed), n_classes=48, n_images=6, **shape)
        vectors = searches(rows, labels, n_rounds=5, seed=seed)
        groups = np.random.default_rng(seed).choice(["x", "y"], size=len(labels)).tolist()
        for rate in compare_groups(vectors, groups, 0.6, rng=np.random.default_rng(0)).groups:
            assert rate.far is not None
            wilson = wilson_interval(round(rate.far * rate.negatives), rate.negatives)
            covered += [true_far in rate.far_interval, true_frr in rate.frr_interval, true_far in wilson]
            n_intervals += 1
    assert min(covered[:2] / n_intervals) > 0.91  # 95 % promised; over 240 intervals, three standard errors below
    assert covered[2] / n_intervals < 0.8
