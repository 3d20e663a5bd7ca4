"""The index finds exactly what reaches the threshold; what is damaged or does not fit is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from retrieval.engine.index import faiss_native
from retrieval.engine.index.faiss_native import n_gpus
from retrieval.engine.index.index import Hits, recall
from retrieval.engine.index.open import build_index, exact_hits, load_index
from retrieval.engine.index.recall import measure_recall
from retrieval.engine.index.spec import IndexSpec
from retrieval.errors import CorruptArtifact, DeviceUnavailable, InvalidEmbeddings, InvalidInput
from tests.engine.index.cagra_on_cpu import cagra_on_cpu
from tests.engine.index.exact.galleries import KINDS

Vectors = NDArray[np.float32]


def clustered(n: int, dimension: int = 16, n_clusters: int = 8, seed: int = 0) -> Vectors:
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(n_clusters, dimension))[rng.integers(n_clusters, size=n)]
    rows = rows + rng.normal(scale=0.3, size=(n, dimension))
    unit: Vectors = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
    return unit


def coarse(n: int, dimension: int, seed: int) -> Vectors:
    """Vectors of eighths: their products are exact in float32 whatever the order of the sum, and often equal."""
    return (np.random.default_rng(seed).integers(-4, 5, (n, dimension)) / 8).astype(np.float32)


def brute_force(vectors: Vectors, query: Vectors, threshold: float) -> list[tuple[int, float]]:
    """Every row with score >= threshold, best first, ties by position."""
    scores = [float(np.dot(row, query)) for row in vectors]
    return sorted(((i, s) for i, s in enumerate(scores) if s >= threshold), key=lambda hit: (-hit[1], hit[0]))


def as_pairs(hits: Hits) -> list[tuple[int, float]]:
    return list(zip(hits.positions.tolist(), hits.scores.tolist(), strict=True))


@given(
    n=st.integers(1, 60),
    n_queries=st.integers(1, 40),
    dimension=st.integers(1, 8),
    seed=st.integers(0, 99),
    eighths=st.integers(-16, 16),
    nudge=st.sampled_from([0.0, 1e-12, -1e-12]),
)
def test_flat_accepts_what_reaches_the_threshold(
    n: int, n_queries: int, dimension: int, seed: int, eighths: int, nudge: float
) -> None:
    """Ties with the threshold are in; a threshold that no float32 equals is not rounded to one."""
    vectors, queries = coarse(n, dimension, seed), coarse(n_queries, dimension, seed + 1000)
    threshold = eighths / 64 + nudge
    found = build_index(vectors, IndexSpec(kind="Flat")).above(queries, threshold)
    assert [as_pairs(hits) for hits in found] == [brute_force(vectors, query, threshold) for query in queries]
    assert all(hits.positions.dtype == np.int64 and hits.scores.dtype == np.float32 for hits in found)


@pytest.mark.parametrize("spec", ["Flat", "IVF8,nprobe=8"])
@pytest.mark.parametrize("rank", [0, 5, 50])
def test_a_score_equal_to_the_threshold_is_accepted(spec: str, rank: int) -> None:
    """The threshold of an operating point is itself the float32 score of some pair."""
    vectors = clustered(400)
    index = build_index(vectors, IndexSpec.parse(spec))
    (everything,) = index.above(vectors[7:8], -2.0)
    threshold = float(everything.scores[rank])
    (hits,) = index.above(vectors[7:8], threshold)
    assert len(hits.scores) == np.count_nonzero(everything.scores >= np.float32(threshold)) >= rank + 1
    (stricter,) = index.above(vectors[7:8], float(np.nextafter(np.float32(threshold), np.float32(2))))
    assert len(stricter.scores) == np.count_nonzero(everything.scores > np.float32(threshold))


@pytest.mark.parametrize("threshold", [0.0, -0.0, 0.5, 0.9])
def test_all_lists_probed_equals_flat(threshold: float) -> None:
    """An inverted index that looks at every list is exact."""
    vectors, queries = clustered(800), clustered(30, seed=1)
    spec = IndexSpec.parse("IVF16,nprobe=16")
    assert spec.is_exact
    found = build_index(vectors, spec).above(queries, threshold)
    expected = exact_hits(vectors, queries, threshold)
    assert recall(found, expected) == 1.0
    assert [len(hits.positions) for hits in found] == pytest.approx([len(hits.positions) for hits in expected], abs=1)


def test_few_lists_probed_is_a_subset() -> None:
    """An approximate index invents nothing, and recall counts what it missed."""
    vectors, queries = clustered(800, n_clusters=60), clustered(50, n_clusters=60, seed=1)
    spec = IndexSpec.parse("IVF16,nprobe=1")
    assert not spec.is_exact
    found, expected = build_index(vectors, spec).above(queries, 0.2), exact_hits(vectors, queries, 0.2)
    for got, wanted in zip(found, expected, strict=True):
        assert set(got.positions.tolist()) <= set(wanted.positions.tolist())
    n_found, n_expected = (sum(len(hits.positions) for hits in hits_of) for hits_of in (found, expected))
    assert recall(found, expected) == n_found / n_expected < 1


@pytest.mark.parametrize("batch", [1, 15, 16, 17, 64])
def test_how_queries_are_batched_changes_nothing(batch: int) -> None:
    """Small and large batches take different paths inside FAISS."""
    vectors, queries = coarse(500, 16, 0), coarse(64, 16, 1)
    index = build_index(vectors, IndexSpec(kind="Flat"))
    expected = [as_pairs(hits) for hits in index.above(queries, 0.25)]
    assert [
        as_pairs(hits) for start in range(0, 64, batch) for hits in index.above(queries[start : start + batch], 0.25)
    ] == expected


@pytest.mark.parametrize("spec", ["Flat", "IVF8,nprobe=2"])
def test_save_and_load(spec: str, tmp_path: Path) -> None:
    """The loaded index answers as the one that was saved, with the same number of probes."""
    vectors, parsed = clustered(400), IndexSpec.parse(spec)
    index = build_index(vectors, parsed)
    index.save(tmp_path / "index")
    loaded = load_index(tmp_path / "index", parsed, dimension=16, n_items=400)
    assert (loaded.n_items, loaded.dimension, loaded.spec) == (400, 16, parsed)
    queries = clustered(20, seed=1)
    assert list(map(as_pairs, loaded.above(queries, 0.5))) == list(map(as_pairs, index.above(queries, 0.5)))


@pytest.mark.parametrize("spec", ["Flat", "IVF2,nprobe=1"])
def test_every_truncation_is_refused(spec: str, tmp_path: Path) -> None:
    parsed = IndexSpec.parse(spec)
    build_index(clustered(100), parsed).save(tmp_path / "index")
    content = (tmp_path / "index").read_bytes()
    for length in [*range(0, len(content), 97), len(content) - 1]:
        (tmp_path / "cut").write_bytes(content[:length])
        with pytest.raises(CorruptArtifact, match="cut"):
            load_index(tmp_path / "cut", parsed, dimension=16, n_items=100)


def test_what_is_no_index_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("no index" * 100)
    with pytest.raises(CorruptArtifact, match="text"):
        load_index(tmp_path / "text", IndexSpec(kind="Flat"), dimension=16, n_items=1)
    with pytest.raises(CorruptArtifact, match="missing"):
        load_index(tmp_path / "missing", IndexSpec(kind="Flat"), dimension=16, n_items=1)


@pytest.mark.parametrize(
    ("spec", "dimension", "n_items"), [("Flat", 17, 100), ("Flat", 16, 99), ("IVF2,nprobe=1", 16, 100)]
)
def test_an_index_of_another_shape_is_refused(spec: str, dimension: int, n_items: int, tmp_path: Path) -> None:
    build_index(clustered(100), IndexSpec(kind="Flat")).save(tmp_path / "index")
    with pytest.raises(CorruptArtifact, match="found 100 of 16"):
        load_index(tmp_path / "index", IndexSpec.parse(spec), dimension=dimension, n_items=n_items)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_vectors_are_finite(value: float) -> None:
    bad = clustered(5)
    bad[3, 2] = value
    with pytest.raises(InvalidEmbeddings, match="found NaN or infinity in row 3"):
        build_index(bad, IndexSpec(kind="Flat"))
    with pytest.raises(InvalidEmbeddings, match="found NaN or infinity in row 3"):
        build_index(clustered(5), IndexSpec(kind="Flat")).above(bad, 0.5)


@pytest.mark.parametrize(
    "vectors",
    [
        np.empty((0, 16), np.float32),
        np.empty((4, 0), np.float32),
        np.ones(16, np.float32),
        np.ones((4, 16), np.float64),
        np.ones((2, 2, 2), np.float32),
    ],
)
def test_the_shape_of_vectors(vectors: NDArray[np.float32]) -> None:
    with pytest.raises(InvalidEmbeddings, match="expected"):
        build_index(vectors, IndexSpec(kind="Flat"))


def test_queries_have_the_indexs_dimension() -> None:
    with pytest.raises(InvalidEmbeddings, match=r"\[n, 16\], found float32 \(2, 8\)"):
        build_index(clustered(5), IndexSpec(kind="Flat")).above(clustered(2, 8), 0.5)


def test_too_few_vectors_for_the_lists() -> None:
    """k-means on a handful of points is not to be trusted: it is refused, with the way out."""
    spec = IndexSpec.parse("IVF4,nprobe=2")
    with pytest.raises(InvalidInput, match=r"at least 156 items .* found 155: use Exact or at most 3 lists"):
        build_index(clustered(155), spec)
    assert build_index(clustered(156), spec).n_items == 156


@pytest.mark.skipif(n_gpus() > 0, reason="this machine has a GPU")
def test_a_missing_gpu_is_named() -> None:
    with pytest.raises(DeviceUnavailable, match="FAISS sees no GPU"):
        build_index(clustered(5), IndexSpec(kind="Flat"), device="cuda")


def test_cagra_is_built_on_a_gpu_or_not_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a GPU, and with a FAISS that cannot build it, the message says what to do."""
    spec = IndexSpec.parse("CAGRA8,ef=32")
    with pytest.raises(DeviceUnavailable, match="CAGRA8,ef=32 is built on a GPU, and device=cuda was not requested"):
        build_index(clustered(50), spec)
    if not n_gpus():
        with pytest.raises(DeviceUnavailable, match="FAISS sees no GPU"):
            build_index(clustered(50), spec, device="cuda")
    if not hasattr(faiss, "GpuIndexCagra"):
        monkeypatch.setattr(faiss_native, "n_gpus", lambda: 1)
        with pytest.raises(DeviceUnavailable, match="built without cuVS: install `faiss-gpu-cuvs`"):
            faiss_native.cagra_on_gpu(clustered(50), spec, device="cuda")


