"""The file of an exact index gives back the same index, shares its pages, and is refused if a byte of it is wrong."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from retrieval.engine.index.exact.file import map_arrays, write_arrays
from retrieval.engine.index.exact.kernels import search
from retrieval.engine.index.exact_index import ExactIndex
from retrieval.errors import CorruptArtifact
from tests.engine.index.exact.galleries import KINDS, queries_of

N, D, THRESHOLD = 6000, 24, 0.9


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[ExactIndex, Path]:
    """An index with lists, and its file."""
    index = ExactIndex.build(KINDS["clustered"](N, D, np.random.default_rng(0)))
    assert index.choice.n_lists
    path = tmp_path_factory.mktemp("exact") / "index"
    index.save(path)
    return index, path


def same(index: ExactIndex, other: ExactIndex, queries: np.ndarray, threshold: float) -> bool:
    pairs = zip(index.above(queries, threshold), other.above(queries, threshold), strict=True)
    return all(np.array_equal(a.positions, b.positions) and np.array_equal(a.scores, b.scores) for a, b in pairs)


@pytest.mark.parametrize("kind", sorted(KINDS))
@pytest.mark.parametrize("n", [1, 3, 500])
def test_a_saved_index_answers_the_same(kind: str, n: int, tmp_path: Path) -> None:
    rng = np.random.default_rng(n)
    vectors = KINDS[kind](n, 5, rng)
    index = ExactIndex.build(vectors, threshold=0.3)
    index.save(tmp_path / "index")
    loaded = ExactIndex.load(tmp_path / "index", dimension=vectors.shape[1], n_items=n)
    queries = queries_of(vectors, kind, 4, rng)
    assert loaded.choice == index.choice
    for threshold in (-1.0, 0.0, 0.3):
        assert same(index, loaded, queries, threshold)


def test_the_arrays_are_mapped_not_copied(saved: tuple[ExactIndex, Path]) -> None:
    index, path = saved
    _, arrays = map_arrays(path)
    assert all(isinstance(_root(array), np.memmap) and not array.flags.writeable for array in arrays.values())
    assert arrays["blocks"].ctypes.data % 64 == 0
    loaded = ExactIndex.load(path, dimension=D, n_items=N)
    assert same(index, loaded, KINDS["clustered"](N, D, np.random.default_rng(0))[:20], THRESHOLD)


def test_arrays_that_may_not_be_written_compile_nothing(saved: tuple[ExactIndex, Path]) -> None:
    """Those of a mapped file are such. Compiling takes longer than opening a million vectors."""
    index, path = saved
    queries = KINDS["clustered"](N, D, np.random.default_rng(0))[:3]
    expected = index.above(queries, THRESHOLD)
    compiled = len(search.signatures)  # type: ignore[attr-defined]  # of Numba
    queries.flags.writeable = False
    loaded = ExactIndex.load(path, dimension=D, n_items=N)
    found = loaded.above(queries, THRESHOLD)
    assert [hits.positions.tolist() for hits in found] == [hits.positions.tolist() for hits in expected]
    assert compiled == len(search.signatures)  # type: ignore[attr-defined]


def _root(array: np.ndarray) -> object:
    while not isinstance(array, np.memmap):
        assert isinstance(array.base, np.ndarray)
        array = array.base
    return array


def test_a_truncated_file_is_refused(saved: tuple[ExactIndex, Path], tmp_path: Path) -> None:
    content = saved[1].read_bytes()
    for length in (0, 7, 23, 24, 200, len(content) // 2, len(content) - 1):
        (tmp_path / "short").write_bytes(content[:length])
        with pytest.raises(CorruptArtifact, match="cannot be read"):
            ExactIndex.load(tmp_path / "short", dimension=D, n_items=N)


def test_a_flipped_bit_is_refused(saved: tuple[ExactIndex, Path], tmp_path: Path) -> None:
    content = saved[1].read_bytes()
    places = [*range(40), *np.random.default_rng(0).integers(0, len(content), 60).tolist(), len(content) - 1]
    for place in places:
        damaged = bytearray(content)
        damaged[place] ^= 4
        (tmp_path / "damaged").write_bytes(damaged)
        with pytest.raises(CorruptArtifact, match="cannot be read"):
            ExactIndex.load(tmp_path / "damaged", dimension=D, n_items=N)


def _set(name: str, place: object, value: float) -> Callable[[dict[str, np.ndarray]], None]:
    def change(arrays: dict[str, np.ndarray]) -> None:
        arrays[name] = arrays[name].copy()
        arrays[name][place] = value

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_set("order", 3, N), "names one twice, or one too many"),
        (_set("order", 3, -1), "names one twice, or one too many"),
        (_set("order", 3, 4), "names one twice, or one too many"),
        (_set("first_blocks", 1, 1 << 40), "do not follow each other"),
        (_set("first_blocks", 0, -5), "do not follow each other"),
        (_set("first_segments", -1, 1 << 40), "do not follow each other"),
        (_set("rows", (77, 3), np.nan), "expected finite numbers as rows"),
        (_set("bounds", 2, np.inf), "expected finite numbers as bounds"),
        (_set("codes", slice(None), 0), "its self-test found"),
        (lambda arrays: arrays.pop("codes"), "cannot be read: 'codes'"),
        (lambda arrays: arrays.update(codes=arrays["codes"][:-1]), "expected uint8 .* as codes"),
        (lambda arrays: arrays.update(rows=arrays["rows"].astype(np.float64)), "expected float32 .* as rows"),
    ],
)
def test_wrong_values_are_refused_though_the_checksum_is_right(
    saved: tuple[ExactIndex, Path], tmp_path: Path, change: Callable[[dict[str, np.ndarray]], None], message: str
) -> None:
    """Each would lead a search out of its arrays, or to wrong answers."""
    description, mapped = map_arrays(saved[1])
    arrays = dict(mapped)
    change(arrays)
    write_arrays(tmp_path / "wrong", description, arrays)
    with pytest.raises(CorruptArtifact, match=message):
        ExactIndex.load(tmp_path / "wrong", dimension=D, n_items=N)


def test_another_gallery_is_refused(saved: tuple[ExactIndex, Path]) -> None:
    for dimension, n_items in ((D + 1, N), (D, N + 1)):
        with pytest.raises(CorruptArtifact, match=r"expected .*, found"):
            ExactIndex.load(saved[1], dimension=dimension, n_items=n_items)


_OTHER = """
import sys, numpy as np
from pathlib import Path
from retrieval.engine.index.exact.forms import best_form
from retrieval.engine.index.exact_index import ExactIndex
index = ExactIndex.load(Path(sys.argv[1]), dimension=int(sys.argv[2]), n_items=int(sys.argv[3]))
queries = np.load(sys.argv[4])
hits = [index.above(query[None], float(sys.argv[5]))[0] for query in queries] + index.above(queries, float(sys.argv[5]))
np.savez(sys.argv[6], *[each for hit in hits for each in (hit.positions, hit.scores)])
print(type(best_form()).__name__)
"""


@pytest.mark.slow
@pytest.mark.e2e
@pytest.mark.parametrize(
    ("environment", "form", "half"),
    [
        ({"RETRIEVAL_PORTABLE_KERNELS": "1"}, "Portable", True),
        ({"NUMBA_CPU_NAME": "generic", "NUMBA_CPU_FEATURES": ""}, "Portable", False),
        ({"NUMBA_CPU_NAME": "x86-64-v2", "NUMBA_CPU_FEATURES": "+avx512vnni"}, "Portable", False),
        ({}, None, True),
    ],
)
def test_another_process_with_other_instructions_answers_the_same(
    saved: tuple[ExactIndex, Path], tmp_path: Path, environment: dict[str, str], form: str | None, half: bool
) -> None:
    """Bit for bit, alone and in a batch, also where the other process has no instruction for 16-bit floats."""
    index, path = saved
    if half:
        path = tmp_path / "half"
        index = ExactIndex.build(KINDS["clustered"](N, D, np.random.default_rng(0)), half=True)
        index.save(path)
    queries = KINDS["clustered"](N, D, np.random.default_rng(0))[:12]  # of the gallery
    np.save(tmp_path / "queries.npy", queries)
    arguments = [path, D, N, tmp_path / "queries.npy", THRESHOLD, tmp_path / "hits.npz"]
    done = subprocess.run(
        [sys.executable, "-c", _OTHER, *map(str, arguments)],
        env=os.environ | {"NUMBA_CACHE_DIR": str(tmp_path / "cache")} | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert form is None or done.stdout.split()[-1] == form
    with np.load(tmp_path / "hits.npz") as arrays:
        found = list(arrays.values())
    expected = [array for hits in index.above(queries, THRESHOLD) for array in (hits.positions, hits.scores)] * 2
    assert sum(map(len, found[::2])) > 2 * len(queries)
    assert all(np.array_equal(one, other) for one, other in zip(found, expected, strict=True))


@pytest.mark.slow
@pytest.mark.e2e
def test_compiled_code_is_kept_in_the_folder_that_is_named(tmp_path: Path) -> None:
    code = """
import sys
from pathlib import Path
from retrieval.compiled import keep_code_in
keep_code_in(Path(sys.argv[1]))
import numpy as np
from retrieval.engine.index.exact.hits import read_keys
read_keys(np.zeros(1, np.int64))
"""
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True)
    assert list(tmp_path.rglob("*.nbc"))
