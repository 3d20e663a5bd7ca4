"""Galleries of many kinds, and what a search of them must find."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from retrieval.engine.index.exact.layout import has_offset

Vectors = NDArray[np.float32]


def unit(rows: NDArray[np.float64]) -> Vectors:
    """Return the rows with norm 1."""
    return np.asarray(rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-30), np.float32)


def clustered(n: int, d: int, rng: np.random.Generator) -> Vectors:
    """Return unit vectors around a few centres, with most energy in the first dimensions."""
    centres = rng.normal(size=(max(1, n // 20), d))
    rows = centres[rng.integers(len(centres), size=n)] + 0.3 * rng.normal(size=(n, d))
    return unit(rows * np.exp(-np.arange(d) / 10))


def with_offset(n: int, d: int, rng: np.random.Generator, *, size: float = 1e4) -> Vectors:
    """Return score vectors of a cohort: unit vectors, a column of ones, an offset; some offsets are huge."""
    offsets = rng.normal(size=(n, 1)) * np.where(rng.random((n, 1)) < 0.05, size, 0.1)
    return np.concatenate([clustered(n, d, rng), np.ones((n, 1)), offsets], axis=1).astype(np.float32)


KINDS: dict[str, Callable[[int, int, np.random.Generator], Vectors]] = {
    "clustered": clustered,
    "offset": with_offset,
    "random": lambda n, d, rng: unit(rng.normal(size=(n, d))),
    "duplicated": lambda n, d, rng: clustered(max(1, n // 8), d, rng)[rng.integers(max(1, n // 8), size=n)],
    "all equal": lambda n, d, rng: np.repeat(clustered(1, d, rng), n, axis=0),
    "zeros": lambda n, d, rng: np.where(rng.random((n, 1)) < 0.5, 0, clustered(n, d, rng)).astype(np.float32),
    "nothing but zeros": lambda n, d, _: np.zeros((n, d), np.float32),
    "subnormal in float16": lambda n, d, rng: (clustered(n, d, rng) * np.float32(2e-6)).astype(np.float32),
    "huge offset": lambda n, d, rng: with_offset(n, d, rng, size=1e30),
    "of any norm": lambda n, d, rng: (clustered(n, d, rng) * np.exp(rng.normal(size=(n, 1)) * 8)).astype(np.float32),
    "subnormal": lambda n, d, rng: (clustered(n, d, rng) * np.float32(1e-41)).astype(np.float32),
    "one direction": lambda n, d, rng: (clustered(1, d, rng) * rng.normal(size=(n, 1))).astype(np.float32),
    "eighths": lambda n, d, rng: (rng.integers(-4, 5, (n, d)) / 8).astype(np.float32),
}

WITH_OFFSET = {"offset", "huge offset"}


def queries_of(vectors: Vectors, kind: str, n: int, rng: np.random.Generator) -> Vectors:
    """Return gallery vectors and others as queries; an offset is in the last column but one of a query."""
    own = vectors[rng.integers(len(vectors), size=n - n // 2)]
    offset = kind in WITH_OFFSET
    other = KINDS[kind](n // 2 + 1, vectors.shape[1] - (2 if offset else 0), rng)[: n // 2]
    queries = np.concatenate([own, other])
    if offset:
        queries[:, -2:] = queries[:, [-1, -2]]
        queries[::5, -1] = -0.5  # a weight that no score has, but that a caller may send
    return queries


def rounded(vectors: Vectors) -> Vectors:
    """Return the float32 vectors that an index in float16 stores; numbers that are too large for it are cut."""
    return vectors.clip(-65504, 65504).astype(np.float16).astype(np.float32)


def scores(vectors: Vectors, queries: Vectors) -> NDArray[np.float32]:
    """Return the scores as docs/exact-search.md defines them, bit for bit: [q, n]. The slow reference.

    The products are added in float64: in 16 lanes, the lanes in halves, then what fills no lanes, then the offset.
    """
    d = vectors.shape[1] - (2 if has_offset(vectors) else 0)
    whole = d // 16 * 16
    lines = []
    for query in queries.astype(np.float64):
        products = vectors.astype(np.float64) * query
        lanes = np.zeros((len(vectors), 16))
        for start in range(0, whole, 16):
            lanes += products[:, start : start + 16]
        for width in (8, 4, 2, 1):
            lanes = lanes[:, :width] + lanes[:, width : 2 * width]
        total = lanes[:, 0]
        for column in range(whole, d):
            total = total + products[:, column]
        if d < vectors.shape[1]:
            total = total + (products[:, d] + products[:, d + 1])
        lines.append(total)
    with np.errstate(over="ignore"):
        return np.array(lines).astype(np.float32) + np.float32(0)
