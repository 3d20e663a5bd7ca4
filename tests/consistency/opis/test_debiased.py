from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from retrieval.consistency import labelled, operating_curves
from retrieval.consistency.opis.debiased import _shares, debiased_shares
from retrieval.consistency.opis.noise import measure_agreement, pair_noise
from retrieval.consistency.opis.utility import class_utilities, find_band, utility

RATES = arrays(np.float64, (6, 3), elements=st.floats(0, 1))


@given(RATES, RATES, st.floats(0.2, 5))
@settings(max_examples=60, deadline=None)
def test_without_noise_a_share_is_the_squared_deviation_of_utility(tar, far, c) -> None:
    """Many images: nothing is taken away and nothing pulled, whatever the curves."""
    weights = np.array([0.1, 0.1, 0.2, 0.2, 0.2, 0.2])
    utilities = utility(tar, far, c)
    expected = (utilities - weights @ utilities) ** 2
    found = _shares(tar, far, np.zeros_like(tar), np.full(6, 0.1), weights, c)
    np.testing.assert_allclose(weights @ found, weights @ expected, atol=1e-9)


def test_first_order_by_hand() -> None:
    """TAR 0.5 +- 0.1 with noise 0.01 at FAR 0: nothing is left, but for a class's own part in the mean."""
    tar = np.array([[0.4], [0.6]])
    shares = _shares(tar, np.zeros((2, 1)), np.full((2, 1), 0.02), np.ones(2), np.full(2, 0.5), 1.0)
    np.testing.assert_allclose(shares, 0, atol=1e-12)
    # Twice the noise: below 0 by the squared slope 2 / 1.5^2 of utility times the excess 0.01.
    shares = _shares(tar, np.zeros((2, 1)), np.full((2, 1), 0.04), np.ones(2), np.full(2, 0.5), 1.0)
    np.testing.assert_allclose(shares, -((2 / 1.5**2) ** 2) * 0.01)


@pytest.mark.parametrize(("n_images", "low", "high"), [(4, 0.2, 0.8), (5, 0.3, 0.9), (8, 0.05, 0.6)])
def test_known_spread_is_found_up_to_its_shape(n_images: int, low: float, high: float) -> None:
    """Classes of TAR low or high, pairs binomial: the mean estimate over many classes meets the true variance."""
    draw = np.random.default_rng(n_images)
    n_classes, n_pairs = 20_000, n_images * (n_images - 1) // 2
    true = np.where(np.arange(n_classes) % 2, low, high)
    tar = (draw.binomial(n_pairs, true) / n_pairs)[:, None]
    far = np.full((n_classes, 1), 0.05)
    # Binomial shares have this variance without bias, and no pairs that share an image correlate.
    noise = tar * (1 - tar) / (n_pairs - 1)
    weights = np.full(n_classes, 1 / n_classes)
    found = weights @ _shares(tar, far, noise, np.full(n_classes, 1 / n_pairs), weights, 1.0)
    expected = utility(np.array([low, high]), np.full(2, 0.05), 1.0).var()
    # Exact to first order; what bends depends on the shape of the distribution, and two points are the hardest.
    assert found[0] == pytest.approx(expected, rel=0.2)


def test_relabelling_and_order_change_nothing(family) -> None:
    rows, labels = family(np.random.default_rng(0), n_classes=20, n_images=5, spread=0.3)
    means = []
    for name in ("{}", "other {}"):
        vectors = labelled(rows, [name.format(label) for label in labels])
        means.append(shares_of(vectors, rows, labels).mean)
    order = np.argsort([label[::-1] for label in labels], kind="stable")
    means.append(shares_of(labelled(rows[order], [labels[row] for row in order]), rows, labels).mean)
    assert means == pytest.approx([means[0]] * 3, rel=1e-4)


def shares_of(vectors, rows, labels, weights=None):
    curves = operating_curves((rows, labels))
    band = find_band(curves, far_low=1e-2, far_high=1e-1, axis="log_far", distance_range=None).thinned(33)
    n_classes = len(curves.classes) - curves.n_excluded
    weights = np.full(n_classes, 1 / n_classes) if weights is None else weights
    noise = pair_noise(measure_agreement(vectors, band.nodes), weights)
    return debiased_shares(curves, noise, band, weights=weights, c=1.0)


def test_classes_of_fewer_than_four_images_are_left_out_or_bound(family) -> None:
    rows, labels = family(np.random.default_rng(1), n_classes=30, n_images=4, spread=0.3)
    for n_small, method, n_counted in ((12, "pairs", 18), (25, "bound", 30), (30, "bound", 30)):
        kept = [row for row in range(120) if row // 4 >= n_small or row % 4 != 3]
        own = rows[kept], [labels[row] for row in kept]
        found = shares_of(labelled(*own), *own)
        assert (found.method, len(found.shares)) == (method, n_counted)
        assert found.weights.sum() == pytest.approx(1)
    few = family(np.random.default_rng(1), n_classes=9, n_images=6)
    assert shares_of(labelled(*few), *few) is None


def test_bound_of_two_images_is_the_plain_value(family) -> None:
    """One pair says nothing about noise, so all of the value may be spread between classes."""
    rows, labels = family(np.random.default_rng(2), n_classes=60, n_images=2, spread=0.3)
    found = shares_of(labelled(rows, labels), rows, labels)
    curves = operating_curves((rows, labels))
    band = find_band(curves, far_low=1e-2, far_high=1e-1, axis="log_far", distance_range=None).thinned(33)
    assert found.mean == pytest.approx(float(band.mean(class_utilities(curves, band, 1.0).var(axis=0))))
