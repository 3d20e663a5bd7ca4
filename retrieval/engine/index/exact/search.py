"""Runs the compiled search and collects its hits."""

from __future__ import annotations

import functools
import itertools
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from retrieval.consistency import float32_at_least
from retrieval.engine.index.exact.instructions import BLOCK, GROUP, Form
from retrieval.engine.index.exact.kernels import (
    ROOM,
    Gallery,
    Room,
    find_ranges,
    read_keys,
    search_singly,
    search_together,
)
from retrieval.engine.index.exact.layout import as_queries
from retrieval.engine.index.exact.lists import Lists

Vectors = NDArray[np.float32]
Mask = NDArray[np.bool_]

_SINGLY_BELOW = 0.35  # share of the blocks that single queries may visit and still be faster than a pass for four
_AT_ONCE = 4 * BLOCK  # vectors of a self-join that are queries together
_ALL = np.empty(0, np.bool_)
_scratch = threading.local()


class Encoded(NamedTuple):
    """A gallery that can be searched: its codes, its lists, and the row of each position ([0]: they are the same)."""

    gallery: Gallery
    lists: Lists
    rows: NDArray[np.int32]


class Matches(NamedTuple):
    """Hits in no order: the number of the query [h] int32, and a key [h] int64 of score and row, see `read_keys`."""

    queries: NDArray[np.int32]
    keys: NDArray[np.int64]

    def of_each(self, n_queries: int) -> list[tuple[NDArray[np.int64], NDArray[np.float32]]]:
        """Return the rows and the scores of each query: best first, equal scores by row."""
        if n_queries == 1:
            return [read_keys(np.sort(self.keys))]
        order = np.argsort(self.queries, kind="stable")
        keys, ends = self.keys[order], np.searchsorted(self.queries[order], np.arange(n_queries + 1))
        return [read_keys(np.sort(keys[start:end])) for start, end in itertools.pairwise(ends)]


def find(
    form: Form, encoded: Encoded, queries: Vectors, threshold: float, allowed: Mask | None = None, *, n_threads: int = 1
) -> Matches:
    """Return everything with `score >= threshold` for queries [q, D] float32.

    allowed: [n], the rows that may be found; None: all. n_threads: a batch is shared out by queries, and a query by
    blocks.
    """
    limits, end = _limits(threshold), len(encoded.gallery.blocks)
    mask = _ALL if allowed is None else allowed
    if n_threads == 1:
        return _find(form, encoded, queries, mask, limits, (0, end))
    by_queries = len(queries) >= n_threads
    bounds = np.linspace(0, len(queries) if by_queries else end, n_threads + 1).astype(int).tolist()

    def share(first: int, last: int) -> Matches:
        if not by_queries:
            return _find(form, encoded, queries, mask, limits, (first, last))
        found = _find(form, encoded, queries[first:last], mask, limits, (0, end))
        return found._replace(queries=found.queries + np.int32(first))

    with ThreadPoolExecutor(n_threads - 1) as pool:
        others = [pool.submit(share, *part) for part in itertools.pairwise(bounds[1:])]
        return _joined([share(*bounds[:2]), *(other.result() for other in others)])


def _find(
    form: Form,
    encoded: Encoded,
    queries: Vectors,
    allowed: Mask,
    limits: tuple[np.float32, float],
    part: tuple[int, int],
) -> Matches:
    """Return what is found in a part of the blocks: the first, and the one after the last."""
    gallery, lists, order = encoded
    together = len(queries) > 1 and _share(encoded, queries[:GROUP], limits[1], part) >= _SINGLY_BELOW
    room, progress = _room(), np.zeros(2, np.int64)
    found: list[Matches] = []
    while progress[0] >= 0:
        if together:
            n = search_together(form, gallery, order, queries, allowed, limits, part, room, progress)
        else:
            n = search_singly(form, gallery, lists, order, queries, allowed, limits, part, room, progress)
        found.append(Matches(room.queries[:n].copy(), room.keys[:n].copy()))
    return _joined(found)


def _joined(found: list[Matches]) -> Matches:
    return found[0] if len(found) == 1 else Matches(*map(np.concatenate, zip(*found, strict=True)))


def pairs(form: Form, encoded: Encoded, threshold: float) -> Iterator[tuple[NDArray[np.int64], Vectors]]:
    """Yield all pairs of rows with `score >= threshold`, each once and none with itself: [h, 2] int64, [h] float32.

    The lower row, which comes first, is the query. Each part of the result belongs to some hundred vectors.
    """
    limits, order, rows = _limits(threshold), encoded.rows, encoded.gallery.rows
    end = len(encoded.gallery.blocks)
    in_order = encoded._replace(rows=order[:0])
    for start in range(0, len(rows), _AT_ONCE):
        queries = as_queries(rows[start : start + _AT_ONCE], offset=len(encoded.gallery.offsets) > 0)
        found = _find(form, in_order, queries, _ALL, limits, (start // BLOCK, end))
        positions, scores = read_keys(found.keys)
        first = found.queries.astype(np.int64) + start
        later = positions > first
        both = np.stack([first[later], positions[later]], axis=1)
        if len(order):
            both = np.sort(order[both].astype(np.int64), axis=1)
        yield both, scores[later]


@functools.lru_cache(maxsize=64)
def _limits(threshold: float) -> tuple[np.float32, float]:
    """Return the lowest float32 score that reaches a threshold, and the float32 before it."""
    (reached,) = float32_at_least(np.array([threshold]))
    return reached, float(np.nextafter(reached, np.float32(-np.inf)))


def _share(encoded: Encoded, queries: Vectors, lowest: float, part: tuple[int, int]) -> float:
    """Return the share of the blocks of a part that the queries visit one by one."""
    if not len(encoded.lists.centres):
        return 1.0
    ranges = np.empty((len(encoded.lists.centres) + 1, 2), np.int64)
    visited = 0
    for query in queries:
        n = find_ranges(encoded.lists, query, lowest, len(encoded.gallery.offsets) > 0, *part, ranges)
        visited += int((ranges[:n, 1] - ranges[:n, 0]).sum())
    return visited / max(1, (part[1] - part[0]) * len(queries))


def _room() -> Room:
    """Return the room of this thread."""
    if not hasattr(_scratch, "room"):
        hits = 2 * ROOM
        _scratch.room = Room(np.empty(hits, np.int32), np.empty(hits, np.int64), np.empty((GROUP, ROOM), np.int32))
    room: Room = _scratch.room
    return room
