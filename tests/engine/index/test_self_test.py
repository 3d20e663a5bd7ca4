"""An index that is opened answers stored queries first; wrong answers are refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from retrieval.engine.index.exact.layout import as_queries
from retrieval.engine.index.index import Index
from retrieval.engine.index.open import build_index, load_index
from retrieval.engine.index.self_test import SelfTest
from retrieval.engine.index.spec import IndexSpec
from retrieval.errors import CorruptArtifact
from tests.engine.index.exact.galleries import KINDS, Vectors, clustered, scores, with_offset

SPECS = ["Exact", "Flat", "IVF6,nprobe=2", "IVF6,RaBitQ,nprobe=6", "HNSW6,ef=12"]
WHERE = Path("here")


def made(text: str, n: int = 400, threshold: float = 0.5) -> tuple[Index, Vectors, SelfTest]:
    vectors = clustered(n, 16, np.random.default_rng(0))
    index = build_index(vectors, IndexSpec.parse(text), threshold=threshold)
    return index, vectors, SelfTest.record(index, vectors, threshold)


@pytest.mark.parametrize("text", SPECS)
def test_an_index_passes_its_own_test(text: str) -> None:
    index, _, test = made(text)
    test.check(index, WHERE)
    assert (len(test.queries), test.queries.shape[1]) == (100, 16)
    assert test.scores.min() >= test.threshold >= 0.5
    again = SelfTest.read(test.arrays(), WHERE, 16)
    again.check(index, WHERE)


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_any_gallery_has_a_test_of_few_hits(kind: str) -> None:
    """With no threshold, and with many equal vectors, too."""
    rng = np.random.default_rng(0)
    for n in (1, 7, 3000):
        vectors = KINDS[kind](n, 8, rng)
        index = build_index(vectors, IndexSpec.parse("Flat"))
        test = SelfTest.record(index, vectors, None)
        assert len(test.rows) <= 6000
        test.check(index, WHERE)


@pytest.mark.parametrize("text", SPECS)
def test_other_vectors_fail(text: str) -> None:
    """An index of as many vectors in another order, or with other scores, is refused."""
    _, vectors, test = made(text)
    for other in (vectors[::-1].copy(), vectors * np.float32(1.001)):
        changed = build_index(other, IndexSpec.parse(text), threshold=0.5)
        with pytest.raises(CorruptArtifact, match="index here fails its self-test: 100 queries have"):
            test.check(changed, WHERE)


def test_one_wrong_score_fails() -> None:
    index, _, test = made("Flat")
    wrong = test.scores.copy()
    wrong[3] = np.nextafter(wrong[3], np.float32(2))
    with pytest.raises(CorruptArtifact, match="self-test"):
        replace(test, scores=wrong).check(index, WHERE)


def test_an_approximate_index_may_lose_one_percent() -> None:
    index, _, test = made("HNSW6,ef=12")
    n = len(test.rows)
    rows = test.rows.copy()
    rows[: n // 200] = -1
    replace(test, rows=rows).check(index, WHERE)
    rows[: n // 50] = -1
    with pytest.raises(CorruptArtifact, match="self-test"):
        replace(test, rows=rows).check(index, WHERE)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("test_queries", np.zeros((100, 15), np.float32)),
        ("test_queries", np.zeros((0, 16), np.float32)),
        ("test_queries", np.full((100, 16), np.nan, np.float32)),
        ("test_counts", np.full(100, -1)),
        ("test_counts", np.zeros(99, np.int64)),
        ("test_rows", np.zeros(3, np.int64)),
        ("test_threshold", np.array([np.nan])),
        ("test_threshold", np.array(0.5)),
    ],
)
def test_a_damaged_test_is_refused(name: str, value: np.ndarray) -> None:
    _, _, test = made("Flat")
    with pytest.raises(CorruptArtifact, match="its self-test is damaged"):
        SelfTest.read({**test.arrays(), name: value}, WHERE, 16)
    with pytest.raises(CorruptArtifact, match=f"it has no self-test, '{name}' is missing"):
        SelfTest.read({key: array for key, array in test.arrays().items() if key != name}, WHERE, 16)


@pytest.mark.parametrize("text", SPECS[1:])
def test_an_index_that_answers_otherwise_is_not_opened(text: str, tmp_path: Path) -> None:
    """What a checksum does not show: the file is whole, but the answers are others."""
    index, vectors, test = made(text)
    wrong = test.scores.copy()
    wrong[:40] = np.nextafter(wrong[:40], np.float32(2))
    index.self_test = replace(test, scores=wrong)  # type: ignore[attr-defined]  # of these kinds
    index.save(tmp_path / "index")
    with pytest.raises(CorruptArtifact, match="fails its self-test"):
        load_index(tmp_path / "index", IndexSpec.parse(text), dimension=16, n_items=len(vectors))


def test_queries_of_a_gallery_with_an_offset() -> None:
    """The column of ones and the offset change places, as `contract/score.py` writes them."""
    vectors = with_offset(50, 6, np.random.default_rng(0))
    own = np.diag(scores(vectors, as_queries(vectors, offset=True)))
    np.testing.assert_allclose(own, (vectors[:, :6] ** 2).sum(axis=1) + 2 * vectors[:, -1], rtol=1e-5)
