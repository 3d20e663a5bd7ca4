from __future__ import annotations

import itertools

import numpy as np
import pytest

from retrieval.consistency import wilson_interval
from retrieval.consistency.subgroups.clustered import (
    RateEstimates,
    clustered_interval,
    dyadic_covariance,
    dyadic_variances,
)
from retrieval.errors import InvalidInput


def test_dyadic_covariance_is_the_sum_over_pairs_that_share_a_class() -> None:
    """Written from the definition: products of residuals of every two pairs of classes with a class in common."""
    rng = np.random.default_rng(0)
    n_classes = 6
    dyads = list(itertools.combinations(range(n_classes), 2))
    effect = rng.normal(size=(n_classes, 2)) * 3
    residuals = {(i, j): effect[i] + effect[j] + rng.normal(size=2) for i, j in dyads}
    by_class = np.zeros((n_classes, 2))
    for (i, j), residual in residuals.items():
        by_class[i] += residual
        by_class[j] += residual
    by_pair = sum(np.outer(residual, residual) for residual in residuals.values())
    expected = np.zeros((2, 2))
    for a, b in itertools.product(dyads, dyads):
        if set(a) & set(b):
            expected += np.outer(residuals[a], residuals[b])
    np.testing.assert_allclose(dyadic_covariance(by_class, by_pair), expected)
    np.testing.assert_allclose(dyadic_variances(by_class, np.diag(by_pair)), np.diag(expected))


def test_covariance_is_positive_where_classes_do_not_matter() -> None:
    """Residuals that cancel in every class leave the part of single pairs."""
    covariance = dyadic_covariance(np.zeros((5, 2)), np.array([[2.0, 1.0], [1.0, 3.0]]))
    assert (np.linalg.eigvalsh(covariance) > 0).all()
    np.testing.assert_allclose(covariance, [[2, 1], [1, 3]])


def test_interval_is_wilsons_for_independent_pairs_and_wider_for_fewer_clusters() -> None:
    many = clustered_interval(0.2, 50, 10**6, 0.95)
    assert (many.low, many.high) == pytest.approx((wilson_interval(10, 50).low, wilson_interval(10, 50).high), rel=1e-5)
    few = clustered_interval(0.2, 50, 5, 0.95)
    assert few.low < many.low < many.high < few.high
    for nothing in (clustered_interval(0.2, 0, 10, 0.95), clustered_interval(0.2, 50, 1, 0.95)):
        assert (nothing.low, nothing.high) == (0, 1)
    with pytest.raises(InvalidInput, match="confidence"):
        clustered_interval(0.2, 50, 10, 1.0)


def test_design_effects_by_hand() -> None:
    """1/2 in 100 pairs has variance 1/400 if independent; a rate of 0 takes the median of the others."""
    estimates = RateEstimates(
        errors=np.array([50.0, 50.0, 50.0, 0.0, 0.0]),
        pairs=np.array([100.0, 100.0, 100.0, 100.0, 0.0]),
        variances=np.array([0.01, 0.0001, 0.005, 0.0, 0.0]),
        n_clusters=np.array([20, 20, 20, 20, 0]),
    )
    np.testing.assert_allclose(estimates.design_effects, [4, 1, 2, 2, 1])
    assert estimates.rates.tolist() == [0.5, 0.5, 0.5, 0, 0]
    intervals = estimates.intervals(0.95)
    assert intervals[0].low < intervals[2].low < intervals[1].low
    assert intervals[3].high > wilson_interval(0, 100).high
    assert (intervals[4].low, intervals[4].high) == (0, 1)


def test_without_any_error_each_cluster_counts_once() -> None:
    estimates = RateEstimates(
        errors=np.zeros(2), pairs=np.array([100.0, 10.0]), variances=np.zeros(2), n_clusters=np.array([20, 20])
    )
    np.testing.assert_allclose(estimates.pairs / estimates.design_effects, [20, 10])
