"""The score is its definition, pair by pair; its digest is its content."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from retrieval.consistency import Whitening
from retrieval.contract.canonical import digest_array
from retrieval.contract.score import (
    CENTRE,
    COHORT,
    PROJECTION,
    SCORE,
    Score,
    ScoreDigest,
    cohort_score,
    open_score,
)
from retrieval.errors import CorruptArtifact, InvalidEmbeddings


def unit_rows(n: int, dimension: int, seed: int = 0) -> NDArray[np.float32]:
    rows = np.random.default_rng(seed).normal(size=(n, dimension))
    unit: NDArray[np.float32] = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
    return unit


def defined_density(x: NDArray[np.float32], cohort: NDArray[np.float32], k: int) -> float:
    """r(x): the mean of the k largest similarities, by sorting in double precision."""
    similarities = sorted((float(np.dot(x.astype(float), c.astype(float))) for c in cohort), reverse=True)
    return sum(similarities[:k]) / k


def whitening(dimension: int = 4, columns: int = 4, seed: int = 7) -> Whitening:
    rng = np.random.default_rng(seed)
    return Whitening(
        centre=(0.1 * rng.normal(size=dimension)).astype(np.float32),
        projection=rng.normal(size=(dimension, columns)).astype(np.float32),
    )


def extended_score() -> Score:
    """Everything that a score can hold."""
    return cohort_score(unit_rows(9, 4), k=2, weight=0.3, ignore_above=0.999, whitening=whitening(4, 3))


def write(directory: Path, score: Score) -> ScoreDigest:
    directory.mkdir()
    for name, data in score.files().items():
        (directory / name).write_bytes(data)
    return score.digest


@given(
    n=st.integers(1, 8),
    dimension=st.integers(2, 9),
    n_cohort=st.integers(1, 12),
    data=st.data(),
    seed=st.integers(0, 9),
)
def test_cohort_score_is_its_definition(n: int, dimension: int, n_cohort: int, data: st.DataObject, seed: int) -> None:
    """s - (r(a) + r(b)) / 2 for every pair, computed one by one."""
    k = data.draw(st.integers(1, n_cohort))
    score = Score(cohort=unit_rows(n_cohort, dimension, seed + 100), k=k)
    embeddings = unit_rows(n, dimension, seed)
    assert score.cohort is not None
    densities = [defined_density(x, score.cohort, k) for x in embeddings]
    cosines = embeddings.astype(float) @ embeddings.T.astype(float)
    expected = [[cosines[a, b] - (densities[a] + densities[b]) / 2 for b in range(n)] for a in range(n)]
    queries, gallery = score.query_vectors(embeddings), score.gallery_vectors(embeddings)
    assert queries.dtype == gallery.dtype == np.float32
    assert queries.shape == gallery.shape == (n, score.dimension(dimension)) == (n, dimension + 2)
    np.testing.assert_allclose(score.density(embeddings), densities, atol=1e-6)  # sums in float32
    np.testing.assert_allclose(queries @ gallery.T, expected, atol=1e-6)


def test_the_cohort_score_is_symmetric() -> None:
    """Which of two pictures is the query does not matter."""
    score, embeddings = Score(cohort=unit_rows(30, 8, 1), k=5), unit_rows(10, 8)
    scores = score.query_vectors(embeddings) @ score.gallery_vectors(embeddings).T
    np.testing.assert_allclose(scores, scores.T, atol=1e-6)


@given(n=st.integers(1, 8), dimension=st.integers(2, 9), data=st.data(), seed=st.integers(0, 9))
def test_whitened_cohort_score_is_its_definition(n: int, dimension: int, data: st.DataObject, seed: int) -> None:
    """s' - w (r(a) + r(b)) for every pair, in double precision; s' and r of the whitened unit vectors."""
    n_cohort = data.draw(st.integers(1, 12))
    k, columns = data.draw(st.integers(1, n_cohort)), data.draw(st.integers(1, dimension))
    weight = data.draw(st.floats(0.1, 1))
    chosen = whitening(dimension, columns, seed)
    embeddings, cohort = unit_rows(n, dimension, seed), unit_rows(n_cohort, dimension, seed + 100)
    score = cohort_score(cohort, k=k, weight=weight, whitening=chosen)

    def mapped(rows: NDArray[np.float32]) -> NDArray[np.float64]:
        images = np.array([chosen.projection.T.astype(float) @ (x.astype(float) - chosen.centre) for x in rows])
        return np.asarray(images / np.linalg.norm(images, axis=1, keepdims=True), dtype=np.float64)

    rows, others = mapped(embeddings), mapped(cohort)
    densities = np.array([sum(sorted(others @ x, reverse=True)[:k]) / k for x in rows])
    expected = rows @ rows.T - weight * (densities[:, None] + densities[None, :])
    queries, gallery = score.query_vectors(embeddings), score.gallery_vectors(embeddings)
    assert score.kind == "whitened cohort"
    assert queries.dtype == gallery.dtype == np.float32
    assert queries.shape == gallery.shape == (n, score.dimension(dimension)) == (n, columns + 2)
    # Rows near the whitening's centre are scaled up, and rounding with them.
    np.testing.assert_allclose(score.density(embeddings), densities, atol=1e-4)
    np.testing.assert_allclose(queries @ gallery.T, expected, atol=1e-4)


def separately(score: Score, embeddings: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """The densities, and the vectors' density columns, from two whitenings and two searches of the cohort."""
    columns = []
    for _ in range(2):
        rows = embeddings if score.whitening is None else score.whitening.apply(embeddings)
        densities = np.zeros(len(rows), dtype=np.float32)
        for start in range(0, len(rows) if score.cohort is not None else 0, 4096):
            assert score.cohort is not None
            similarities = rows[start : start + 4096] @ score.cohort.T
            if score.ignore_above is not None:
                similarities[similarities >= score.ignore_above] = -np.inf
            largest = np.partition(similarities, similarities.shape[1] - score.k, axis=1)[:, -score.k :]
            if score.ignore_above is None:
                densities[start : start + 4096] = largest.mean(axis=1)
                continue
            sums, n_counted = np.where(np.isfinite(largest), largest, 0).sum(axis=1), np.isfinite(largest).sum(axis=1)
            means = np.where(n_counted > 0, sums / np.maximum(n_counted, 1), score.ignore_above)
            densities[start : start + 4096] = means.astype(np.float32)
        columns.append(densities)
    return columns[0], np.float32(-score.weight) * columns[1]


