from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from retrieval.consistency import check_unit_rows, crossed, labelled
from retrieval.consistency.pairs.vectors import as_labelled, check_same_images
from retrieval.errors import InvalidEmbeddings, InvalidInput, NotEnoughEvidence

UNIT = np.array([[1, 0], [0.6, 0.8], [0, 1]], dtype=np.float32)
LABELS = ["b", "a", "b"]


def test_vectors_are_sorted_by_class_and_remember_their_rows() -> None:
    vectors = labelled(UNIT, LABELS)
    assert vectors.classes == ("a", "b")
    assert vectors.order.tolist() == [1, 0, 2]
    assert vectors.codes.tolist() == [0, 1, 1]
    assert (vectors.n_positives, vectors.n_negatives) == (1, 2)
    np.testing.assert_array_equal(vectors.query, UNIT[[1, 0, 2]])


def test_equal_query_and_gallery_mean_cosine_and_others_do_not() -> None:
    assert labelled(UNIT, LABELS).cosine
    assert labelled(UNIT, LABELS, gallery=UNIT.copy()).cosine
    assert not labelled(UNIT * 3, LABELS, gallery=UNIT).cosine


@pytest.mark.parametrize(
    ("rows", "labels", "message"),
    [
        (UNIT.astype(np.float64), LABELS, "float32"),
        (UNIT[0], LABELS, r"\[n, D\]"),
        (np.where(UNIT == 0, np.float32(np.nan), UNIT), LABELS, "2 rows, the first is row 0"),
        (np.where(UNIT == 0, np.float32(np.inf), UNIT), LABELS, "finite"),
        (
            UNIT * np.float32(1.01),
            LABELS,
            r"embeddings of a cosine score .*: expected rows of norm 1, found 1\.01 in row 0 \(3 of 3",
        ),
        (UNIT, LABELS[:2], "found 2 labels for 3 rows"),
        (UNIT, [1, 2, 1], "strings"),
    ],
)
def test_unusable_vectors_and_labels_are_refused(rows: np.ndarray, labels: list[str], message: str) -> None:
    with pytest.raises(InvalidEmbeddings, match=message):
        labelled(rows, labels)


def test_gallery_of_another_shape_or_not_finite_is_refused() -> None:
    with pytest.raises(
        InvalidEmbeddings, match=r"gallery must have the shape of the embeddings \(3, 2\), found \(2, 2\)"
    ):
        labelled(UNIT, LABELS, gallery=UNIT[:2])
    with pytest.raises(InvalidEmbeddings, match="gallery must be finite"):
        labelled(UNIT, LABELS, gallery=UNIT * np.float32(np.nan))


@pytest.mark.parametrize(("rows", "labels"), [(UNIT, ["a"] * 3), (UNIT[:0], [])])
def test_fewer_than_two_classes_are_not_enough(rows: np.ndarray, labels: list[str]) -> None:
    with pytest.raises(NotEnoughEvidence, match="at least 2 classes"):
        labelled(rows, labels)


def test_a_plain_pair_is_labelled_and_labelled_vectors_stay() -> None:
    vectors = labelled(UNIT, LABELS)
    assert as_labelled(vectors) is vectors
    found = as_labelled((UNIT, LABELS))
    assert (found.classes, found.order.tolist(), found.cosine) == (vectors.classes, [1, 0, 2], True)
    np.testing.assert_array_equal(found.query, vectors.query)
    for other in (UNIT, (UNIT, LABELS, UNIT), [UNIT, LABELS]):
        with pytest.raises(InvalidInput, match=r"expected labelled vectors or \(embeddings, labels\), found"):
            as_labelled(other)  # type: ignore[arg-type]  # what is tested


def test_a_subset_keeps_names_and_counts_its_own_pairs() -> None:
    vectors = labelled(UNIT, LABELS, exclude=(["x", "y", ""],)).subset(np.array([1, 2]))
    assert (vectors.classes, vectors.order.tolist(), vectors.one_set) == (("a", "b"), [0, 2], True)
    assert (vectors.positives.tolist(), vectors.negatives.tolist()) == ([0, 1], [0, 0])
    with pytest.raises(InvalidInput, match="one set of images"):
        crossed(UNIT, LABELS, UNIT, LABELS).subset(np.array([0]))


def test_vectors_of_other_images_are_told_from_those_of_the_same() -> None:
    vectors = labelled(UNIT, LABELS)
    check_same_images(vectors, labelled(UNIT[::-1].copy(), LABELS))
    for rows, labels in ((UNIT, ["b", "a", "c"]), (UNIT, ["a", "b", "b"]), (UNIT[:2], LABELS[:2])):
        with pytest.raises(InvalidInput, match="vectors of the same images"):
            check_same_images(vectors, labelled(rows, labels))


@given(arrays(np.float32, (4, 64), elements=st.floats(-1, 1, width=32)))
def test_unit_rows_stored_or_normalised_in_half_precision_pass(rows: np.ndarray) -> None:
    """Stored: each component is rounded. Normalised: the norm is rounded as well."""
    rows[:, 0] += 2
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    check_unit_rows((rows / norms).astype(np.float16).astype(np.float32), "stored")
    check_unit_rows((rows / norms.astype(np.float16)).astype(np.float16).astype(np.float32), "normalised")


def test_rows_that_are_not_unit_are_named() -> None:
    bad = UNIT.copy()
    check_unit_rows(bad[:0], "the rows")
    for value in (np.nan, np.inf, 1.002):
        bad[2, 1] = value
        with pytest.raises(InvalidEmbeddings, match=r"the rows: .* in row 2 \(1 of 3 rows"):
            check_unit_rows(bad, "the rows")
    with pytest.raises(InvalidEmbeddings, match=r"the rows: expected an array \[n, d\], found shape \(2,\)"):
        check_unit_rows(UNIT[0], "the rows")


def test_families_hold_whole_classes() -> None:
    """A class without a family is one by itself, also where a family has its name."""
    rows = np.eye(4, dtype=np.float32)
    labels = ["a", "b", "c", "d"]
    families = labelled(rows, labels, families=["x", "", "x", "b"]).families
    assert families is not None
    assert families.tolist() == [0, 1, 0, 2]
    assert labelled(rows, labels).families is None
    with pytest.raises(InvalidInput, match="class 'a' in 'x' and 'y'"):
        labelled(rows, ["a", "a", "b", "c"], families=["x", "y", "z", "z"])
    with pytest.raises(InvalidEmbeddings, match="found 1 for 4 labels"):
        labelled(rows, labels, families=["x"])
    with pytest.raises(InvalidInput, match="families: expected a sequence or None, found list"):
        labelled(rows, labels, families=["x", 1, "x", "x"])  # type: ignore[list-item]  # callers without types
