"""Runs the compiled search and collects its hits."""

from __future__ import annotations

import threading
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from retrieval.consistency import float32_at_least
from retrieval.engine.index.exact.instructions import BLOCK, GROUP, Form
from retrieval.engine.index.exact.kernels import ROOM, Found, Gallery, find_ranges, search_singly, search_together
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
    """Hits in no order: the number of the query, the row of the vector as it was added, and the score."""

    queries: NDArray[np.int32]
    rows: NDArray[np.int32]
    scores: NDArray[np.float32]


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
    (reached,) = float32_at_least(np.array([threshold]))
    lowest = float(np.nextafter(reached, np.float32(-np.inf)))
    gallery, lists = encoded.gallery, encoded.lists
    end = len(gallery.blocks)
    together = len(queries) > 1 and _share(encoded, queries[:GROUP], lowest) >= _SINGLY_BELOW
    found, progress = _room(), np.zeros(2, np.int64)
    parts: list[Matches] = []
    while progress[0] >= 0:
        if together:
            n = search_together(form, gallery, queries, allowed, reached, lowest, 0, end, found, progress)
        else:
            n = search_singly(form, gallery, lists, queries, allowed, reached, lowest, 0, end, found, progress)
        positions = found.positions[:n]
        rows = encoded.rows[positions] if len(encoded.rows) else positions.copy()
        parts.append(Matches(found.queries[:n].copy(), rows, found.scores[:n].copy()))
    return parts[0] if len(parts) == 1 else Matches(*map(np.concatenate, zip(*parts, strict=True)))


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


def _room() -> Found:
    """Return the room for hits of this thread."""
    if not hasattr(_scratch, "found"):
        n = 2 * ROOM
        _scratch.found = Found(np.empty(n, np.int32), np.empty(n, np.int32), np.empty(n, np.float32))
    found: Found = _scratch.found
    return found
