"""Galleries of any size that are distributed as real embeddings are: a smoothed bootstrap.

A drawn vector is a real one that is pushed by random parts of the differences to its 12 nearest neighbours: the
similarities, their upper tail and the spectrum stay as they were. Gaussian clusters do not. `regimes.py` has the real
ones.
"""

from __future__ import annotations

from collections.abc import Callable

import faiss
import numpy as np
from numpy.typing import NDArray

from retrieval.consistency import fit_whitening
from retrieval.contract.score import Score, cohort_score

Vectors = NDArray[np.float32]

_ASKED, _TILE = 1024, 20_000
_NEIGHBOURS, _SPREAD = 12, 0.8
_COHORT, _K, _WEIGHT = 4000, 20, 0.5


def made_up(n: int, d: int = 128) -> Vectors:
    """Return unit vectors around centres that lie around centres: a stand-in if there is no bundle to embed with."""
    rng = np.random.default_rng(0)
    rows = np.zeros((n, d), np.float32)
    for n_centres, spread in ((n // 200, 1.0), (n // 8, 0.5), (n, 0.25)):
        centres = rng.normal(size=(max(1, n_centres), d)).astype(np.float32)
        rows += spread * centres[np.arange(n) % len(centres)]
    return _unit(rows * np.exp(-np.arange(d, dtype=np.float32) / 24))


def without_duplicates(rows: Vectors) -> Vectors:
    """Return the rows that differ from all others in the first three decimals."""
    _, first = np.unique(np.round(rows, 3), axis=0, return_index=True)
    return rows[np.sort(first)]


def smoothed(
    base: Vectors, n: int, *, seed: int, progress: Callable[[int, int], None] = lambda done, total: None
) -> Vectors:
    """Return n unit vectors [n, d] that are distributed as the base is."""
    rng = np.random.default_rng(seed)
    neighbours = _neighbours(base, progress)
    out = np.empty((n, base.shape[1]), np.float32)
    for start in range(0, n, _TILE):
        rows = rng.integers(0, len(base), min(_TILE, n - start))
        pushes = (rng.normal(size=(len(rows), _NEIGHBOURS + 1)) * _SPREAD / np.sqrt(_NEIGHBOURS)).astype(np.float32)
        vectors = base[rows] * (1 - pushes.sum(axis=1, keepdims=True))
        for j in range(_NEIGHBOURS + 1):
            vectors += pushes[:, j : j + 1] * base[neighbours[rows, j]]
        out[start : start + len(rows)] = _unit(vectors)
        progress(start + len(rows), n)
    return out


def _neighbours(base: Vectors, progress: Callable[[int, int], None]) -> NDArray[np.int64]:
    """Return the rows that are most similar to each row, itself among them: [n, 13]."""
    index = faiss.IndexFlatIP(base.shape[1])
    index.add(base)
    found = []
    for start in range(0, len(base), _ASKED):
        found.append(index.search(base[start : start + _ASKED], _NEIGHBOURS + 1)[1])
        progress(min(start + _ASKED, len(base)), len(base))
    return np.concatenate(found)


def whitened_cohort(base: Vectors) -> Score:
    """Return a whitened cohort score whose cohort is a sample of the base."""
    rng = np.random.default_rng(1)
    sample = base[rng.permutation(len(base))[:_COHORT]]
    return cohort_score(sample[: _COHORT // 4], k=_K, weight=_WEIGHT, whitening=fit_whitening(sample))


def _unit(rows: Vectors) -> Vectors:
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True), np.float32)
