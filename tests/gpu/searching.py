"""The complete threshold search on the device against brute force, and what a filter costs there."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.gpu.run import Run

Vectors = NDArray[np.float32]

DIMENSION = 128
_PER_CLUSTER = 20
_CHUNK = 1 << 18
_MATCHES = 100  # a query: FAR 1e-4 among a million vectors, 1e-5 among ten millions
_SHARES = (0.5, 0.01, 0.0001)  # of the rows that a filter allows


def search(run: Run, *, n: int) -> dict[str, Any]:
    """The complete threshold search against brute force: missed and wrong pairs, and queries a second.

    Queries are complete: candidates, exact scores, and the hits of each query. filter_cost: time with a filter over
    time without it, by the share of the rows that it allows.
    """
    from retrieval.engine.index.exact_scores import hits_of
    from retrieval.engine.index.gpu_index import GpuSearch, devices_of

    n = run.size(n, n // 250 + 1000)
    vectors = clustered(n)
    queries = vectors[np.random.default_rng(1).integers(n, size=run.size(256, 24))]
    threshold = threshold_for(vectors, queries)
    start = time.monotonic()
    on_device = GpuSearch(vectors, devices_of(run.device))
    loaded = time.monotonic() - start
    checked = queries[: run.size(64, 24)]
    numbers, rows, scores = on_device.pairs(checked, threshold)
    kept = scores >= np.float32(threshold)
    found = np.unique(numbers[kept] * n + rows[kept])
    wanted = brute_force(vectors, checked, threshold)

    if not len(wanted):
        raise ValueError("no pair reaches the threshold, so this would prove nothing")

    def answered(batch: int, allowed: NDArray[np.bool_] | None = None) -> float:
        began, n_done = time.monotonic(), 0
        while time.monotonic() - began < run.size(4, 0) or not n_done:
            part = queries[n_done % len(queries) :][:batch]
            hits_of(len(part), *on_device.pairs(part, threshold, allowed), threshold)
            n_done += len(part)
        return n_done / (time.monotonic() - began)

    rng, batches = np.random.default_rng(3), answered(64)
    filters = {str(share): round(batches / answered(64, rng.random(n) < share), 3) for share in _SHARES}
    return {
        "n": n,
        "matches": len(wanted),
        "missed": len(np.setdiff1d(wanted, found)),
        "wrong": len(np.setdiff1d(found, wanted)),
        "candidates_over_matches": round(len(rows) / max(1, len(wanted)), 3),
        "queries_per_s_single": round(answered(1), 1),
        "queries_per_s_batches_of_64": round(batches, 1),
        "filter_cost": filters,
        "seconds_to_load": round(loaded, 1),
        "threshold": round(threshold, 4),
    }


def clustered(n: int) -> Vectors:
    """Return unit vectors [n, 128] around many centres."""
    centres = np.random.default_rng(0).standard_normal((max(1, n // _PER_CLUSTER), DIMENSION), dtype=np.float32)
    vectors = np.empty((n, DIMENSION), np.float32)

    def fill(start: int) -> None:
        rng, part = np.random.default_rng([2, start]), vectors[start : start + _CHUNK]
        rng.standard_normal(dtype=np.float32, out=part)
        part *= 0.7
        part += centres[rng.integers(len(centres), size=len(part))]
        part /= np.linalg.norm(part, axis=1, keepdims=True)

    with ThreadPoolExecutor() as threads:
        list(threads.map(fill, range(0, n, _CHUNK)))
    return vectors


def threshold_for(vectors: Vectors, queries: Vectors, n_matches: int = _MATCHES) -> float:
    """Return a score that occurs and that about so many vectors a query reach, as a sample of the vectors has it."""
    step = max(1, len(vectors) // 200_000)
    sample = np.sort((queries @ vectors[::step].T).ravel())
    return float(sample[-max(1, len(sample) * n_matches // len(vectors))])


def brute_force(vectors: Vectors, queries: Vectors, threshold: float) -> NDArray[np.int64]:
    """Return the number of each pair that reaches the threshold, query * n + row, from products in float64."""
    exact, parts = queries.astype(np.float64), []
    for start in range(0, len(vectors), _CHUNK):
        scores = (exact @ vectors[start : start + _CHUNK].astype(np.float64).T).astype(np.float32)
        numbers, rows = np.nonzero(scores >= np.float32(threshold))
        parts.append(numbers * len(vectors) + rows + start)
    return np.unique(np.concatenate(parts))
