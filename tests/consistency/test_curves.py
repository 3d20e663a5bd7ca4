from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from retrieval.consistency import OperatingCurves, operating_curves, threshold_grid
from retrieval.errors import InvalidInput, NotEnoughEvidence

# Whole numbers make every float32 product exact, so that order and tiling cannot change a bit.
whole = st.integers(-4, 4).map(np.float32)
labelled = st.tuples(
    arrays(np.float32, (10, 3), elements=whole),
    st.lists(st.sampled_from("abcd"), min_size=10, max_size=10).filter(lambda labels: len(set(labels)) > 1),
)
THRESHOLDS = np.array([-8.5, -2.0, 0.0, 3.0, 7.5])
FIELDS = ("n_images", "thresholds", "positives_accepted", "negatives_accepted", "positives", "negatives")


def assert_equal(left: OperatingCurves, right: OperatingCurves) -> None:
    assert (left.classes, left.cosine) == (right.classes, right.cosine)
    for field in FIELDS:
        np.testing.assert_array_equal(getattr(left, field), getattr(right, field), err_msg=field)


def scores_as_distances(base: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Query and gallery whose product is symmetric but no cosine: a . b - (|a| + |b|) as in a cohort score."""
    size = np.abs(base).sum(axis=1, keepdims=True)
    one = np.ones_like(size)
    return np.hstack([base, -size, one]), np.hstack([base, one, -size])


def reference_counts(query: np.ndarray, gallery: np.ndarray, labels: list[str]) -> dict[str, list[tuple[int, int]]]:
    """Accepted (positives, negatives) of each class at each threshold, one pair at a time."""
    counts = {name: [[0, 0] for _ in THRESHOLDS] for name in sorted(set(labels))}
    for i, j in itertools.combinations(range(len(labels)), 2):
        score = float(np.dot(query[i], gallery[j]))
        for column, threshold in enumerate(THRESHOLDS):
            if score >= threshold:
                if labels[i] == labels[j]:
                    counts[labels[i]][column][0] += 1
                else:
                    counts[labels[i]][column][1] += 1
                    counts[labels[j]][column][1] += 1
    return {name: [(p, n) for p, n in rows] for name, rows in counts.items()}


def test_three_vectors_by_hand() -> None:
    """a: one positive at 0.8; negatives at 0 and 0.6; b has no positive and is left out of TAR."""
    rows = np.array([[1, 0], [0, 1], [0.8, 0.6]], dtype=np.float32)
    curves = operating_curves(rows, ["a", "b", "a"], thresholds=[0.9, 0.5, 0.0])
    assert curves.classes == ("a", "b")
    assert curves.thresholds.tolist() == [0.0, 0.5, 0.9]
    assert curves.positives.tolist() == [1, 0]
    assert curves.negatives.tolist() == [2, 2]
    assert curves.tar.tolist() == [[1, 1, 0]]
    assert curves.far.tolist() == [[1, 0.5, 0], [1, 0.5, 0]]
    assert curves.pooled_far.tolist() == curves.mean_far.tolist() == [1, 0.5, 0]
    assert curves.pooled_tar.tolist() == curves.mean_tar.tolist() == [1, 1, 0]
    assert (curves.n_excluded, curves.n_negative_pairs, curves.cosine) == (1, 2, True)


@settings(deadline=None)
@given(data=labelled, tile=st.integers(1, 12))
def test_counts_agree_with_one_pair_at_a_time(data: tuple[np.ndarray, list[str]], tile: int) -> None:
    query, gallery = scores_as_distances(data[0])
    labels = data[1]
    curves = operating_curves(query, labels, gallery_vectors=gallery, thresholds=THRESHOLDS, tile=tile)
    accepted = np.stack([curves.positives_accepted, curves.negatives_accepted], axis=2)
    expected = reference_counts(query, gallery, labels)
    assert curves.classes == tuple(expected)
    np.testing.assert_array_equal(accepted, list(expected.values()))


@settings(deadline=None)
@given(data=labelled, order=st.permutations(range(10)))
def test_order_and_names_do_not_matter(data: tuple[np.ndarray, list[str]], order: list[int]) -> None:
    query, gallery = scores_as_distances(data[0])
    labels = data[1]
    whole_curves = operating_curves(query, labels, gallery_vectors=gallery, thresholds=THRESHOLDS)
    shuffled = operating_curves(
        query[order],
        ["class " + labels[row] for row in order],
        gallery_vectors=gallery[order],
        thresholds=THRESHOLDS,
    )
    assert shuffled.classes == tuple("class " + name for name in whole_curves.classes)
    for field in FIELDS:
        np.testing.assert_array_equal(getattr(shuffled, field), getattr(whole_curves, field), err_msg=field)


@pytest.mark.parametrize("count", [2, 3, 50])
def test_shards_add_up_to_the_whole_bit_for_bit(count: int, family) -> None:
    rows, labels = family(np.random.default_rng(2), n_classes=30, n_images=5)
    grid = threshold_grid(rows, labels, n_band=50)
    shards = [operating_curves(rows, labels, thresholds=grid, tile=32, shard=(index, count)) for index in range(count)]
    merged = shards[0]
    for shard in shards[1:]:
        merged += shard
    assert_equal(merged, operating_curves(rows, labels, thresholds=grid, tile=32))


def test_rates_never_rise_with_the_threshold(family) -> None:
    rows, labels = family(np.random.default_rng(3), n_classes=12, n_images=4)
    curves = operating_curves(rows, labels)
    assert (np.diff(curves.tar, axis=1) <= 0).all()
    assert (np.diff(curves.far, axis=1) <= 0).all()
    assert (np.diff(curves.thresholds) > 0).all()
    assert 1000 <= len(curves.thresholds) <= 1100


def test_curves_of_other_images_or_thresholds_do_not_merge(family) -> None:
    rows, labels = family(np.random.default_rng(4), n_classes=4, n_images=3)
    curves = operating_curves(rows, labels, thresholds=[0.1, 0.5])
    for other in (
        operating_curves(rows, labels, thresholds=[0.1, 0.6]),
        operating_curves(rows[1:], labels[1:], thresholds=[0.1, 0.5]),
        operating_curves(rows, labels, gallery_vectors=rows * np.float32(2), thresholds=[0.1, 0.5]),
    ):
        with pytest.raises(InvalidInput, match="merge"):
            curves + other


def test_curves_at_one_threshold_are_a_column() -> None:
    rows = np.array([[1, 0], [0.8, 0.6], [0, 1]], dtype=np.float32)
    curves = operating_curves(rows, ["a", "a", "b"], thresholds=[0.1, 0.5, 0.9])
    assert_equal(curves.at(0.5), operating_curves(rows, ["a", "a", "b"], thresholds=[0.5]))
    for elsewhere in (0.4, 2.0):
        with pytest.raises(InvalidInput, match="not among the 3 thresholds"):
            curves.at(elsewhere)


def test_table_round_trip_and_cut_table(family) -> None:
    rows, labels = family(np.random.default_rng(5), n_classes=4, n_images=3)
    curves = operating_curves(rows, labels, thresholds=[0.1, 0.5, 0.7])
    table = curves.to_table()
    assert_equal(OperatingCurves.from_table(table), curves)
    with pytest.raises(InvalidInput, match="cut or re-sorted"):
        OperatingCurves.from_table({name: column[:-1] for name, column in table.items()})


def test_no_positive_pair_bad_thresholds_and_bare_shards_are_refused(family) -> None:
    rows, labels = family(np.random.default_rng(6), n_classes=4, n_images=2)
    with pytest.raises(NotEnoughEvidence, match="no class has two images"):
        operating_curves(rows[::2], labels[::2])
    for thresholds in ([], [0.5, float("nan")]):
        with pytest.raises(InvalidInput, match="threshold"):
            operating_curves(rows, labels, thresholds=thresholds)
    with pytest.raises(InvalidInput, match="shards must share thresholds"):
        operating_curves(rows, labels, shard=(0, 2))