@pytest.mark.parametrize("n", [0, 1, 7, 4097])
@pytest.mark.parametrize(
    "score",
    [
        Score(),
        Score(cohort=unit_rows(40, 24), k=5),
        cohort_score(unit_rows(40, 24), k=5, weight=0.3, ignore_above=0.3, whitening=whitening(24, 20)),
    ],
    ids=["cosine", "cohort", "whitened"],
)
def test_vectors_and_densities_together_are_those_computed_apart(score: Score, n: int) -> None:
    """To the last bit: one whitening and one search of the cohort give what two gave."""
    embeddings = unit_rows(n, 24, 3)
    densities, offsets = separately(score, embeddings)
    queries, of_queries = score.query_vectors_and_densities(embeddings)
    items = score.gallery(embeddings)
    gallery, of_gallery = items.vectors, items.densities
    for found in (of_queries, of_gallery, score.density(embeddings)):
        assert found.tobytes() == densities.tobytes()
    assert queries.tobytes() == score.query_vectors(embeddings).tobytes() == score.vectors(embeddings)[0].tobytes()
    assert gallery.tobytes() == score.gallery_vectors(embeddings).tobytes() == score.vectors(embeddings)[1].tobytes()
    if score.cohort is not None:
        assert queries[:, -2].tobytes() == gallery[:, -1].tobytes() == offsets.tobytes()


@pytest.mark.parametrize("score", [Score(), Score(cohort=unit_rows(9, 4), k=2), extended_score()])
def test_the_similarity_behind_a_score_can_be_had_again(score: Score) -> None:
    """The similarity that users see next to the score is the cosine, after the whitening."""
    embeddings = unit_rows(6, 4, 3)
    densities = score.density(embeddings)
    rows = score.whitening.apply(embeddings) if score.whitening else embeddings
    scores = (score.query_vectors(embeddings[:1]) @ score.gallery_vectors(embeddings).T)[0]
    found = score.similarities(scores, float(densities[0]), densities)
    np.testing.assert_allclose(found, rows @ rows[0], atol=1e-6)
    assert found.dtype == np.float32


