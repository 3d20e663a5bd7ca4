from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from retrieval.consistency import labelled, operating_curves, threshold_grid, thresholds_at_far
from retrieval.errors import InvalidInput, NotEnoughEvidence
from tests.consistency.conftest import tile_of

# Whole numbers make every float32 product exact, so that a reference in Python agrees bit for bit.
whole = st.integers(-4, 4).map(np.float32)


def negative_scores(query: np.ndarray, gallery: np.ndarray, labels: list[str]) -> list[float]:
    pairs = itertools.combinations(range(len(labels)), 2)
    return [float(np.dot(query[i], gallery[j])) for i, j in pairs if labels[i] != labels[j]]


@settings(deadline=None)
@given(
    base=arrays(np.float32, (9, 3), elements=whole),
    codes=st.lists(st.sampled_from("abc"), min_size=9, max_size=9).filter(lambda codes: len(set(codes)) > 1),
    far=st.floats(0, 0.999),
)
def test_selected_threshold_is_the_lowest_that_keeps_the_target(base: np.ndarray, codes: list[str], far: float) -> None:
    """FAR at the threshold is at most the target; one float32 lower, it exceeds it. Ties and negatives included."""
    gallery = base * np.float32(2)
    negatives = np.array(negative_scores(base, gallery, codes))
    if np.array_equal(base, gallery):  # all zero would be taken for cosine
        return
    with tile_of(4):
        (threshold,) = thresholds_at_far(labelled(base, codes, gallery=gallery), [far])
    below = np.nextafter(np.float32(threshold), np.float32(-np.inf))
    assert (negatives >= threshold).mean() <= far
    assert (negatives >= below).mean() > far


def test_whole_products_are_not_lost_to_rounding() -> None:
    """100 negatives at target 0.29 allow 29 false accepts, although 0.29 * 100 rounds below 29."""
    scores = np.arange(100, dtype=np.float32)
    query = np.column_stack([np.append(scores, 0), np.ones(101)]).astype(np.float32)
    gallery = query[:, ::-1].copy()  # the score is the sum of two numbers, of which one is 0 between classes
    labels = ["many"] * 100 + ["one"]
    (threshold,) = thresholds_at_far(labelled(query, labels, gallery=gallery), [0.29])
    assert (scores >= threshold).sum() == 29


def test_target_zero_rejects_every_negative_pair(family) -> None:
    rows, labels = family(np.random.default_rng(0), n_classes=10, n_images=3)
    curves = operating_curves((rows, labels), thresholds=thresholds_at_far(labelled(rows, labels), [0.0]))
    assert curves.pooled_far.tolist() == [0.0]


@pytest.mark.parametrize("far", [1.0, -0.1, float("nan")])
def test_impossible_targets_are_refused(far: float, family) -> None:
    rows, labels = family(np.random.default_rng(0), n_classes=3, n_images=2)
    with pytest.raises(InvalidInput, match=r"\[0, 1\)"):
        thresholds_at_far(labelled(rows, labels), [far])


def test_grid_covers_the_band_exactly_and_everything_else(family) -> None:
    rows, labels = family(np.random.default_rng(1), n_classes=40, n_images=4)
    grid = threshold_grid(labelled(rows, labels), far_low=1e-2, far_high=1e-1, n_band=200)
    curves = operating_curves((rows, labels), thresholds=grid)
    high, low = thresholds_at_far(labelled(rows, labels), [1e-1, 1e-2])
    assert np.count_nonzero((grid >= high) & (grid <= low)) == 200
    assert {high, low} <= set(grid.tolist())
    assert curves.pooled_far[0] > 0.99
    assert curves.pooled_far[-1] == 0


@pytest.mark.parametrize("limits", [(0.1, 0.01), (0.0, 0.1), (0.01, 1.0)])
def test_impossible_bands_are_refused(limits: tuple[float, float], family) -> None:
    rows, labels = family(np.random.default_rng(0), n_classes=3, n_images=2)
    with pytest.raises(InvalidInput, match="far_low < far_high"):
        threshold_grid(labelled(rows, labels), far_low=limits[0], far_high=limits[1])


def test_no_negative_pair_is_not_enough() -> None:
    rows = np.eye(3, dtype=np.float32)
    with pytest.raises(NotEnoughEvidence, match="no two images of different classes make a pair"):
        thresholds_at_far(labelled(rows, ["a", "a", "b"], exclude=(["x"] * 3,)), [0.1])
