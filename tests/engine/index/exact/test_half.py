"""An index that stores vectors in float16 is exact for the vectors that it stores."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retrieval.engine.index.exact.kernels import exact_score
from retrieval.engine.index.exact.layout import as_floats, in_half
from retrieval.engine.index.exact_index import ExactIndex
from retrieval.engine.index.gpu_index import GpuIndex
from retrieval.engine.index.open import build_index, load_index
from retrieval.engine.index.spec import IndexSpec
from retrieval.errors import InvalidInput
from tests.engine.index.exact.galleries import KINDS, Vectors, queries_of, rounded, scores

SPEC = IndexSpec.parse("Exact,fp16")

pytestmark = pytest.mark.timeout(400)  # the first test of a process compiles the search for both types


def hits(index: ExactIndex | GpuIndex, queries: Vectors, threshold: float) -> list[tuple[list[int], list[float]]]:
    return [(each.positions.tolist(), each.scores.tolist()) for each in index.above(queries, threshold)]


def test_every_finite_number_of_16_bits_is_read_as_it_is() -> None:
    """In a whole register and alone; the sign of a zero is not kept."""
    bits = np.arange(1 << 16, dtype=np.uint16)
    bits = bits[np.isfinite(bits.view(np.float16))]
    bits = bits[: len(bits) // 16 * 16]
    numbers = bits.view(np.float16).astype(np.float32)
    for size in (1, 16):
        for place in {0, size // 3, size - 1}:
            query = np.zeros(size, np.float32)
            query[place] = 1
            found = np.array([exact_score(row, query, size) for row in bits.reshape(-1, size)])
            assert np.array_equal(found, numbers[place::size])


@pytest.mark.parametrize("kind", ["clustered", "offset", "subnormal in float16"])
def test_answers_are_those_of_the_rounded_vectors(kind: str) -> None:
    """Both indexes hold the same numbers, so that every score is equal to the last bit."""
    rng = np.random.default_rng(0)
    vectors = KINDS[kind](5000, 20, rng)
    queries = queries_of(vectors, kind, 12, rng)
    own = scores(rounded(vectors), queries)
    threshold = float(np.quantile(own, 0.98))
    half = ExactIndex.build(vectors, threshold=threshold, half=True)
    whole = ExactIndex.build(rounded(vectors), threshold=threshold)
    assert hits(half, queries, threshold) == hits(whole, queries, threshold)
    assert sum(len(rows) for rows, _ in hits(half, queries, threshold)) == (own.astype(np.float64) >= threshold).sum()
    assert (own != scores(vectors, queries)).any()


@pytest.mark.parametrize("threshold", [None, 0.3, 0.9])
@pytest.mark.parametrize("kind", ["clustered", "offset"])
def test_it_takes_at_most_410_bytes_a_vector(threshold: float | None, kind: str) -> None:
    """Everything that the index holds for 128 columns, whatever it chooses for level 1; with an offset too."""
    vectors = KINDS[kind](30_000, 128, np.random.default_rng(1))
    vectors[:, -1] = vectors[:, -1].clip(-1, 1)
    details = json.loads(json.dumps(ExactIndex.build(vectors, threshold=threshold, half=True).details()))
    assert details["originals"] == "float16"
    assert details["complete"] is True
    assert 2 * 128 + 8 < details["bytes_per_vector"] <= 410


def test_a_number_that_is_too_large_is_refused() -> None:
    vectors = KINDS["clustered"](20, 6, np.random.default_rng(2))
    vectors[7, 2] = 65519  # the nearest float16 is still 65504
    assert as_floats(in_half(vectors))[7, 2] == 65504
    for large in (65520, -1e30):
        vectors[7, 2] = large
        with pytest.raises(
            InvalidInput, match=re.escape(f"no value beyond 65,504, found {large:g} in row 7, column 2: use Exact")
        ):
            build_index(vectors, SPEC)


def test_what_is_too_small_becomes_zero() -> None:
    vectors = np.full((3, 4), 2e-8, np.float32)
    index = build_index(vectors, SPEC)
    assert [each.scores.tolist() for each in index.above(np.ones((1, 4), np.float32), 0.0)] == [[0.0] * 3]


@given(n=st.integers(1, 600), seed=st.integers(0, 99), kind=st.sampled_from(["clustered", "duplicated", "eighths"]))
@settings(max_examples=25, deadline=None)
def test_a_gpu_finds_the_same(n: int, seed: int, kind: str) -> None:
    """On the CPU, where the same graph runs."""
    rng = np.random.default_rng(seed)
    vectors = KINDS[kind](n, 20, rng)
    queries = queries_of(vectors, kind, 5, rng)
    exact = ExactIndex.build(vectors, half=True)
    on_device = GpuIndex.build(rounded(vectors), device="cpu")
    for threshold in (0.5, float(scores(rounded(vectors), queries)[0, 0])):
        assert hits(exact, queries, threshold) == hits(on_device, queries, threshold)


def test_a_gpu_opens_its_file(tmp_path: Path) -> None:
    vectors = KINDS["clustered"](500, 20, np.random.default_rng(3))
    exact = ExactIndex.build(vectors, half=True)
    exact.save(tmp_path / "index")
    loaded = GpuIndex.load(tmp_path / "index", dimension=20, n_items=500, device="cpu")
    assert loaded.spec == SPEC
    assert hits(loaded, vectors[:9], 0.6) == hits(exact, vectors[:9], 0.6)
    assert loaded.details()["originals"] == "float16"


def test_its_arrays_are_mapped(tmp_path: Path) -> None:
    """Opening it copies no vector."""
    build_index(KINDS["clustered"](500, 20, np.random.default_rng(4)), SPEC).save(tmp_path / "index")
    loaded = load_index(tmp_path / "index", SPEC, dimension=20, n_items=500)
    assert isinstance(loaded, ExactIndex)
    root = loaded._encoded.gallery.rows
    while not isinstance(root, np.memmap):
        root = root.base
    assert not root.flags.writeable