def test_a_picture_in_the_cohort_is_left_out_of_its_own_density() -> None:
    """By hand: similarities 1, 0.8, 0.6 and -1 to the cohort; the first is the picture itself."""
    x = np.array([[1, 0]], dtype=np.float32)
    cohort = np.array([[1, 0], [0.8, 0.6], [0.6, -0.8], [-1, 0]], dtype=np.float32)
    cases = {(2, None): 0.9, (2, 0.999): 0.7, (4, 0.999): 0.4 / 3, (2, 0.7): -0.2, (1, -0.5): -1.0}
    for (k, ignore_above), expected in cases.items():
        found = Score(cohort=cohort, k=k, ignore_above=ignore_above).density(x)
        np.testing.assert_allclose(found, [expected], atol=1e-6)
    alone = Score(cohort=cohort[:1], k=1, ignore_above=0.999)
    np.testing.assert_allclose(alone.density(x), [0.999], atol=1e-6)  # nothing is left: the most that it can be


def test_cosine_leaves_the_embeddings_alone() -> None:
    embeddings = unit_rows(5, 4)
    score = Score()
    assert (score.kind, score.k, score.dimension(4)) == ("cosine", 0, 4)
    np.testing.assert_array_equal(score.query_vectors(embeddings), embeddings)
    np.testing.assert_array_equal(score.gallery_vectors(embeddings), embeddings)
    np.testing.assert_array_equal(score.density(embeddings), np.zeros(5))


@pytest.mark.parametrize("score", [Score(), Score(cohort=unit_rows(3, 4), k=2), extended_score()])
def test_no_embedding_gives_no_vector(score: Score) -> None:
    assert score.query_vectors(np.empty((0, 4), np.float32)).shape == (0, score.dimension(4))
    assert score.gallery_vectors(np.empty((0, 4), np.float32)).shape == (0, score.dimension(4))


def test_density_does_not_depend_on_the_tile() -> None:
    """Rows beyond the first tile get the density they would get alone."""
    score, embeddings = Score(cohort=unit_rows(10, 4, 1), k=3), unit_rows(5000, 4)
    np.testing.assert_allclose(score.density(embeddings)[4090:4105], score.density(embeddings[4090:4105]), atol=1e-6)


@pytest.mark.parametrize("k", [0, -1, 6])
def test_k_is_between_one_and_the_cohort(k: int) -> None:
    with pytest.raises(InvalidEmbeddings, match=rf"1 <= k <= 5 cohort rows, found k = {k}"):
        Score(cohort=unit_rows(5, 4), k=k)


@pytest.mark.parametrize("weight", [0.0, -0.5, 1.1, np.nan])
def test_the_weight_is_a_share(weight: float) -> None:
    with pytest.raises(InvalidEmbeddings, match=r"weight in \(0, 1\]"):
        Score(cohort=unit_rows(5, 4), k=2, weight=weight)


@pytest.mark.parametrize("ignore_above", [-1.0, 1.1, np.nan])
def test_ignore_above_is_a_similarity(ignore_above: float) -> None:
    with pytest.raises(InvalidEmbeddings, match=r"ignore_above in \(-1, 1\]"):
        Score(cohort=unit_rows(5, 4), k=2, ignore_above=ignore_above)


def test_what_needs_a_cohort_is_refused_without_one() -> None:
    """Otherwise a cosine would carry settings that do nothing."""
    for options in ({"weight": 0.3}, {"ignore_above": 0.9}, {"whitening": whitening()}):
        with pytest.raises(InvalidEmbeddings, match="expected a cohort"):
            Score(**options)  # type: ignore[arg-type]  # one of several types


def test_the_cohort_lies_where_the_whitening_maps_to() -> None:
    with pytest.raises(InvalidEmbeddings, match="expected a cohort of 3 columns"):
        Score(cohort=unit_rows(5, 4), k=2, whitening=whitening(4, 3))


