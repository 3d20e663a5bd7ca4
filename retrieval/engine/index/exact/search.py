"""Runs the compiled search and collects its hits."""

from __future__ import annotations

import functools
import itertools
import threading
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
from retrieval.engine.index.exact.lists import Lists

Mask = NDArray[np.uint64]

_SINGLY_BELOW = 0.35  # share of the blocks that single queries may visit and still be faster than a pass for four
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


def everything(n: int) -> Mask:
    """Return the mask that lets all n vectors be found: a bit for each, [ceil(n / 64)] uint64."""
    mask = np.full(-(-n // BLOCK), ~np.uint64(0))
    if n % BLOCK:
        mask[-1] = np.uint64((1 << n % BLOCK) - 1)
    return mask


def mask_of(rows: NDArray[np.bool_], encoded: Encoded) -> Mask:
    """Return the mask of the vectors that may be found; rows: [n], in the order in which they were added."""
    chosen = rows[encoded.rows] if len(encoded.rows) else rows
    padded = np.zeros(-(-len(rows) // BLOCK) * BLOCK, np.bool_)
    padded[: len(rows)] = chosen
    return np.packbits(padded, bitorder="little").view(np.uint64)


def find(form: Form, encoded: Encoded, queries: NDArray[np.float32], threshold: float, allowed: Mask) -> Matches:
    """Return everything with `score >= threshold` for queries [q, D] float32."""
    limits = _limits(threshold)
    gallery, lists, order = encoded
    part = (0, len(gallery.blocks))
    together = len(queries) > 1 and _share(encoded, queries[:GROUP], limits[1]) >= _SINGLY_BELOW
    room, progress = _room(), np.zeros(2, np.int64)
    found: list[Matches] = []
    while progress[0] >= 0:
        if together:
            n = search_together(form, gallery, order, queries, allowed, limits, part, room, progress)
        else:
            n = search_singly(form, gallery, lists, order, queries, allowed, limits, part, room, progress)
        found.append(Matches(room.queries[:n].copy(), room.keys[:n].copy()))
    return found[0] if len(found) == 1 else Matches(*map(np.concatenate, zip(*found, strict=True)))


@functools.lru_cache(maxsize=64)
def _limits(threshold: float) -> tuple[np.float32, float]:
    """Return the lowest float32 score that reaches a threshold, and the float32 before it."""
    (reached,) = float32_at_least(np.array([threshold]))
    return reached, float(np.nextafter(reached, np.float32(-np.inf)))


def _share(encoded: Encoded, queries: NDArray[np.float32], lowest: float) -> float:
    """Return the share of the blocks that the queries visit one by one."""
    if not len(encoded.lists.centres):
        return 1.0
    end = len(encoded.gallery.blocks)
    ranges = np.empty((len(encoded.lists.centres) + 1, 2), np.int64)
    visited = 0
    for query in queries:
        n = find_ranges(encoded.lists, query, lowest, len(encoded.gallery.offsets) > 0, 0, end, ranges)
        visited += int((ranges[:n, 1] - ranges[:n, 0]).sum())
    return visited / (end * len(queries))


def _room() -> Room:
    """Return the room of this thread."""
    if not hasattr(_scratch, "room"):
        hits = 2 * ROOM
        _scratch.room = Room(np.empty(hits, np.int32), np.empty(hits, np.int64), np.empty((GROUP, ROOM), np.int32))
    room: Room = _scratch.room
    return room
