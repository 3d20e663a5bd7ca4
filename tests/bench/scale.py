"""What does the exact index need for each vector: bytes, CPU time to build, CPU time to search?

The constants of docs/scale.md. One thread, CPU time. The thresholds are those that a share of the pairs (query, vector)
reaches; a gallery of a billion vectors has ten matches a query at a share of 1e-8.

Prints one JSON object, with figures per million vectors. `--quick` uses 40,000 vectors.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]  # ships no types

from retrieval.engine.index.exact_index import ExactIndex
from tests.bench.measuring.smoothed import made_up, smoothed

Vectors = NDArray[np.float32]

_FARS = (1e-4, 1e-5, 1e-6, 1e-7)
_QUERIES, _ROUNDS, _TILE = 64, 3, 1 << 16


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="40,000 vectors")
    parser.add_argument("--n", type=int, help="vectors (default 1000000, quick 40000)")
    parser.add_argument("--gallery", type=Path, help="vectors [n, d] in a .npy file, in place of made-up ones")
    options = parser.parse_args()
    n = options.n or (40_000 if options.quick else 1_000_000)
    with threadpool_limits(1):
        rows = np.load(options.gallery) if options.gallery else smoothed(made_up(8000), n + _QUERIES, seed=7)
        gallery, queries = np.ascontiguousarray(rows[:-_QUERIES][:n]), rows[-_QUERIES:]
        figures = measure(gallery, queries)
    print(json.dumps({"data": str(options.gallery or "made up"), "n": len(gallery), **figures}))


def measure(gallery: Vectors, queries: Vectors) -> dict[str, object]:
    """Return the figures per million vectors, by FAR."""
    tiles = range(0, len(gallery), _TILE)
    scores = np.sort(np.concatenate([(gallery[start : start + _TILE] @ queries.T).ravel() for start in tiles]))
    by_far: dict[str, dict[str, object]] = {}
    for far in _FARS:
        threshold = float(scores[-max(1, int(far * len(scores)))])
        by_far[f"{far:g}"] = measure_at(threshold, gallery, queries)
    return {"d": gallery.shape[1], "by_far": by_far}


def measure_at(threshold: float, gallery: Vectors, queries: Vectors) -> dict[str, object]:
    """Return the figures of the index that is built for one threshold."""
    millions = len(gallery) / 1e6
    started = time.thread_time()
    index = ExactIndex.build(gallery, threshold=threshold)
    build_s = time.thread_time() - started
    single = fastest(lambda: [index.above(query[None], threshold) for query in queries])
    batch = fastest(lambda: index.above(queries, threshold))
    n_bytes, opened_ms = on_disk(index)
    return {
        "single_us_per_million": round(single / len(queries) / millions * 1e6, 1),
        "batch_us_per_million": round(batch / len(queries) / millions * 1e6, 1),
        "build_cpu_s_per_million": round(build_s / millions, 1),
        "bytes_a_vector": round(n_bytes, 1),
        "level_1_bytes": index.choice.n_bytes,
        "lists": index.choice.n_lists,
        "open_ms": round(opened_ms, 1),
    }


def fastest(call: Callable[[], object]) -> float:
    """Return the CPU seconds of the fastest of some calls."""
    costs = []
    for _ in range(_ROUNDS + 1):
        started = time.thread_time()
        call()
        costs.append(time.thread_time() - started)
    return min(costs[1:])


def on_disk(index: ExactIndex) -> tuple[float, float]:
    """Return the bytes a vector of the file, and the milliseconds that opening it takes."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "index"
        index.save(path)
        started = time.monotonic()
        ExactIndex.load(path, dimension=index.dimension, n_items=index.n_items)
        return path.stat().st_size / index.n_items, (time.monotonic() - started) * 1000


if __name__ == "__main__":
    main()
