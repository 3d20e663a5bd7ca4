"""Chooses how a gallery is encoded, by timing: how many bytes a vector has at level 1, and whether lists pay."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from retrieval.engine.index.exact.instructions import Form
from retrieval.engine.index.exact.layout import Stored, as_floats, as_queries, directions, encode, has_offset
from retrieval.engine.index.exact.lists import no_lists, sort_into_lists
from retrieval.engine.index.exact.search import Encoded, find

Vectors = NDArray[np.float32]

_BYTES = (16, 32, 64, 128)
_USUAL_BYTES = 32
_SMALL = 4096  # vectors; fewer are scanned in microseconds however they are encoded
_SAMPLE, _QUERIES, _ROUNDS = 1 << 16, 24, 3
_GAIN = 0.9  # lists must cost at most this share of a scan of everything


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
    rng = np.random.default_rng(seed)
    queries = as_queries(stored[rng.choice(len(stored), _QUERIES, replace=False)], offset=d < vectors.shape[1])
    n_bytes = _USUAL_BYTES if threshold is None else _best_bytes(stored, basis, queries, threshold, form, rng)
    offsets = vectors[:, -1] if d < vectors.shape[1] else vectors[:0, -1]
    order, lists = sort_into_lists(vectors[:, :d], offsets, seed=seed)
    with_lists = Encoded(encode(stored[order], basis, n_bytes), lists, order)
    if threshold is None:
        return with_lists, _choice(with_lists, 0.0)
    whole = with_lists._replace(lists=no_lists(d))
    cost, cost_whole = (_microseconds(form, each, queries, threshold) for each in (with_lists, whole))
    return (with_lists, _choice(with_lists, cost)) if cost < _GAIN * cost_whole else (whole, _choice(whole, cost_whole))


def _choice(encoded: Encoded, microseconds: float) -> Choice:
    n_bytes = encoded.gallery.blocks.shape[1] * 4
    return Choice(n_bytes=n_bytes, n_lists=len(encoded.lists.centres), microseconds=round(microseconds, 1))


def _best_bytes(
    stored: Stored,
    basis: NDArray[np.float64],
    queries: Vectors,
    threshold: float,
    form: Form,
    rng: np.random.Generator,
) -> int:
    """Return the number of bytes at level 1 with the lowest cost on a sample of the gallery."""
    sample = stored
    if len(stored) > _SAMPLE:
        sample = stored[np.sort(rng.choice(len(stored), _SAMPLE, replace=False))]
    costs = {}
    for n_bytes in _BYTES:
        encoded = Encoded(encode(sample, basis, n_bytes), no_lists(len(basis)), np.empty(0, np.int32))
        costs[n_bytes] = _microseconds(form, encoded, queries, threshold)
    return min(costs, key=costs.__getitem__)


def _microseconds(form: Form, encoded: Encoded, queries: Vectors, threshold: float) -> float:
    """Return the CPU time of a single query: the fastest of some rounds."""
    rounds = []
    for _ in range(_ROUNDS):
        start = time.thread_time()
        for number in range(len(queries)):
            find(form, encoded, queries[number : number + 1], threshold)
        rounds.append(time.thread_time() - start)
    return min(rounds) / len(queries) * 1e6
