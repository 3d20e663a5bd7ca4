"""The exact index: finds every vector whose score reaches a threshold, and looks at few of them in full.

`exact/layout.py` has the proof that nothing is missed, `exact/lists.py` the blocks that can be skipped,
`exact/kernels.py` the compiled loops.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retrieval.engine.index.exact.blocks import NORM_LEVELS, n_groups
from retrieval.engine.index.exact.choice import Choice, encode_best
from retrieval.engine.index.exact.file import map_arrays, write_arrays
from retrieval.engine.index.exact.forms import best_form
from retrieval.engine.index.exact.instructions import BLOCK
from retrieval.engine.index.exact.layout import as_floats, as_queries, in_half
from retrieval.engine.index.exact.lists import Lists
from retrieval.engine.index.exact.search import Encoded, above, find, pairs
from retrieval.engine.index.exact.table import Gallery
from retrieval.engine.index.index import Hits, check_search, check_threshold, check_vectors
from retrieval.engine.index.spec import IndexSpec
from retrieval.errors import CorruptArtifact

Vectors = NDArray[np.float32]

_N_BOUNDS = 10
_PROBES = 100
_TILE = 1 << 16


class ExactIndex:
    """An immutable index in memory, or mapped from its file. Searching is safe from several threads."""

    def __init__(self, encoded: Encoded, choice: Choice) -> None:
        self._encoded = encoded
        self.choice = choice
        self.spec = IndexSpec(codes="fp16" if encoded.gallery.rows.dtype == np.uint16 else "")

    @classmethod
    def build(cls, vectors: Vectors, *, threshold: float | None = None, half: bool = False) -> ExactIndex:
        """Build an index over `vectors` [n, D] float32 that is fastest at `threshold`; it is exact at any other too.

        half: store them as float16. The index is then that of the rounded vectors. Raises InvalidInput if a value is
        too large for that.
        """
        check_vectors(vectors, vectors.shape[-1] if vectors.ndim == 2 else 0)
        own = in_half(vectors) if half else np.array(vectors, np.float32, order="C")  # the caller may change its array
        return cls(*encode_best(own, threshold, best_form()))

    @classmethod
    def load(cls, path: Path, *, dimension: int, n_items: int) -> ExactIndex:
        """Open an index, see `load_index`."""
        description, arrays = map_arrays(path)
        try:
            gallery = Gallery(**{name: arrays[name] for name in Gallery._fields})
            lists = Lists(**{name: arrays[name] for name in Lists._fields})
            encoded = Encoded(gallery, lists, arrays["order"])
            choice = Choice(**description["choice"])
        except (KeyError, TypeError) as error:
            raise CorruptArtifact(f"index {path} cannot be read: {error}") from error
        _check_shapes(encoded, path, dimension, n_items)
        _check_values(encoded, path)
        if (found := _self_test(encoded)) != description.get("self_test"):
            raise CorruptArtifact(f"index {path}: its self-test found {found}, expected {description.get('self_test')}")
        return cls(encoded, choice)

    def save(self, path: Path) -> None:
        """Write the index into a file that `load` maps. Raises OSError if the disk is full."""
        encoded = self._encoded
        arrays = {**encoded.gallery._asdict(), **encoded.lists._asdict(), "order": encoded.rows}
        write_arrays(path, {"choice": asdict(self.choice), "self_test": _self_test(encoded)}, arrays)

    @property
    def n_items(self) -> int:
        """The number of vectors."""
        return len(self._encoded.gallery.rows)

    @property
    def dimension(self) -> int:
        """The number of columns of the vectors."""
        return int(self._encoded.gallery.rows.shape[1])

    def details(self) -> dict[str, Any]:
        """Return what was chosen, what is proven, and what a query is expected to cost, as plain JSON values.

        originals: how the vectors are stored whose scores are stated. slack: how far the codes of the gallery may raise
        the bound of level 1 for a query of norm 1. expected_microseconds: of a single query at the threshold of the
        build; 0: not timed.
        """
        gallery = self._encoded.gallery
        arrays = (*gallery, *self._encoded.lists, self._encoded.rows)
        return {
            "complete": True,
            "originals": as_floats(gallery.rows).dtype.name,
            "bytes_at_level_1": self.choice.n_bytes,
            "lists": self.choice.n_lists,
            "slack": float(gallery.bounds[1] * NORM_LEVELS),
            "bytes_per_vector": round(sum(array.nbytes for array in arrays) / self.n_items, 1),
            "expected_microseconds": self.choice.microseconds,
        }

    @property
    def vectors(self) -> tuple[Vectors, NDArray[np.int32]]:
        """The vectors as they lie in the index, and the row of each as it was added ([0]: they are the same).

        float16 numbers are copied into float32, which is twice as large.
        """
        return as_floats(self._encoded.gallery.rows).astype(np.float32, copy=False), self._encoded.rows

    def above(
        self,
        queries: Vectors,
        threshold: float,
        allowed: NDArray[np.bool_] | None = None,
        *,
        n_threads: int = 1,
    ) -> list[Hits]:
        """Return, for each row of `queries` [q, D], everything with `score >= threshold`: best first, ties by row.

        The score is the inner product in float64, rounded to float32. allowed: [n], the rows that may be found.
        n_threads: how many threads share the work; one is best if there are many callers.
        """
        encoded = self._encoded
        if not _fits(encoded, queries, threshold, allowed):
            check_search(self, queries, threshold, allowed)
        asked = np.ascontiguousarray(queries)
        found = above(best_form(), encoded, asked, threshold, allowed, n_threads=n_threads)
        return [Hits(rows, scores) for rows, scores in found]

    def pairs_above(self, threshold: float) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float32]]]:
        """Yield all pairs of rows with `score >= threshold`, in parts: [h, 2] int64, the lower row first; [h] float32.

        Each pair comes once, in no order; no row is paired with itself. Only one part is in memory.
        """
        check_threshold(threshold)
        yield from pairs(best_form(), self._encoded, threshold)


def warm() -> None:
    """Compile the search, or read it from the cache on the disk, so that the first query does not wait for it."""
    best_form()


def _fits(encoded: Encoded, queries: Vectors, threshold: float, allowed: NDArray[np.bool_] | None) -> bool:
    """Return whether queries need no closer look; the search itself finds values that are not finite."""
    rows = encoded.gallery.rows
    fits = queries.ndim == 2 and queries.shape[1] == rows.shape[1] and len(queries) > 0 and threshold == threshold
    if allowed is not None:
        fits = fits and allowed.dtype == np.bool_ and allowed.shape == (len(rows),)
    return fits and queries.dtype == np.float32


def _check_shapes(encoded: Encoded, path: Path, dimension: int, n_items: int) -> None:
    """Raise CorruptArtifact if the arrays do not belong together or are not of this index."""
    gallery, lists, order = encoded.gallery, encoded.lists, encoded.rows
    n_blocks, n_lists, n_segments = -(-n_items // BLOCK), len(lists.centres), lists.segments.shape[-1]
    p, d = gallery.basis.shape if gallery.basis.ndim == 2 else (0, 0)
    n_offsets = len(gallery.offsets)
    expected: dict[str, tuple[NDArray[Any], type, tuple[int, ...]]] = {
        "blocks": (gallery.blocks, np.uint8, (n_blocks, n_groups(p, offset=n_offsets > 0), BLOCK, 4)),
        "codes": (gallery.codes, np.uint8, (n_items, 0 if gallery.rows.dtype == np.uint16 else -(-d // 64) * 64)),
        "offsets": (gallery.offsets, np.float32, (n_items if n_offsets else 0,)),
        "rows": (gallery.rows, np.uint16 if gallery.rows.dtype == np.uint16 else np.float32, (n_items, dimension)),
        "basis": (gallery.basis, np.float64, (min(p, d), dimension - (2 if n_offsets else 0))),
        "steps": (gallery.steps, np.float64, (min(p, d), 2)),
        "bounds": (gallery.bounds, np.float64, (_N_BOUNDS,)),
        "centres": (lists.centres, np.float32, (n_lists, d)),
        "angles": (lists.angles, np.float64, (4, n_lists)),
        "limits": (lists.limits, np.float64, (2, n_lists)),
        "first_blocks": (lists.first_blocks, np.int64, (n_lists + 1,)),
        "first_segments": (lists.first_segments, np.int64, (n_lists + 1,)),
        "segments": (lists.segments, np.float32, (2, n_segments)),
        "order": (order, np.int32, (n_items if len(order) else 0,)),
    }
    for name, (array, dtype, shape) in expected.items():
        if array.dtype != dtype or array.shape != shape:
            raise CorruptArtifact(
                f"index {path}: expected {np.dtype(dtype)} {shape} as {name}, found {array.dtype} {array.shape}"
            )


def _check_values(encoded: Encoded, path: Path) -> None:
    """Raise CorruptArtifact if a value would lead a search outside its arrays, or to no answer."""
    gallery, lists, order = encoded.gallery, encoded.lists, encoded.rows
    n_blocks, n_segments = len(gallery.blocks), lists.segments.shape[1]
    ascending = [
        firsts[0] >= 0 and firsts[-1] <= end and bool((np.diff(firsts) >= 0).all())
        for firsts, end in ((lists.first_blocks, n_blocks), (lists.first_segments, n_segments))
    ]
    if not all(ascending):
        raise CorruptArtifact(f"index {path}: its lists do not follow each other within {n_blocks} blocks")
    if len(order) and (order.min() < 0 or not bool((np.bincount(order, minlength=len(order)) == 1).all())):
        raise CorruptArtifact(f"index {path}: the order of its {len(order)} vectors names one twice, or one too many")
    numbers = gallery._asdict() | {"rows": as_floats(gallery.rows)} | lists._asdict()
    for name, array in numbers.items():
        parts = (array[start : start + _TILE] for start in range(0, len(array), _TILE))
        if array.dtype.kind == "f" and not all(bool(np.isfinite(part).all()) for part in parts):
            raise CorruptArtifact(f"index {path}: expected finite numbers as {name}, found others")


def _self_test(encoded: Encoded) -> dict[str, float]:
    """Return what some vectors find of each other at the median of their scores, as a checksum."""
    rows = encoded.gallery.rows
    chosen = np.unique(np.linspace(0, len(rows) - 1, _PROBES).astype(int))
    queries = as_queries(rows[chosen], offset=len(encoded.gallery.offsets) > 0)
    lowest = float(np.median(queries.astype(np.float64) @ as_floats(rows[chosen]).T.astype(np.float64)))
    threshold = float(np.float32(lowest))
    allowed = np.zeros(len(rows), np.bool_)
    allowed[encoded.rows[chosen] if len(encoded.rows) else chosen] = True
    found = find(best_form(), encoded, queries, threshold, allowed)
    keys = b"".join(np.sort(found.keys[found.queries == number]).tobytes() for number in range(len(queries)))
    return {"threshold": threshold, "n_found": len(found.keys), "checksum": zlib.crc32(keys)}
