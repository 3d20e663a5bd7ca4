from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from retrieval.consistency.pairs.vectors import float32_at_least, labelled_vectors, scored_pairs, tile_bounds
from retrieval.errors import InvalidEmbeddings, InvalidInput, NotEnoughEvidence

UNIT = np.array([[1, 0], [0.6, 0.8], [0, 1]], dtype=np.float32)
LABELS = ["b", "a", "b"]


def test_vectors_are_sorted_by_class_and_remember_their_rows() -> None:
    vectors = labelled_vectors(UNIT, LABELS)
    assert vectors.classes == ("a", "b")
    assert vectors.order.tolist() == [1, 0, 2]
    assert vectors.codes.tolist() == [0, 1, 1]
    assert (vectors.n_positives, vectors.n_negatives) == (1, 2)
    np.testing.assert_array_equal(vectors.query, UNIT[[1, 0, 2]])


def test_equal_query_and_gallery_mean_cosine_and_others_do_not() -> None:
    assert labelled_vectors(UNIT, LABELS).cosine
    assert labelled_vectors(UNIT, LABELS, UNIT.copy()).cosine
    assert not labelled_vectors(UNIT * 3, LABELS, UNIT).cosine


@pytest.mark.parametrize(
    ("rows", "labels", "message"),
    [
        (UNIT.astype(np.float64), LABELS, "float32"),
        (UNIT[0], LABELS, r"\[n, D\]"),
        (np.where(UNIT == 0, np.float32(np.nan), UNIT), LABELS, "2 rows, the first is row 0"),
        (np.where(UNIT == 0, np.float32(np.inf), UNIT), LABELS, "finite"),
        (UNIT * np.float32(1.01), LABELS, "unit rows, found 3"),
        (UNIT, LABELS[:2], "found 2 labels for 3 rows"),
        (UNIT, [1, 2, 1], "strings"),
    ],
)
def test_unusable_vectors_and_labels_are_refused(rows: np.ndarray, labels: list[str], message: str) -> None:
    with pytest.raises(InvalidEmbeddings, match=message):
        labelled_vectors(rows, labels)


def test_gallery_of_another_shape_or_not_finite_is_refused() -> None:
    with pytest.raises(InvalidEmbeddings, match="shape"):
        labelled_vectors(UNIT, LABELS, UNIT[:2])
    with pytest.raises(InvalidEmbeddings, match="gallery_vectors must be finite"):
        labelled_vectors(UNIT, LABELS, UNIT * np.float32(np.nan))


@pytest.mark.parametrize(("rows", "labels"), [(UNIT, ["a"] * 3), (UNIT[:0], [])])
def test_fewer_than_two_classes_are_not_enough(rows: np.ndarray, labels: list[str]) -> None:
    with pytest.raises(NotEnoughEvidence, match="at least 2 classes"):
        labelled_vectors(rows, labels)


@given(n=st.integers(2, 20), tile=st.integers(1, 25), count=st.integers(1, 4))
def test_shards_visit_every_pair_once(n: int, tile: int, count: int) -> None:
    """Whatever the tile, the shards together yield each unordered pair exactly once, with its own score."""
    query = np.eye(n, dtype=np.float32) * np.arange(1, n + 1, dtype=np.float32)
    gallery = np.tile(np.arange(n, dtype=np.float32) * 100, (n, 1)).T.copy()
    vectors = labelled_vectors(query, ["a"] + ["b"] * (n - 1), gallery)
    # score(i, j) = (i + 1) * 100 * j for the sum over the gallery's constant row j
    expected = sorted((i + 1) * 100.0 * j for i, j in itertools.combinations(range(n), 2))
    batches = [batch for index in range(count) for batch in scored_pairs(vectors, tile=tile, shard=(index, count))]
    assert sorted(np.concatenate([batch.scores for batch in batches]).tolist()) == expected
    assert sum(int(batch.matches.sum()) for batch in batches) == (n - 1) * (n - 2) // 2


def test_progress_reports_every_tile() -> None:
    seen: list[tuple[int, int]] = []
    list(scored_pairs(labelled_vectors(UNIT, LABELS), tile=2, progress=lambda done, total: seen.append((done, total))))
    assert seen == [(1, 3), (2, 3), (3, 3)]


@pytest.mark.parametrize(("tile", "shard"), [(0, (0, 1)), (4, (1, 1)), (4, (-1, 2)), (4, (0, 0))])
def test_impossible_tiles_and_shards_are_refused(tile: int, shard: tuple[int, int]) -> None:
    with pytest.raises(InvalidInput, match="shard"):
        tile_bounds(10, tile, shard)


@given(threshold=st.floats(-3, 3), score=st.floats(-3, 3, width=32))
def test_rounded_thresholds_accept_the_same_scores(threshold: float, score: float) -> None:
    rounded = float32_at_least(np.array([threshold]))[0]
    assert (np.float32(score) >= rounded) == (score >= threshold)
