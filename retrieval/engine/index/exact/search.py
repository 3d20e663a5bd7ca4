"""Runs the compiled search and collects its hits."""

from __future__ import annotations

import functools
import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from retrieval.consistency import float32_at_least
from retrieval.engine.index.exact.hits import FEW, grouped, read_keys
from retrieval.engine.index.exact.instructions import BLOCK, GROUP, Form
from retrieval.engine.index.exact.kernels import DONE, NOT_FINITE, ROOM, search
from retrieval.engine.index.exact.layout import as_queries
from retrieval.engine.index.exact.lists import Lists
from retrieval.engine.index.exact.table import Gallery, Room, Table, table_of
from retrieval.engine.index.index import check_vectors

Vectors = NDArray[np.float32]
Mask = NDArray[np.bool_]
Found = tuple[NDArray[np.int64], Vectors]

_AT_ONCE = 4 * BLOCK  # vectors of a self-join that are queries together
_ALL = np.empty(0, np.bool_)
_scratch = threading.local()


@dataclass(frozen=True, slots=True, eq=False)
class Encoded:
    """A gallery that can be searched: its codes, its lists, and the row of each position ([0]: they are the same)."""

    gallery: Gallery
    lists: Lists
    rows: NDArray[np.int32]
    table: Table = field(init=False)
    kind_of_rows: NDArray[np.float32] | NDArray[np.uint16] = field(init=False)
    whole: NDArray[np.int64] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "table", table_of(*self.gallery, *self.lists, self.rows))
        object.__setattr__(self, "kind_of_rows", np.empty(0, self.gallery.rows.dtype))
        object.__setattr__(self, "whole", np.array([0, len(self.gallery.blocks), 0, 1]))


class Matches(NamedTuple):
    """Hits in no order: the number of the query [h] int32, and a key [h] int64 of score and row, see `read_keys`."""

    queries: NDArray[np.int32]
    keys: NDArray[np.int64]

    def of_each(self, n_queries: int) -> list[Found]:
        """Return the rows and the scores of each query: best first, equal scores by row."""
        return _in_order(*grouped(self.queries, self.keys, len(self.keys), n_queries))


class _Scratch(NamedTuple):
    """What a thread needs to search, kept from call to call."""

    room: Room
    table: Table
    progress: NDArray[np.int64]


def above(
    form: Form, encoded: Encoded, queries: Vectors, threshold: float, allowed: Mask | None = None, *, n_threads: int = 1
) -> list[Found]:
    """Return the rows and the scores of all hits of each query [q, D] float32: best first, equal scores by row.

    Raises InvalidEmbeddings if a value is not finite. allowed, n_threads: as `find` takes them.
    """
    if n_threads > 1:
        return find(form, encoded, queries, threshold, allowed, n_threads=n_threads).of_each(len(queries))
    limits, scratch, kind_of_rows = _limits(threshold), _own_scratch(), encoded.kind_of_rows
    queries, mask = _writable(queries), _ALL if allowed is None else _writable(allowed)
    scratch.progress[0] = scratch.progress[1] = 0
    keys, ends = search(
        form.form, encoded.table, kind_of_rows, queries, mask, limits, encoded.whole, scratch.table, scratch.progress
    )
    if scratch.progress[0] == DONE:
        return _in_order(keys, ends)
    first = _copied(scratch, len(keys))
    rest = _found_in_parts(form, encoded, queries, mask, limits, encoded.whole, scratch.progress)
    return _joined([first, *rest]).of_each(len(queries))


def _writable(array: NDArray[Any]) -> NDArray[Any]:
    """Return an array that may be written and has no gaps, or a copy: for others, Numba would compile again."""
    return array if array.flags.writeable and array.flags.c_contiguous else array.copy(order="C")


def _in_order(keys: NDArray[np.int64], ends: NDArray[np.int64]) -> list[Found]:
    """Return the rows and the scores of each query from grouped keys."""
    if len(ends) == 1:
        if len(keys) > FEW:
            keys.sort()
        return [read_keys(keys)]
    stops = ends.tolist()
    starts = [0, *stops[:-1]]
    for start, stop in zip(starts, stops, strict=True):
        if stop - start > FEW:
            keys[start:stop].sort()
    rows, scores = read_keys(keys)
    return [(rows[start:stop], scores[start:stop]) for start, stop in zip(starts, stops, strict=True)]


