"""Every kind of index keeps the same promises: exact scores, nothing below the threshold, filters, files that open."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from retrieval.engine.index import faiss_native
from retrieval.engine.index.index import Hits, Index
from retrieval.engine.index.open import build_index, load_index
from retrieval.engine.index.spec import IndexSpec
from retrieval.errors import CorruptArtifact, InvalidEmbeddings, InvalidInput
from tests.engine.index.cagra_on_cpu import cagra_on_cpu
from tests.engine.index.exact.galleries import KINDS, Vectors, clustered, queries_of, rounded, scores, unit

COMPLETE = ["Exact", "Exact,fp16", "Flat", "IVF6,nprobe=6", "IVF6,SQfp16,nprobe=6"]
GRAPHS = ["HNSW6,ef=12", "CAGRA8,ef=12"]
APPROXIMATE = ["IVF6,nprobe=2", "IVF6,SQfp16,nprobe=2", "IVF6,RaBitQ,nprobe=6", "IVF6,RaBitQ,nprobe=2", *GRAPHS]
PQ = "IVF6,PQ4,nprobe=6"
TOO_LARGE_FOR_16_BITS = {"of any norm", "offset", "huge offset"}


@pytest.fixture(scope="module", autouse=True)
def _graphs_without_a_gpu() -> Iterator[None]:
    """All but the call of the GPU is what a server with CAGRA runs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(faiss_native, "cagra_on_gpu", cagra_on_cpu)
        yield


def built(text: str, vectors: Vectors, threshold: float | None = None) -> Index:
    return build_index(vectors, IndexSpec.parse(text), threshold=threshold)


def as_lists(hits: list[Hits]) -> list[list[tuple[int, float]]]:
    return [list(zip(each.positions.tolist(), each.scores.tolist(), strict=True)) for each in hits]


def expected(all_scores: Vectors, threshold: float, allowed: NDArray[np.bool_]) -> list[list[tuple[int, float]]]:
    """Every allowed row with score >= threshold, best first, ties by row."""
    rows = [
        [(row, score) for row, score in enumerate(line.tolist()) if score >= threshold and allowed[row]]
        for line in all_scores
    ]
    return [sorted(hits, key=lambda hit: (-hit[1], hit[0])) for hits in rows]


def small(text: str = "", n: int = 400, d: int = 16) -> tuple[Vectors, Vectors, float]:
    """Vectors, queries, and a threshold that about 1 % of the pairs reach: the score of one of them."""
    n = 10_000 if text == PQ else n
    rng = np.random.default_rng(1)
    vectors = clustered(n, d, rng)
    queries = queries_of(vectors, "clustered", 20, rng)
    return vectors, queries, float(np.quantile(scores(vectors, queries), 0.99, method="nearest"))


@given(
    text=st.sampled_from(COMPLETE + APPROXIMATE),
    kind=st.sampled_from(sorted(KINDS)),
    n=st.integers(234, 400),
    d=st.integers(2, 40),
    share=st.sampled_from([0.0, 0.003, 0.1, 0.6, 1.0]),
    seed=st.integers(0, 999),
    data=st.data(),
)
@settings(max_examples=60, deadline=None)
def test_scores_are_exact_and_reach_the_threshold(
    text: str, kind: str, n: int, d: int, share: float, seed: int, data: st.DataObject
) -> None:
    """A complete kind finds what brute force in float64 finds, for any data; an approximate one a part of it."""
    rng = np.random.default_rng(seed)
    vectors = KINDS[kind](n, d, rng)
    queries = queries_of(vectors, kind, data.draw(st.sampled_from([1, 5, 17])), rng)
    all_scores = scores(rounded(vectors) if text == "Exact,fp16" else vectors, queries)
    threshold = data.draw(st.sampled_from([-1.0, 0.0, 1.0]) | st.sampled_from(all_scores.ravel()[:99].tolist()))
    allowed = rng.random(n) < share
    try:
        index = built(text, vectors, threshold)
    except InvalidInput:
        assert "fp16" in text
        assert kind in TOO_LARGE_FOR_16_BITS
        return
    for filtered, wanted in (
        (None, expected(all_scores, threshold, np.ones(n, np.bool_))),
        (allowed, expected(all_scores, threshold, allowed)),
    ):
        found = as_lists(index.above(queries, threshold, filtered))
        if text in COMPLETE:
            assert found == wanted
        for mine, theirs in zip(found, wanted, strict=True):
            hits = set(mine)
            assert mine == [hit for hit in theirs if hit in hits]


