"""The score is its definition, pair by pair; its digest is its content."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from retrieval.contract.score import COHORT, SCORE, Score, ScoreDigest, check_unit_rows, open_score
from retrieval.errors import CorruptArtifact, InvalidEmbeddings


def unit_rows(n: int, dimension: int, seed: int = 0) -> NDArray[np.float32]:
    rows = np.random.default_rng(seed).normal(size=(n, dimension))
    unit: NDArray[np.float32] = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
    return unit


def defined_density(x: NDArray[np.float32], cohort: NDArray[np.float32], k: int) -> float:
    """r(x): the mean of the k largest similarities, by sorting in double precision."""
    similarities = sorted((float(np.dot(x.astype(float), c.astype(float))) for c in cohort), reverse=True)
    return sum(similarities[:k]) / k


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


def test_cosine_leaves_the_embeddings_alone() -> None:
    embeddings = unit_rows(5, 4)
    score = Score()
    assert (score.kind, score.k, score.dimension(4)) == ("cosine", 0, 4)
    np.testing.assert_array_equal(score.query_vectors(embeddings), embeddings)
    np.testing.assert_array_equal(score.gallery_vectors(embeddings), embeddings)
    np.testing.assert_array_equal(score.density(embeddings), np.zeros(5))


@pytest.mark.parametrize("score", [Score(), Score(cohort=unit_rows(3, 4), k=2)])
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


@pytest.mark.parametrize(
    "cohort", [unit_rows(5, 4) * np.float32(1.01), np.full((2, 4), np.nan, np.float32), np.zeros((2, 4), np.float32)]
)
def test_a_cohort_has_unit_rows(cohort: NDArray[np.float32]) -> None:
    with pytest.raises(InvalidEmbeddings, match="the cohort: expected rows of norm 1"):
        Score(cohort=cohort, k=1)


def test_unit_rows() -> None:
    """NaN, infinity and a wrong shape are named with their row."""
    good = unit_rows(4, 3)
    check_unit_rows(good, "the rows")
    check_unit_rows(good[:0], "the rows")
    for value in (np.nan, np.inf, 2.0):
        bad = good.copy()
        bad[2, 1] = value
        with pytest.raises(InvalidEmbeddings, match=r"the rows: .* in row 2"):
            check_unit_rows(bad, "the rows")
    with pytest.raises(InvalidEmbeddings, match=r"the rows: expected an array \[n, d\], found shape \(3,\)"):
        check_unit_rows(good[0], "the rows")


def test_the_digest_is_that_of_the_content() -> None:
    """Equal content, equal name; another k, another row or another order, another name."""
    cohort = unit_rows(5, 4)
    digest = Score(cohort=cohort, k=2).digest
    assert Score(cohort=np.asfortranarray(cohort.copy()), k=2).digest == digest
    assert len({digest, Score(cohort=cohort, k=3).digest, Score(cohort=cohort[::-1], k=2).digest, Score().digest}) == 4


def test_digests_are_stable() -> None:
    """A store written by an older version is still found: this name may not change."""
    content = b'{\n "cohort": null,\n "format": 1,\n "k": 0,\n "kind": "cosine"\n}\n'
    assert Score().digest == hashlib.sha256(content).hexdigest()[:32]


@pytest.mark.parametrize("score", [Score(), Score(cohort=unit_rows(5, 4), k=2)])
def test_files_round_trip(score: Score, tmp_path: Path) -> None:
    digest = write(tmp_path / "score", score)
    opened = open_score(tmp_path / "score", digest)
    assert (opened.digest, opened.kind, opened.k) == (digest, score.kind, score.k)
    np.testing.assert_array_equal(opened.density(unit_rows(6, 4, 3)), score.density(unit_rows(6, 4, 3)))


@pytest.mark.parametrize("name", [SCORE, COHORT])
def test_every_damaged_file_is_refused(name: str, tmp_path: Path) -> None:
    """Truncated anywhere, changed or missing: never another score in its place."""
    digest = write(tmp_path / "score", Score(cohort=unit_rows(5, 4), k=2))
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