def test_the_graph_finds_its_way_in_from_above(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The links of the lowest level are those that were copied; a server without a GPU searches the saved graph."""
    monkeypatch.setattr(faiss_native, "cagra_on_gpu", cagra_on_cpu)
    vectors, spec = clustered(2000, n_clusters=400), IndexSpec.parse("CAGRA16,ef=64")
    built = build_index(vectors, spec, threshold=0.8)
    built.save(tmp_path / "index")
    index = load_index(tmp_path / "index", spec, dimension=16, n_items=2000)
    assert measure_recall(index, vectors, 0.8).low > 0.95
    with pytest.raises(CorruptArtifact, match="expected 2000 vectors of dimension 16 in CAGRA18,ef=64"):
        load_index(tmp_path / "index", IndexSpec.parse("CAGRA18,ef=64"), dimension=16, n_items=2000)


@pytest.mark.gpu
@pytest.mark.skipif(n_gpus() == 0, reason="no GPU that FAISS can use")
def test_a_graph_of_the_gpu_is_searched_on_the_cpu(tmp_path: Path) -> None:
    vectors, spec = clustered(2000, n_clusters=400), IndexSpec.parse("CAGRA16,ef=64")
    if not hasattr(faiss, "GpuIndexCagra"):
        pytest.skip("this FAISS was built without cuVS")
    build_index(vectors, spec, device="cuda", threshold=0.8).save(tmp_path / "index")
    index = load_index(tmp_path / "index", spec, dimension=16, n_items=2000)
    assert measure_recall(index, vectors, 0.8).low > 0.9


@pytest.mark.gpu
@pytest.mark.skipif(n_gpus() == 0, reason="no GPU that FAISS can use")
def test_lists_trained_on_the_gpu_search_on_the_cpu() -> None:
    vectors, queries = clustered(800), clustered(30, seed=1)
    index = build_index(vectors, IndexSpec.parse("IVF16,nprobe=16"), device="cuda")
    assert recall(index.above(queries, 0.5), exact_hits(vectors, queries, 0.5)) == 1.0


@pytest.mark.parametrize("kind", ["clustered", "offset"])
def test_a_file_of_an_earlier_version_finds_its_vectors(kind: str, tmp_path: Path) -> None:
    """It has no stored answers; lists whose centres were exchanged are noticed nevertheless."""
    vectors, spec = KINDS[kind](800, 16, np.random.default_rng(0)), IndexSpec.parse("IVF16,nprobe=1")
    native: Any = build_index(vectors, spec)._native  # type: ignore[attr-defined]  # a FaissIndex
    faiss.write_index(native, str(tmp_path / "old"))
    load_index(tmp_path / "old", spec, dimension=vectors.shape[1], n_items=800)
    numbers: Any = faiss.downcast_index(native.quantizer)
    centres = faiss.rev_swig_ptr(numbers.get_xb(), 16 * native.d).reshape(16, -1)
    centres[:] = centres[::-1].copy()
    faiss.write_index(native, str(tmp_path / "old"))
    with pytest.raises(CorruptArtifact, match=r"old fails its self-test: \d+ of 100 stored vectors find themselves"):
        load_index(tmp_path / "old", spec, dimension=vectors.shape[1], n_items=800)


@pytest.mark.parametrize("text", ["Flat", "IVF4,nprobe=2"])
def test_a_file_of_an_earlier_version_opens(text: str, tmp_path: Path) -> None:
    """Earlier versions wrote what FAISS writes, and nothing else. It answers as before."""
    vectors, queries, spec = clustered(200), clustered(9, seed=1), IndexSpec.parse(text)
    index = build_index(vectors, spec)
    faiss.write_index(index._native, str(tmp_path / "old"))  # type: ignore[attr-defined]  # a FaissIndex
    old = load_index(tmp_path / "old", spec, dimension=16, n_items=200)
    assert list(map(as_pairs, old.above(queries, 0.5))) == list(map(as_pairs, index.above(queries, 0.5)))
    content = (tmp_path / "old").read_bytes()
    for length in (4, 40, len(content) - 1):
        (tmp_path / "cut").write_bytes(content[:length])
        with pytest.raises(CorruptArtifact, match="truncated"):
            load_index(tmp_path / "cut", spec, dimension=16, n_items=200)
    with pytest.raises(CorruptArtifact, match="expected 199 vectors"):
        load_index(tmp_path / "old", spec, dimension=16, n_items=199)
    vectors[7, 3] = np.nan
    native = faiss.IndexFlatIP(16)
    native.add(vectors)
    faiss.write_index(native, str(tmp_path / "nan"))
    if text == "Flat":
        with pytest.raises(CorruptArtifact, match="NaN or infinity"):
            load_index(tmp_path / "nan", spec, dimension=16, n_items=200)
