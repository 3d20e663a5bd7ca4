"""A catalogue score is its definition, pair by pair; queries are those of the score without labels."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from retrieval.consistency import Whitening
from retrieval.contract.canonical import digest_json, json_bytes
from retrieval.contract.class_terms import ClassTerms, TypicalClass, class_codes, pull_items
from retrieval.contract.score import COHORT, SCORE, GalleryVectors, Score, ScoreDigest, cohort_score, open_score
from retrieval.errors import CorruptArtifact, InvalidEmbeddings, InvalidInput
from tests.contract.test_score import defined_density, unit_rows, whitening, write

Vectors = NDArray[np.float32]
PULL = ClassTerms(pull=0.7)
OFFSET = ClassTerms(
    pull=0.7, offset_weight=0.5, typical=TypicalClass(within=0.6, between=0.1, variance=0.02, density=0.3)
)
# Every label names a class, however unlike its items are.
LOOSE = replace(OFFSET, typical=TypicalClass(within=0.6, between=-1.0, variance=0.5, density=0.3))
LABELS = ["cup", "", "hat", "cup", "shoe", "cup", "hat", ""]


def scores() -> list[Score]:
    """Every kind, with a pull, and without an offset or with one."""
    cohort = unit_rows(9, 4, 5)
    return [
        Score(classes=PULL),
        Score(cohort=cohort, k=2, classes=PULL),
        replace(cohort_score(cohort, k=2, weight=0.3, ignore_above=0.999, whitening=whitening(4, 3)), classes=PULL),
        Score(classes=LOOSE),
        Score(cohort=cohort, k=2, classes=LOOSE),
    ]


def mapped(chosen: Whitening | None, rows: Vectors) -> NDArray[np.float64]:
    """The rows after the whitening, one by one, in double precision."""
    if chosen is None:
        return rows.astype(float)
    images = np.array([chosen.projection.T.astype(float) @ (x.astype(float) - chosen.centre) for x in rows])
    return np.asarray(images / np.linalg.norm(images, axis=1, keepdims=True), dtype=np.float64)


def density(score: Score, x: NDArray[np.float64]) -> float:
    """The mean of the k largest similarities that count, by sorting."""
    if score.cohort is None:
        return 0.0
    kept = [c for c in score.cohort if score.ignore_above is None or float(c.astype(float) @ x) < score.ignore_above]
    return defined_density(x.astype(np.float32), np.array(kept), score.k)


@given(n=st.integers(1, 8), number=st.integers(0, 4), data=st.data(), seed=st.integers(0, 9))
def test_every_pair_has_its_definition(n: int, number: int, data: st.DataObject, seed: int) -> None:
    """s(a, b*) - w (r(a) + r(b*)) - o(b), one pair at a time, with b* and o as the terms of the classes give them."""
    score = scores()[number]
    assert score.classes is not None
    labels = data.draw(st.lists(st.sampled_from(["", "x", "y"]), min_size=n, max_size=n).filter(any))
    items, queries = unit_rows(n, 4, seed), unit_rows(3, 4, seed + 50)
    rows = mapped(score.whitening, items)
    pulled = pull_items(
        score.classes,
        rows.astype(np.float32),
        class_codes(labels)[1],
        density=lambda some: np.array([density(score, x.astype(float)) for x in some], np.float32),
        weight=score.weight,
    )
    asked = mapped(score.whitening, queries)
    expected = [
        [
            a @ b - score.weight * (density(score, a) + density(score, b)) - offset
            for b, offset in zip(pulled.rows.astype(float), pulled.offsets.astype(float), strict=True)
        ]
        for a in asked
    ]
    gallery = score.gallery(items, labels)
    assert gallery.vectors.dtype == np.float32
    assert gallery.vectors.shape == (n, score.dimension(4))
    np.testing.assert_allclose(score.query_vectors(queries) @ gallery.vectors.T, expected, atol=1e-4)
    np.testing.assert_allclose(gallery.densities, [density(score, b.astype(float)) for b in pulled.rows], atol=1e-4)


def test_kinds() -> None:
    kinds = [
        "catalogue cosine",
        "catalogue cohort",
        "catalogue whitened cohort",
        "catalogue cosine",
        "catalogue cohort",
    ]
    assert [score.kind for score in scores()] == kinds


def test_by_hand() -> None:
    """Two items at right angles with one label and pull 1: both become their mean; the third has no label."""
    items = np.array([[1, 0], [0, 1], [0, 1]], np.float32)
    gallery = Score(classes=ClassTerms(pull=1.0)).gallery(items, ["cup", "cup", ""])
    half = np.sqrt(0.5)
    np.testing.assert_allclose(gallery.vectors, [[half, half], [half, half], [0, 1]], atol=1e-6)
    assert gallery.classes is not None
    assert gallery.classes.names == ("cup",)
    assert gallery.classes.sizes.tolist() == [2]
    np.testing.assert_allclose(gallery.classes.means, [[0.5, 0.5]], atol=1e-6)
    assert not gallery.far.any()


@pytest.mark.parametrize("score", scores(), ids=lambda score: score.kind)
def test_queries_and_lone_items_are_those_of_the_score_without_labels(score: Score) -> None:
    """To the last bit: a query knows no labels, and neither does an item without one or alone in its class."""
    plain, items = replace(score, classes=None), unit_rows(8, 4, 1)
    columns = slice(plain.dimension(4))  # an offset over the cosine adds two, which are 0 in a product with such items
    assert score.query_vectors(items)[:, columns].tobytes() == plain.query_vectors(items).tobytes()
    gallery, alone = score.gallery(items, LABELS), plain.gallery(items)
    vectors, untouched, pulled = gallery.vectors[:, columns], [1, 4, 7], [0, 2, 3, 5, 6]
    assert vectors[untouched].tobytes() == alone.vectors[untouched].tobytes()
    assert (gallery.offsets[untouched] == 0).all()
    assert (np.abs(vectors[pulled] - alone.vectors[pulled]).max(axis=1) > 1e-3).all()


@pytest.mark.parametrize("score", scores(), ids=lambda score: score.kind)
def test_a_change_of_one_class_leaves_the_others(score: Score) -> None:
    """Only the items of a changed class get new vectors, so that a later change stays cheap."""
    items = unit_rows(8, 4, 1)
    changed = items.copy()
    changed[3] = unit_rows(1, 4, 77)[0]  # a cup
    before, after = score.gallery(items, LABELS), score.gallery(changed, LABELS)
    others = [number for number, label in enumerate(LABELS) if label != "cup"]
    assert before.vectors[others].tobytes() == after.vectors[others].tobytes()
    assert before.classes is not None
    assert after.classes is not None
    assert before.classes.names == ("cup", "hat", "shoe")
    assert (np.abs(before.classes.means - after.classes.means).max(axis=1) > 0).tolist() == [True, False, False]


def test_an_offset_over_the_cosine_has_the_columns_that_the_indexes_know() -> None:
    """The last column but one is 1 throughout, and queries have theirs the other way round."""
    score, items, queries = Score(classes=LOOSE), unit_rows(8, 4, 1), unit_rows(2, 4, 2)
    gallery = score.gallery(items, LABELS)
    assert score.dimension(4) == gallery.vectors.shape[1] == 6
    assert Score(classes=PULL).dimension(4) == 4
    assert (gallery.vectors[:, -2] == 1).all()
    np.testing.assert_array_equal(gallery.vectors[:, -1], -gallery.offsets)
    np.testing.assert_array_equal(score.query_vectors(queries), np.hstack([queries, [[0, 1]] * 2]))
    assert (gallery.offsets[[1, 4, 7]] == 0).all()
    assert (gallery.offsets[[0, 2, 3, 5, 6]] != 0).all()


@pytest.mark.parametrize("score", scores(), ids=lambda score: score.kind)
def test_the_similarity_behind_a_score_can_be_had_again(score: Score) -> None:
    """The cosine of the query and the pulled item, from the score, both densities and the offset."""
    items, query = unit_rows(8, 4, 1), unit_rows(1, 4, 2)
    gallery = score.gallery(items, LABELS)
    (vector,), (density_of_query,) = score.query_vectors_and_densities(query)
    found = score.similarities(gallery.vectors @ vector + gallery.offsets, density_of_query, gallery.densities)
    n = score.rows(items).shape[1]
    np.testing.assert_allclose(found, gallery.vectors[:, :n] @ score.rows(query)[0], atol=1e-6)


@pytest.mark.parametrize("score", scores(), ids=lambda score: score.kind)
@pytest.mark.parametrize(
    ("labels", "found"), [((), "found 0"), ([""] * 8, "found 0"), (["cup"] * 7, "expected 8 labels, found 7")]
)
def test_labels_are_needed_for_each_item(score: Score, labels: Sequence[str], found: str) -> None:
    with pytest.raises(InvalidInput, match=rf"a {score.kind} score takes the label of each item: .*{found}"):
        score.gallery(unit_rows(8, 4), labels)


@pytest.mark.parametrize("score", scores(), ids=lambda score: score.kind)
def test_a_set_is_not_compared_with_itself(score: Score) -> None:
    with pytest.raises(InvalidInput, match="a labelled gallery, not one set with itself"):
        score.vectors(unit_rows(8, 4))


def test_a_score_without_labels_does_not_look_at_them() -> None:
    found, expected = Score().gallery(unit_rows(2, 4), ["cup", "cup"]), Score().gallery(unit_rows(2, 4))
    assert found.classes is None
    assert found.vectors.tobytes() == expected.vectors.tobytes()
    assert isinstance(found, GalleryVectors)


# the artefact


def test_digests_of_scores_without_labels_have_not_changed() -> None:
    """Stores that earlier versions wrote are still found: these names may not change."""
    eye = np.eye(3, dtype=np.float32)
    plain = Score(cohort=eye, k=1)
    extended = Score(cohort=eye, k=2, weight=0.25, ignore_above=0.5, whitening=Whitening(np.zeros(3, np.float32), eye))
    assert [score.digest for score in (Score(), plain, extended)] == [
        "73868bba72cfba211e94c0c47de16959",
        "16b76a3e035656f1bbb847a6412ec1f4",
        "444aad44dbb63c448dffb0748d7bf09f",
    ]


def test_the_file_of_a_catalogue_score() -> None:
    """Format 3: a version that knows no such score refuses it. This name may not change either."""
    document = {
        "format": 3,
        "kind": "catalogue cosine",
        "k": 0,
        "cohort": None,
        "weight": 0.5,
        "ignore_above": None,
        "whitening": None,
        "classes": {"pull": 0.5, "offset_weight": 0.0, "typical": None},
    }
    score = Score(classes=ClassTerms(pull=0.5))
    assert score.files() == {SCORE: json_bytes(document)}
    assert score.digest == digest_json(document)


def test_every_term_enters_the_digest() -> None:
    """A score with other terms makes other vectors, so it has another name."""
    names = [field.name for field in fields(ClassTerms)]
    stored = json.loads(Score(classes=PULL).files()[SCORE])["classes"]
    assert sorted([*stored, "lone_offset"]) == sorted(names)  # left out where it is 0
    plain = Score()
    assert OFFSET.typical is not None
    typical = [replace(OFFSET.typical, **{field.name: 0.05}) for field in fields(TypicalClass)]
    terms = [PULL, ClassTerms(pull=0.6), OFFSET, replace(OFFSET, offset_weight=0.4), replace(OFFSET, lone_offset=0.1)]
    terms += [replace(OFFSET, typical=changed) for changed in typical]
    found = [plain, *(replace(plain, classes=each) for each in terms)]
    assert len({score.digest for score in found}) == len(found)


@pytest.mark.parametrize("score", scores(), ids=lambda score: score.kind)
def test_files_round_trip(score: Score, tmp_path: Path) -> None:
    digest = write(tmp_path / "score", score)
    opened = open_score(tmp_path / "score", digest)
    assert (opened.digest, opened.kind, opened.classes) == (digest, score.kind, score.classes)
    items = unit_rows(8, 4, 3)
    assert opened.gallery(items, LABELS).vectors.tobytes() == score.gallery(items, LABELS).vectors.tobytes()


def test_whole_numbers_are_read_back_as_they_were_written(tmp_path: Path) -> None:
    """A pull of 1 and one of 1.0 are one score."""
    score = Score(classes=ClassTerms(pull=1))
    assert score.digest == Score(classes=ClassTerms(pull=1.0)).digest
    assert open_score(tmp_path / "score", write(tmp_path / "score", score)).digest == score.digest


TYPICAL = {"within": 0.6, "between": -1.0, "variance": 0.5, "density": 0.3}
WRITTEN = {"pull": 0.7, "offset_weight": 0.5, "typical": TYPICAL}


@pytest.mark.parametrize(
    "classes",
    [
        WRITTEN | {"pull": 1.5},
        WRITTEN | {"pull": -0.1},
        WRITTEN | {"pull": "0.7"},
        WRITTEN | {"pull": None},
        WRITTEN | {"offset_weight": -1.0},
        WRITTEN | {"typical": None},
        WRITTEN | {"typical": [0.6, 0.1, 0.02, 0.3]},
        WRITTEN | {"typical": TYPICAL | {"variance": 0.0}},
        WRITTEN | {"typical": TYPICAL | {"within": "0.6"}},
        WRITTEN | {"typical": TYPICAL | {"more": 1.0}},
        WRITTEN | {"typical": {"within": 0.6}},
        WRITTEN | {"more": 1},
        {"offset_weight": 0.0, "typical": None},
        {},
        [],
        0.7,
        None,
    ],
)
def test_damaged_classes_are_refused(classes: object, tmp_path: Path) -> None:
    """Also in a document whose digest is right: what it says must be a score that can be."""
    digest = write(tmp_path / "score", scores()[4])
    path = tmp_path / "score" / SCORE
    document = json.loads(path.read_bytes())
    assert document["classes"] == WRITTEN
    path.write_bytes(json_bytes(document | {"classes": classes}))
    for expected in (digest, ScoreDigest(digest_json(document | {"classes": classes}))):
        with pytest.raises(CorruptArtifact, match="score"):
            open_score(tmp_path / "score", expected)


def test_other_terms_are_another_score(tmp_path: Path) -> None:
    """A value that can be, and is not the one that was written."""
    digest = write(tmp_path / "score", scores()[4])
    path = tmp_path / "score" / SCORE
    path.write_bytes(path.read_bytes().replace(b'"pull": 0.7', b'"pull": 0.6'))
    with pytest.raises(CorruptArtifact, match=f"expected digest {digest}, its content has"):
        open_score(tmp_path / "score", digest)


@pytest.mark.parametrize("name", [SCORE, COHORT])
def test_every_truncated_file_is_refused(name: str, tmp_path: Path) -> None:
    digest = write(tmp_path / "score", scores()[1])
    path = tmp_path / "score" / name
    content = path.read_bytes()
    for length in range(0, len(content) - 2, 7):
        path.write_bytes(content[:length])
        with pytest.raises(CorruptArtifact, match="score"):
            open_score(tmp_path / "score", digest)


@pytest.mark.parametrize("change", [{"format": 2}, {"format": 1}, {"kind": "cohort"}, {"k": 3}, {"weight": 0.3}])
def test_a_document_that_no_score_writes_is_refused(change: dict[str, object], tmp_path: Path) -> None:
    write(tmp_path / "score", scores()[1])
    path = tmp_path / "score" / SCORE
    document = json.loads(path.read_bytes()) | change
    path.write_bytes(json_bytes(document))
    if set(change) & {"k", "weight"}:
        assert open_score(tmp_path / "score", ScoreDigest(digest_json(document))).kind == "catalogue cohort"
        return
    with pytest.raises(CorruptArtifact, match="expected digest"):
        open_score(tmp_path / "score", ScoreDigest(digest_json(document)))


@pytest.mark.parametrize("pull", [-0.1, 1.1, np.nan])
def test_a_pull_is_a_share(pull: float) -> None:
    with pytest.raises(InvalidEmbeddings, match=r"a pull in \[0, 1\]"):
        ClassTerms(pull=pull)
