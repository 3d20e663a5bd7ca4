"""Counts by class and group, and the rates made of them, against loops over every pair."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from retrieval.consistency import labelled
from retrieval.consistency.pairs import tiles
from retrieval.consistency.subgroups.clustered import dyadic_covariance, dyadic_variances
from retrieval.consistency.subgroups.counts import count_groups
from retrieval.consistency.subgroups.estimates import class_estimates, false_accept_rates, false_reject_rates

N_CLASSES, N_IMAGES, THRESHOLD = 7, 4, 0.3


@pytest.fixture
def drawn(family):
    """Vectors of classes of different sizes, their groups, and whether each pair is accepted."""
    rng = np.random.default_rng(0)
    rows, labels = family(rng, n_classes=N_CLASSES, n_images=N_IMAGES, dimension=6)
    vectors = labelled(rows[1:], labels[1:])
    groups = rng.choice(["a", "b", "c"], size=len(rows) - 1).astype(object)
    accepted = vectors.query @ vectors.gallery.T >= np.float32(THRESHOLD)
    return vectors, groups, accepted


def loops(vectors, groups, accepted):
    """Pairs and accepted pairs by (first class, second class, cell), one by one."""
    names = sorted(set(groups))
    cells = {cell: k for k, cell in enumerate(itertools.combinations_with_replacement(range(len(names)), 2))}
    shape = (N_CLASSES, N_CLASSES, len(cells))
    pairs, passed = np.zeros(shape), np.zeros(shape)
    for i, j in itertools.combinations(range(len(groups)), 2):
        g, h = sorted((names.index(groups[i]), names.index(groups[j])))
        place = (vectors.codes[i], vectors.codes[j], cells[g, h])
        pairs[place] += 1
        passed[place] += accepted[i, j]
    return pairs, passed, np.array(list(cells))


@pytest.mark.parametrize("tile", [4, 1024])
def test_counts_are_those_of_loops(drawn, tile: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiles, "TILE", tile)
    vectors, groups, accepted = drawn
    pairs, passed, cells = loops(vectors, groups, accepted)
    counts = count_groups(vectors, groups, THRESHOLD)
    own = np.arange(N_CLASSES)
    assert counts.groups == ("a", "b", "c")
    np.testing.assert_array_equal(counts.cells, cells)
    np.testing.assert_array_equal(counts.positives, pairs[own, own])
    np.testing.assert_array_equal(counts.positives_accepted, passed[own, own])
    found = np.zeros_like(passed)
    negatives = counts.negatives_accepted
    found[negatives.first, negatives.second, negatives.cell] = negatives.accepted
    passed[own, own] = 0
    np.testing.assert_array_equal(found, passed)
    assert counts.within.tolist() == [0, 3, 5]


def test_false_accept_rates_and_covariance_are_those_of_loops(drawn) -> None:
    vectors, groups, accepted = drawn
    pairs, passed, _ = loops(vectors, groups, accepted)
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
        kish = pairs_of_class.sum(axis=0) ** 2 / (pairs_of_class**2).sum(axis=0)
        np.testing.assert_allclose(estimates.n_clusters, kish)


@pytest.mark.parametrize("frr_pairs", ["within", "touching"])
def test_false_reject_rates_are_those_of_loops(drawn, frr_pairs) -> None:
    vectors, groups, accepted = drawn
    errors, pairs = np.zeros((N_CLASSES, 3)), np.zeros((N_CLASSES, 3))
    for i, j in itertools.combinations(range(len(groups)), 2):
        for number, name in enumerate("abc"):
            ends = [groups[i] == name, groups[j] == name]
            if vectors.codes[i] == vectors.codes[j] and (all(ends) if frr_pairs == "within" else any(ends)):
                pairs[vectors.codes[i], number] += 1
                errors[vectors.codes[i], number] += not accepted[i, j]
    estimates, covariance = false_reject_rates(count_groups(vectors, groups, THRESHOLD), frr_pairs)
    np.testing.assert_array_equal(estimates.pairs, pairs.sum(axis=0))
    np.testing.assert_array_equal(estimates.errors, errors.sum(axis=0))
    residuals = (errors - estimates.rates * pairs) / (1 - pairs / estimates.pairs)
    expected = residuals.T @ residuals / np.outer(estimates.pairs, estimates.pairs)
    np.testing.assert_allclose(covariance, expected, atol=1e-15)
    np.testing.assert_allclose(estimates.n_clusters, pairs.sum(axis=0) ** 2 / (pairs**2).sum(axis=0))


def test_rates_of_classes_are_those_of_loops(drawn) -> None:
    """FAR: variance over own images plus that over other classes; FRR: that of pairs which share an image."""
    vectors, _, accepted = drawn
    far, frr = class_estimates(vectors, THRESHOLD)
    for own in range(N_CLASSES):
        inside, outside = np.flatnonzero(vectors.codes == own), np.flatnonzero(vectors.codes != own)
        block = accepted[np.ix_(inside, outside)].astype(float)
        assert (far.errors[own], far.pairs[own]) == (block.sum(), block.size)
        residual = block - block.mean()
        n = len(inside)
        over_images = (residual.sum(axis=1) ** 2).sum() * n / (n - 1)
        others = [residual[:, vectors.codes[outside] == other].sum() for other in range(N_CLASSES) if other != own]
        over_classes = (np.square(others)).sum() * (N_CLASSES - 1) / (N_CLASSES - 2)
        assert far.variances[own] == pytest.approx((over_images + over_classes) / block.size**2)
        rejected = {pair: 1.0 - accepted[pair] for pair in itertools.combinations(inside.tolist(), 2)}
        mean = np.mean(list(rejected.values()))
        assert frr.rates[own] == pytest.approx(mean)
        by_image = [sum(value - mean for pair, value in rejected.items() if row in pair) for row in inside]
        single = sum((value - mean) ** 2 for value in rejected.values())
        expected = max(np.square(by_image).sum() * n / (n - 1) - single, single) / len(rejected) ** 2
        assert frr.variances[own] == pytest.approx(expected, abs=1e-12)
        assert (far.n_clusters[own], frr.n_clusters[own]) == (n, n)


def test_many_groups_are_counted_within_only(family) -> None:
    rows, labels = family(np.random.default_rng(2), n_classes=40, n_images=2)
    groups = np.array([str(row // 2) for row in range(80)], dtype=object)
    counts = count_groups(labelled(rows, labels), groups, 0.3)
    assert len(counts.cells) == len(counts.within) == 40
    assert counts.positives.sum() == 40
    assert len(counts.negatives_accepted.accepted) == 0, "every pair of classes crosses groups"