@pytest.mark.parametrize(
    "cohort", [unit_rows(5, 4) * np.float32(1.01), np.full((2, 4), np.nan, np.float32), np.zeros((2, 4), np.float32)]
)
def test_a_cohort_has_unit_rows(cohort: NDArray[np.float32]) -> None:
    with pytest.raises(InvalidEmbeddings, match="the cohort: expected rows of norm 1"):
        Score(cohort=cohort, k=1)


def test_the_digest_is_that_of_the_content() -> None:
    """Equal content, equal name; another k, another row or another order, another name."""
    cohort = unit_rows(5, 4)
    digest = Score(cohort=cohort, k=2).digest
    assert Score(cohort=np.asfortranarray(cohort.copy()), k=2).digest == digest
    assert len({digest, Score(cohort=cohort, k=3).digest, Score(cohort=cohort[::-1], k=2).digest, Score().digest}) == 4


def test_every_setting_enters_the_digest() -> None:
    cohort = unit_rows(9, 4)
    scores = [
        Score(cohort=cohort, k=2),
        Score(cohort=cohort, k=2, weight=0.3),
        Score(cohort=cohort, k=2, ignore_above=0.99),
        Score(cohort=cohort, k=2, whitening=Whitening(np.zeros(4, np.float32), np.eye(4, dtype=np.float32))),
        Score(cohort=cohort, k=2, whitening=Whitening(np.ones(4, np.float32), np.eye(4, dtype=np.float32))),
        Score(cohort=cohort, k=2, whitening=Whitening(np.zeros(4, np.float32), 2 * np.eye(4, dtype=np.float32))),
    ]
    assert len({score.digest for score in scores}) == len(scores)


def test_digests_of_cohorts_are_stable() -> None:
    """A cohort that was stored before there were weights and whitenings keeps its name and its file."""
    score = Score(cohort=np.eye(2, dtype=np.float32), k=1)
    assert score.files()[SCORE] == (
        b'{\n "cohort": "%s",\n "format": 1,\n "k": 1,\n "kind": "cohort"\n}\n'
        % digest_array(np.eye(2, dtype=np.float32)).encode()
    )


def test_digests_are_stable() -> None:
    """A store written by an older version is still found: this name may not change."""
    content = b'{\n "cohort": null,\n "format": 1,\n "k": 0,\n "kind": "cosine"\n}\n'
    assert Score().digest == hashlib.sha256(content).hexdigest()[:32]


@pytest.mark.parametrize("score", [Score(), Score(cohort=unit_rows(5, 4), k=2), extended_score()])
def test_files_round_trip(score: Score, tmp_path: Path) -> None:
    digest = write(tmp_path / "score", score)
    opened = open_score(tmp_path / "score", digest)
    assert (opened.digest, opened.kind, opened.k) == (digest, score.kind, score.k)
    assert (opened.weight, opened.ignore_above) == (score.weight, score.ignore_above)
    np.testing.assert_array_equal(opened.density(unit_rows(6, 4, 3)), score.density(unit_rows(6, 4, 3)))


@pytest.mark.parametrize("name", [SCORE, COHORT, CENTRE, PROJECTION])
def test_every_damaged_file_is_refused(name: str, tmp_path: Path) -> None:
    """Truncated anywhere, changed or missing: never another score in its place."""
    digest = write(tmp_path / "score", extended_score())
    path = tmp_path / "score" / name
    content = path.read_bytes()
    changed = content.replace(b'"k": 2', b'"k": 3') if name == SCORE else content[:-1] + bytes([content[-1] ^ 1])
    for damaged in [*(content[:length] for length in range(0, len(content) - 2, 7)), changed, b"[]", b"null"]:
        path.write_bytes(damaged)
        with pytest.raises(CorruptArtifact, match="score"):
            open_score(tmp_path / "score", digest)
    path.unlink()
    with pytest.raises(CorruptArtifact, match=name):
        open_score(tmp_path / "score", digest)


def test_another_score_in_its_place_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "score", Score())
    with pytest.raises(CorruptArtifact, match="expected digest 00"):
        open_score(tmp_path / "score", ScoreDigest("00"))
