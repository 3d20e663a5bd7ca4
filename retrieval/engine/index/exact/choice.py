"""Chooses how a gallery is encoded, by timing: how many bytes a vector has at level 1, and whether lists pay."""

from __future__ import annotations

import itertools
import time
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from retrieval.engine.index.exact.instructions import BLOCK, Form
from retrieval.engine.index.exact.layout import Stored, as_floats, as_queries, directions, encode, has_offset, reencode
from retrieval.engine.index.exact.lists import Lists, no_lists, sort_into_lists
from retrieval.engine.index.exact.ranges import share_visited
from retrieval.engine.index.exact.search import Encoded, above

Vectors = NDArray[np.float32]

_BYTES = (8, 12, 16, 24, 32, 48, 64)
_USUAL_BYTES = 16
_SMALL = 4096  # vectors; fewer are scanned in microseconds however they are encoded
_SAMPLE, _QUERIES, _ROUNDS = 1 << 16, 24, 3
_ALL_OF = 1 << 17  # vectors; so many are all timed
_GAIN = 0.9  # lists must cost at most this share of a scan of everything
# What a block costs over a scan of the sample, measured: if others between are skipped; if blocks come from memory, as
# those of large galleries do.
_APART, _FROM_MEMORY, _IN_CACHE = 2.2, 2.0, 500_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """What was chosen, and the CPU time of a single query at the threshold it was chosen for; 0 if none was timed."""

    n_bytes: int
    n_lists: int
    microseconds: float


def encode_best(stored: Stored, threshold: float | None, form: Form, *, seed: int = 0) -> tuple[Encoded, Choice]:
    """Encode vectors [n, D] so that queries at this threshold are fast; with None, for no threshold in particular."""
    vectors = as_floats(stored).astype(np.float32, copy=False)
    d = vectors.shape[1] - (2 if has_offset(vectors) else 0)
    basis = directions(vectors[:, :d], seed=seed)
    if len(vectors) < _SMALL:
        encoded = Encoded(encode(stored, basis, _USUAL_BYTES), no_lists(d), np.empty(0, np.int32))
        return encoded, _choice(encoded, 0.0)
    offsets = vectors[:, -1] if d < vectors.shape[1] else vectors[:0, -1]
    order, lists = sort_into_lists(vectors[:, :d], offsets, basis=basis, seed=seed)
    if threshold is None:
        encoded = Encoded(encode(stored[order], basis, _USUAL_BYTES), lists, order)
        return encoded, _choice(encoded, 0.0)
    rng = np.random.default_rng(seed)
    queries = as_queries(stored[rng.choice(len(stored), _QUERIES, replace=False)], offset=len(offsets) > 0)
    costs = _Costs.measure(stored, order, basis, queries, threshold, form)
    share, cost_of_lists = _visited(lists, queries, threshold, -(-len(vectors) // BLOCK), offset=len(offsets) > 0)
    share *= _APART
    with_lists, whole = costs.best(share), costs.best(1.0)
    if cost_of_lists + costs.of(with_lists, share) > _GAIN * costs.of(whole, 1.0):
        with_lists, lists = whole, no_lists(d)
    encoded = Encoded(encode(stored[order], basis, with_lists), lists, order)
    return encoded, _choice(encoded, min(_seconds(form, encoded, queries, threshold) for _ in range(_ROUNDS)) * 1e6)


def _choice(encoded: Encoded, microseconds: float) -> Choice:
    n_bytes = encoded.gallery.blocks.shape[1] * 4
    return Choice(n_bytes=n_bytes, n_lists=len(encoded.lists.centres), microseconds=round(microseconds, 1))


@dataclass(frozen=True, slots=True)
class _Costs:
    """Seconds of a single query: of the call, and by bytes at level 1, to scan everything and for the candidates."""

    call: float
    scan: dict[int, float]
    rest: dict[int, float]

    def of(self, n_bytes: int, share: float) -> float:
        """Return the cost if a share of the blocks is scanned."""
        return self.call + share * self.scan[n_bytes] + self.rest[n_bytes]

    def best(self, share: float) -> int:
        """Return the number of bytes of the lowest cost."""
        return min(self.scan, key=lambda n_bytes: self.of(n_bytes, share))

    @classmethod
    def measure(
        cls,
        stored: Stored,
        order: NDArray[np.int32],
        basis: NDArray[np.float64],
        queries: Vectors,
        threshold: float,
        form: Form,
    ) -> _Costs:
        """Time a sample of the gallery, and project to the whole. Each round starts without the sample in the cache."""
        every = -(-len(stored) // _SAMPLE) if len(stored) > _ALL_OF else 1
        sample = stored[order[::every]]
        none = no_lists(len(basis)), np.empty(0, np.int32)
        encoded = {0: Encoded(encode(sample[:BLOCK], basis, _BYTES[0]), *none)}
        first = encode(sample, basis, _BYTES[0])
        encoded |= {n_bytes: Encoded(reencode(first, basis, n_bytes), *none) for n_bytes in _BYTES}
        rounds: dict[tuple[int, float], list[float]] = {}
        for _ in range(_ROUNDS):
            for n_bytes, at in itertools.product(encoded, (threshold, np.inf)):
                sample.sum()
                rounds.setdefault((n_bytes, at), []).append(_seconds(form, encoded[n_bytes], queries, at))
        least = {key: min(values) for key, values in rounds.items()}
        times = every * (_FROM_MEMORY if len(stored) > _IN_CACHE else 1)
        scan = {n_bytes: times * max(0.0, least[n_bytes, np.inf] - least[0, np.inf]) for n_bytes in _BYTES}
        rest = {n_bytes: every * max(0.0, least[n_bytes, threshold] - least[n_bytes, np.inf]) for n_bytes in _BYTES}
        return cls(least[0, np.inf], scan, rest)


def _visited(lists: Lists, queries: Vectors, threshold: float, n_blocks: int, *, offset: bool) -> tuple[float, float]:
    """Return the share of the blocks that queries visit, and the seconds that a query takes to find them."""
    share, rounds = 1.0, []
    for _ in range(_ROUNDS):
        start = time.thread_time()
        share = share_visited(lists, queries, threshold, offset, 0, n_blocks)
        rounds.append(time.thread_time() - start)
    return share, min(rounds) / len(queries)


def _seconds(form: Form, encoded: Encoded, queries: Vectors, threshold: float) -> float:
    """Return the CPU time of a single query."""
    start = time.thread_time()
    for number in range(len(queries)):
        above(form, encoded, queries[number : number + 1], threshold)
    return (time.thread_time() - start) / len(queries)