def find(
    form: Form, encoded: Encoded, queries: Vectors, threshold: float, allowed: Mask | None = None, *, n_threads: int = 1
) -> Matches:
    """Return everything with `score >= threshold` for queries [q, D] float32.

    allowed: [n], the rows that may be found; None: all. n_threads: a batch is shared out by queries, and a query by the
    blocks that it visits. Raises InvalidEmbeddings if a value is not finite.
    """
    limits, (start, end, _, _) = _limits(threshold), encoded.whole
    queries, mask = _writable(queries), _ALL if allowed is None else _writable(allowed)
    if n_threads == 1:
        return _find(form, encoded, queries, mask, limits, encoded.whole)
    by_queries = len(queries) >= n_threads
    bounds = np.linspace(0, len(queries), n_threads + 1).astype(int).tolist()

    def share(number: int) -> Matches:
        if not by_queries:
            part = np.array([start, end, number, n_threads])
            return _find(form, encoded, queries, mask, limits, part)
        first = bounds[number]
        found = _find(form, encoded, queries[first : bounds[number + 1]], mask, limits, encoded.whole)
        return found._replace(queries=found.queries + np.int32(first))

    others = [_pool(n_threads - 1).submit(share, number) for number in range(1, n_threads)]
    return _joined([share(0), *(other.result() for other in others)])


@functools.cache
def _pool(n_threads: int) -> ThreadPoolExecutor:
    """Return the threads that share searches: starting one takes as long as a search."""
    return ThreadPoolExecutor(n_threads, thread_name_prefix="exact-search")


os.register_at_fork(after_in_child=_pool.cache_clear)  # the threads of a process stay in it


def _find(
    form: Form,
    encoded: Encoded,
    queries: Vectors,
    allowed: Mask,
    limits: NDArray[np.float64],
    part: NDArray[np.int64],
) -> Matches:
    """Return what is found in a part of the blocks, as `search` takes it."""
    return _joined([*_found_in_parts(form, encoded, queries, allowed, limits, part, np.zeros(2, np.int64))])


def _found_in_parts(
    form: Form,
    encoded: Encoded,
    queries: Vectors,
    allowed: Mask,
    limits: NDArray[np.float64],
    part: NDArray[np.int64],
    progress: NDArray[np.int64],
) -> Iterator[Matches]:
    """Yield what is found from `progress` on, in as many parts as the room of a thread takes.

    progress: of the caller's own if the thread may search for something else between two parts.
    """
    while progress[0] >= 0:
        scratch = _own_scratch()
        keys, _ = search(
            form.form, encoded.table, encoded.kind_of_rows, queries, allowed, limits, part, scratch.table, progress
        )
        yield _copied(scratch, len(keys))
    if progress[0] == NOT_FINITE:
        check_vectors(queries, queries.shape[1])


def _copied(scratch: _Scratch, n: int) -> Matches:
    return Matches(scratch.room.queries[:n].copy(), scratch.room.keys[:n].copy())


def _joined(found: list[Matches]) -> Matches:
    return found[0] if len(found) == 1 else Matches(*map(np.concatenate, zip(*found, strict=True)))


def pairs(form: Form, encoded: Encoded, threshold: float) -> Iterator[tuple[NDArray[np.int64], Vectors]]:
    """Yield all pairs of rows with `score >= threshold`, each once and none with itself: [h, 2] int64, [h] float32.

    The lower row, which comes first, is the query. A part has no more pairs than the room of a thread.
    """
    limits, order, rows = _limits(threshold), encoded.rows, encoded.gallery.rows
    in_order = replace(encoded, rows=order[:0])
    part = encoded.whole.copy()
    for start in range(0, len(rows), _AT_ONCE):
        queries = as_queries(rows[start : start + _AT_ONCE], offset=len(encoded.gallery.offsets) > 0)
        part[0] = start // BLOCK
        for found in _found_in_parts(form, in_order, queries, _ALL, limits, part, np.zeros(2, np.int64)):
            positions, scores = read_keys(found.keys)
            first = found.queries.astype(np.int64) + start
            later = positions > first
            both = np.stack([first[later], positions[later]], axis=1)
            if len(order):
                both = np.sort(order[both].astype(np.int64), axis=1)
            yield both, scores[later]


@functools.lru_cache(maxsize=64)
def _limits(threshold: float) -> NDArray[np.float64]:
    """Return the lowest float32 score that reaches a threshold, and the float32 before it."""
    (reached,) = float32_at_least(np.array([threshold]))
    with np.errstate(over="ignore"):  # every finite score reaches the threshold
        return np.array([reached, np.nextafter(reached, np.float32(-np.inf))], np.float64)


def _own_scratch() -> _Scratch:
    """Return what this thread searches with."""
    if not hasattr(_scratch, "kept"):
        hits = 2 * ROOM
        room = Room(np.empty(hits, np.int32), np.empty(hits, np.int64), np.empty((GROUP, ROOM), np.int32))
        _scratch.kept = _Scratch(room, table_of(*room), np.zeros(2, np.int64))
    kept: _Scratch = _scratch.kept
    return kept