@pytest.mark.parametrize("text", [*COMPLETE, *APPROXIMATE, PQ])
def test_a_filter_loses_nothing(text: str) -> None:
    """What is found without the filter, and may be found, is found with it: few rows, some, many, none."""
    vectors, queries, threshold = small(text)
    index = built(text, vectors, threshold)
    for batch in (queries[:3], queries):
        without = index.above(batch, threshold)
        for share in (0.0, 0.01, 0.15, 0.5, 1.0):
            allowed = np.random.default_rng(2).random(len(vectors)) < share
            for some, every in zip(index.above(batch, threshold, allowed), without, strict=True):
                assert allowed[some.positions].all()
                assert set(every.positions[allowed[every.positions]].tolist()) <= set(some.positions.tolist())


@pytest.mark.parametrize("text", [*COMPLETE, *APPROXIMATE, PQ])
def test_a_batch_finds_what_single_queries_find(text: str) -> None:
    """One query is much longer than the others: it does not change what they find."""
    vectors, queries, threshold = small(text)
    queries[3] *= 50
    index = built(text, vectors, threshold)
    alone = [hits for query in queries for hits in index.above(query[None], threshold)]
    assert as_lists(index.above(queries, threshold)) == as_lists(alone)


@pytest.mark.parametrize("text", [*COMPLETE, *APPROXIMATE, PQ])
def test_saved_and_opened_it_answers_the_same(text: str, tmp_path: Path) -> None:
    vectors, queries, threshold = small(text)
    index = built(text, vectors, threshold)
    index.save(tmp_path / "index")
    opened = load_index(tmp_path / "index", IndexSpec.parse(text), dimension=16, n_items=len(vectors))
    assert as_lists(opened.above(queries, threshold)) == as_lists(index.above(queries, threshold))
    assert (opened.n_items, opened.dimension, str(opened.spec)) == (len(vectors), 16, text)
    assert opened.details() == json.loads(json.dumps(index.details())) == index.details()
    assert opened.details()["complete"] is (text in COMPLETE)
    opened.save(tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == (tmp_path / "index").read_bytes()


_OPEN = """
import sys, json, numpy as np
from pathlib import Path
from retrieval.engine.index.open import load_index
from retrieval.engine.index.spec import IndexSpec
folder, threshold = Path(sys.argv[1]), float(sys.argv[2])
queries = np.load(folder / "queries.npy")
answers = {}
for text in sys.argv[3:]:
    n = 10_000 if "PQ" in text else 400
    index = load_index(folder / text.replace(",", "-"), IndexSpec.parse(text), dimension=16, n_items=n)
    answers[text] = [[hits.positions.tolist(), hits.scores.tolist()] for hits in index.above(queries, threshold)]
print(json.dumps(answers))
"""


@pytest.mark.slow
@pytest.mark.e2e
def test_another_process_opens_every_kind(tmp_path: Path) -> None:
    """The other process finds the same rows and the same scores."""
    kinds = [*COMPLETE, *APPROXIMATE, PQ]
    _, queries, threshold = small()
    np.save(tmp_path / "queries.npy", queries)
    answers = {}
    for text in kinds:
        vectors, _, _ = small(text)
        index = built(text, vectors, threshold)
        index.save(tmp_path / text.replace(",", "-"))
        answers[text] = [[hits.positions.tolist(), hits.scores.tolist()] for hits in index.above(queries, threshold)]
    command = [sys.executable, "-c", _OPEN, str(tmp_path), repr(threshold), *kinds]
    run = subprocess.run(command, check=True, capture_output=True, text=True)
    assert json.loads(run.stdout) == answers


@pytest.mark.parametrize("text", ["Flat", "IVF2,nprobe=1", "IVF2,SQfp16,nprobe=2", "IVF2,RaBitQ,nprobe=2", *GRAPHS])
def test_a_flipped_bit_anywhere_is_refused(text: str, tmp_path: Path) -> None:
    """FAISS trusts the sizes in its files, so it never sees damaged bytes."""
    vectors, _, threshold = small(n=90)
    spec = IndexSpec.parse(text)
    built(text, vectors, threshold).save(tmp_path / "index")
    whole = (tmp_path / "index").read_bytes()
    rng = np.random.default_rng(0)
    for place in [*range(24), *rng.integers(len(whole), size=100).tolist(), len(whole) - 1]:
        damaged = bytearray(whole)
        damaged[place] ^= 1 << int(rng.integers(8))
        (tmp_path / "damaged").write_bytes(damaged)
        with pytest.raises(CorruptArtifact, match="damaged"):
            load_index(tmp_path / "damaged", spec, dimension=16, n_items=90)


@pytest.mark.parametrize("text", [*COMPLETE, "HNSW6,ef=12"])
def test_a_filter_of_another_shape_is_refused(text: str) -> None:
    vectors, queries, threshold = small()
    index = built(text, vectors, threshold)
    wrong: list[Any] = [np.ones(399, np.bool_), np.ones((1, 400), np.bool_), np.ones(400, np.uint8)]
    for bad in wrong:
        with pytest.raises(InvalidEmbeddings, match="expected"):
            index.above(queries, threshold, bad)


@pytest.mark.parametrize("text", ["Flat", "HNSW6,ef=12", "IVF6,nprobe=2"])
def test_norms_that_overflow_float32_are_scored(text: str) -> None:
    """FAISS's sums are infinite there; the exact score is not."""
    vectors, _, _ = small()
    vectors[:5] *= np.float32(1e30)
    query = vectors[7:8] * np.float32(1e30)
    found = as_lists(built(text, vectors).above(query, 0.0))
    with np.errstate(over="ignore"):
        assert found == expected(scores(vectors, query), 0.0, np.ones(400, np.bool_))


def test_codes_lower_the_threshold_by_what_was_measured() -> None:
    """Without the lowered threshold RaBitQ finds less."""
    rng = np.random.default_rng(3)
    vectors = unit(rng.normal(size=(300, 24))[rng.integers(300, size=3000)] + 0.7 * rng.normal(size=(3000, 24)))
    threshold = 0.6
    index = built("IVF6,RaBitQ,nprobe=6", vectors, threshold)
    details = index.details()
    assert details["measured_slack"] > 0.01
    assert details["measured_on"] > 1000
    all_scores = scores(vectors, vectors[:200])
    wanted = (all_scores >= threshold).sum()
    found = sum(len(hits.positions) for hits in index.above(vectors[:200], threshold))
    assert found / wanted > 0.98
    lists = index._native  # type: ignore[attr-defined]  # FAISS alone
    limits, _, rows = lists.range_search(vectors[:200] @ index._turn, threshold)  # type: ignore[attr-defined]
    numbers = np.repeat(np.arange(200), np.diff(limits.astype(np.int64)))
    assert (all_scores[numbers, rows] >= threshold).sum() < found


def test_what_a_kind_cannot_promise_is_stated() -> None:
    vectors, _, threshold = small()
    for text in GRAPHS:
        assert "no complete range search" in built(text, vectors, threshold).details()["cannot_promise"]
    assert "list that is not looked at" in built("IVF6,nprobe=2", vectors, threshold).details()["cannot_promise"]
    assert "cannot_promise" not in built("Flat", vectors, threshold).details()


def test_torch_utils_of_faiss_in_the_same_process_changes_nothing() -> None:
    """pytorch-metric-learning imports it; it replaces methods of FAISS by others that take no parameters."""
    script = (
        "import faiss.contrib.torch_utils\n"
        "import numpy as np\n"
        "from tests.engine.index.test_kinds import APPROXIMATE, COMPLETE, as_lists, built, expected, small\n"
        "from tests.engine.index.exact.galleries import scores\n"
        "vectors, queries, threshold = small()\n"
        "allowed = np.arange(len(vectors)) % 3 == 0\n"
        "wanted = expected(scores(vectors, queries), threshold, allowed)\n"
        "for text in ['Exact', 'Flat', *APPROXIMATE[:-1]]:\n"
        "    found = as_lists(built(text, vectors, threshold).above(queries, threshold, allowed))\n"
        "    correct = [set(hits) <= set(all_hits) for hits, all_hits in zip(found, wanted)]\n"
        "    assert found == wanted if text in COMPLETE else all(correct), text\n"
        "print('equal')\n"
    )
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=300, check=False)
    assert ran.stdout == "equal\n", ran.stderr


def test_a_graph_answers_more_queries_than_faiss_survives() -> None:
    """FAISS 1.15 ends the process if a range search in a graph has more: here some 30."""
    rng = np.random.default_rng(7)
    vectors = unit(rng.normal(size=(2000, 128)))
    index = built("HNSW8,ef=9000", vectors, 0.3)
    queries = vectors[:200]
    assert as_lists(index.above(queries, 0.3)) == [as_lists(index.above(query[None], 0.3))[0] for query in queries]
    assert all(0 in hits.positions - number for number, hits in enumerate(index.above(queries, 0.3)))
