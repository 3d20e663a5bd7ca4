"""The search that is written for GPUs, run on the CPU: it returns what `ExactIndex` returns, bit for bit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retrieval.engine.index import gpu_index
from retrieval.engine.index.exact_index import ExactIndex
from retrieval.engine.index.exact_scores import lowest_score, score_pairs
from retrieval.engine.index.gpu_graph import graph
from retrieval.engine.index.gpu_half import HalfGallery, to_half
from retrieval.engine.index.gpu_index import GpuIndex, GpuSearch, devices_of
from retrieval.engine.index.gpu_tiles import Candidates, Device, Tiles
from retrieval.engine.index.index import Hits
from retrieval.engine.index.open import load_index
from retrieval.engine.index.spec import IndexSpec
from retrieval.errors import DeviceUnavailable, InvalidEmbeddings, ValidationFailed
from tests.engine.index.exact.galleries import KINDS, Vectors, queries_of, scores

CPU = [Device("cpu")]


def same(found: list[Hits], wanted: list[Hits]) -> bool:
    pairs = list(zip(found, wanted, strict=True))
    return all(np.array_equal(a.positions, b.positions) and np.array_equal(a.scores, b.scores) for a, b in pairs)


def expected(vectors: Vectors, queries: Vectors, threshold: float) -> set[tuple[int, int]]:
    numbers, rows = np.nonzero(scores(vectors, queries).astype(np.float64) >= threshold)
    return set(zip(numbers.tolist(), rows.tolist(), strict=True))


def thresholds(all_scores: Vectors) -> st.SearchStrategy[float]:
    """Return fixed thresholds, scores that occur, and their neighbours."""
    occurring = st.sampled_from(sorted(map(float, all_scores.ravel())))
    return st.sampled_from([-np.inf, -1.0, 0.0, 0.5, 1.0, 1e30, np.inf]) | occurring.flatmap(
        lambda score: st.sampled_from([score, np.nextafter(score, np.inf), np.nextafter(score, -np.inf)])
    )


@given(
    kind=st.sampled_from(sorted(KINDS)),
    n=st.integers(1, 200),
    d=st.integers(1, 70),
    devices=st.integers(1, 3),
    seed=st.integers(0, 10_000),
    data=st.data(),
)
@settings(max_examples=120, deadline=None)
@pytest.mark.slow
def test_finds_what_brute_force_finds(kind: str, n: int, d: int, devices: int, seed: int, data: st.DataObject) -> None:
    """Any data, any threshold, also at scores that occur, any number of devices, tiles of any size."""
    rng = np.random.default_rng(seed)
    vectors = KINDS[kind](n, d, rng)
    queries = queries_of(vectors, kind, data.draw(st.integers(1, 9)), rng)
    threshold = data.draw(thresholds(scores(vectors, queries)))
    search = GpuSearch(vectors, CPU * devices, tile=data.draw(st.integers(1, 90)))
    numbers, rows, found_scores = search.pairs(queries, threshold)
    kept = found_scores.astype(np.float64) >= threshold
    found = list(zip(numbers[kept].tolist(), rows[kept].tolist(), strict=True))
    assert len(set(found)) == len(found)
    assert set(found) == expected(vectors, queries, threshold)
    assert np.array_equal(found_scores, scores(vectors, queries)[numbers, rows])


@pytest.mark.slow
@pytest.mark.parametrize("d", [3, 128])
@pytest.mark.parametrize("kind", ["clustered", "offset", "duplicated"])
def test_equals_the_exact_index(kind: str, d: int, tmp_path: Path) -> None:
    """Also with rows that may not be found, in batches over several passes, and after saving and opening."""
    rng = np.random.default_rng(d)
    vectors = KINDS[kind](3000, d, rng)
    queries = queries_of(vectors, kind, 130, rng)
    exact = ExactIndex.build(vectors, threshold=0.7)
    index = GpuIndex(exact, CPU * 2, tile=700)
    for threshold in (0.3, 0.7, float(scores(vectors, queries[:1])[0, 5])):
        assert same(index.above(queries, threshold), exact.above(queries, threshold))
        for share in (0.5, 0.01):
            allowed = rng.random(3000) < share
            assert same(index.above(queries, threshold, allowed), exact.above(queries, threshold, allowed))
    index.save(tmp_path / "index")
    assert same(
        GpuIndex.load(tmp_path / "index", dimension=index.dimension, n_items=3000, device="cpu").above(queries, 0.7),
        ExactIndex.load(tmp_path / "index", dimension=index.dimension, n_items=3000).above(queries, 0.7),
    )


def test_vectors_of_16_bits_are_searched_too() -> None:
    """The scores are those of the vectors that the index stores."""
    vectors = KINDS["clustered"](500, 16, np.random.default_rng(0))
    exact = ExactIndex.build(vectors, half=True)
    index = GpuIndex(exact, CPU * 3, tile=64)
    assert str(index.spec) == "Exact,fp16"
    assert same(index.above(vectors[:70], 0.5), exact.above(vectors[:70], 0.5))


def test_a_sorted_gallery_answers_with_the_rows_as_added(monkeypatch: pytest.MonkeyPatch) -> None:
    """`ExactIndex` may keep its vectors in another order."""
    vectors = KINDS["clustered"](500, 16, np.random.default_rng(0))
    order = np.random.default_rng(1).permutation(500).astype(np.int32)
    plain = ExactIndex.build(vectors)
    monkeypatch.setattr(ExactIndex, "vectors", property(lambda self: (np.ascontiguousarray(vectors[order]), order)))
    index = GpuIndex(plain, CPU, tile=64)
    allowed = np.arange(500) % 3 == 0
    assert same(index.above(vectors[:9], 0.5), plain.above(vectors[:9], 0.5))
    assert same(index.above(vectors[:9], 0.5, allowed), plain.above(vectors[:9], 0.5, allowed))


@pytest.mark.parametrize(("lost", "term"), [("query", "longest"), ("gallery", "largest_loss")])
def test_each_part_of_the_slack_is_needed(lost: str, term: str) -> None:
    """Without the term for what one side loses in float16, a match is missed: most of its score cancels out."""
    fine, coarse = 0.125 * (1 + 2.0**-11 - 2.0**-20), 0.125  # float16 rounds the first down to the second
    rounded = np.repeat(np.array([[fine, coarse]], np.float32), 32, axis=1)
    exact = np.repeat(np.array([[coarse, -0.875 * coarse]], np.float32), 32, axis=1)
    vectors, query = (exact, rounded) if lost == "query" else (rounded, exact)
    search = GpuSearch(vectors, CPU)
    threshold = float(scores(vectors, query)[0, 0])
    assert len(search.pairs(query, threshold)[1]) == 1
    setattr(search.gallery, term, 0.0)
    assert len(search.pairs(query, threshold)[1]) == 0


def test_the_slack_is_small() -> None:
    """The bound has teeth: few candidates that do not match are scored."""
    rng = np.random.default_rng(4)
    vectors = KINDS["clustered"](20_000, 128, rng)
    search = GpuSearch(vectors, CPU)
    assert search.gallery.slack < 2.0**-10
    _, rows, found = search.pairs(vectors[:50], 0.9)
    assert 50 < len(rows) < 1.05 * (found >= np.float32(0.9)).sum() + 50


def test_subnormal_components_are_lost_and_counted() -> None:
    """A device may take a subnormal float16 for 0, so the proof counts it as lost."""
    half = to_half(np.array([[1.0, 5e-5, -5e-5, 7e-5]]))
    assert (half[0] != 0).tolist() == [True, False, False, True]
    gallery = HalfGallery.of(1.0)
    gallery.convert(np.array([[0.9, 5e-5]], np.float32))
    assert gallery.largest_loss > 2.4e-5


def test_limits_are_never_subnormal() -> None:
    gallery = HalfGallery.of(1.0)
    gallery.convert(np.eye(4, dtype=np.float32))
    for lowest in (1e-5, -1e-5, 0.0, 5e-5, -5e-5):
        _, limits = gallery.queries_and_limits(np.eye(4, dtype=np.float32), lowest)
        assert (limits <= lowest / 2 + 1e-9).all()
        assert ((limits == 0) | (np.abs(limits) >= 2.0**-14)).all()


def test_a_device_that_calculates_otherwise_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    original = Tiles.candidates

    def forgetful(self: Tiles, queries: np.ndarray, limits: np.ndarray, allowed: np.ndarray | None) -> Candidates:
        found = original(self, queries, limits, allowed)
        return Candidates(found.rows[2:], found.queries[2:])

    monkeypatch.setattr(Tiles, "candidates", forgetful)
    with pytest.raises(ValidationFailed, match="missed 2 of 6400 matches of its self-test"):
        GpuSearch(KINDS["clustered"](100, 8, np.random.default_rng(0)), CPU)


def test_without_a_gpu_the_index_is_not_built() -> None:
    if gpu_index.n_gpus():
        pytest.skip("this machine has a GPU")
    with pytest.raises(DeviceUnavailable, match="device=cuda was requested"):
        GpuSearch(np.eye(8, dtype=np.float32), devices_of("cuda"))


def test_bad_queries_are_refused() -> None:
    index = GpuIndex.build(KINDS["clustered"](100, 8, np.random.default_rng(0)), device="cpu")
    with pytest.raises(InvalidEmbeddings, match=r"expected float32 vectors \[n, 8\]"):
        index.above(np.zeros((2, 7), np.float32), 0.5)
    with pytest.raises(InvalidEmbeddings, match="expected a threshold, found NaN"):
        index.above(np.zeros((2, 8), np.float32), float("nan"))


def test_the_graph_is_valid_onnx() -> None:
    """The bytes are those of a model that the package `onnx` accepts, with these operators."""
    model = onnx.load_from_string(graph())
    onnx.checker.check_model(model, full_check=True)
    assert [node.op_type for node in model.graph.node] == ["MatMul", "GreaterOrEqual", "And", "NonZero"]


def test_scores_are_those_of_float64() -> None:
    vectors = KINDS["of any norm"](50, 33, np.random.default_rng(2))
    numbers = np.repeat(np.arange(5), 50)
    found = score_pairs(vectors, vectors[:5], np.tile(np.arange(50), 5), numbers)
    assert np.array_equal(found.reshape(5, 50), scores(vectors, vectors[:5]))


def test_lowest_score_is_below_what_rounds_up_to_the_threshold() -> None:
    assert lowest_score(0.5) < 0.5 - 2.0**-26 < float(np.float32(0.5))


def test_an_index_is_opened_on_the_gpu_or_not_at_all(tmp_path: Path) -> None:
    """Asked for a GPU that is missing, `load_index` does not fall back to the CPU."""
    if gpu_index.n_gpus():
        pytest.skip("this machine has a GPU")
    ExactIndex.build(np.eye(8, dtype=np.float32)).save(tmp_path / "index")
    with pytest.raises(DeviceUnavailable, match="device=cuda was requested"):
        load_index(tmp_path / "index", IndexSpec(), dimension=8, n_items=8, device="cuda")
