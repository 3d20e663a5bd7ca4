"""What does a filter cost, and does it lose matches?

Every kind of index, at several selectivities (share of the rows that may be found), single queries and batches, one
thread. Ratio: CPU time with the filter over CPU time without it, in turns, the conversion of the filter included.
Missed: matches that the index finds without the filter, that the filter allows, and that it does not find with it.

Three kinds run without what they are for: CAGRA with a graph that is made on the CPU, `Exact on a GPU` with the same
tiles on the CPU, and Milvus in this process (milvus-lite), whose filter is not that of a cluster. The last line is one
JSON object.
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]  # ships no types

from retrieval.engine.index import faiss_native
from retrieval.engine.index.gpu_index import GpuIndex
from retrieval.engine.index.index import Index
from retrieval.engine.index.open import build_index
from retrieval.engine.index.spec import IndexSpec
from tests.bench.measuring.rounds import option_parser
from tests.bench.range_search import make_data
from tests.engine.index.cagra_on_cpu import cagra_on_cpu

Vectors = NDArray[np.float32]
_SELECTIVITIES = (0.5, 0.01, 0.0001)
_GOAL = 1.2
_TARGET_HITS = 20  # of a query without a filter
_ON_GPU = "Exact on a GPU"
_SLOW = {_ON_GPU: 16, "milvus": 8}  # queries a run of kinds that do not run on what they are for
_IN_MILVUS = 0.2  # share of the vectors: milvus-lite is slow to fill


def main() -> None:
    parser = option_parser(__doc__)
    parser.add_argument("--n", type=int, help="vectors (default 100000, quick 10000)")
    parser.add_argument("--d", type=int, default=128, help="dimension")
    parser.add_argument("--queries", type=int, default=64, help="queries a run")
    parser.add_argument("--kinds", nargs="+", help="strings of kinds; default: one of each")
    options = parser.parse_args()
    n = options.n or (10_000 if options.quick else 100_000)
    rows, left_out = [], {}
    with threadpool_limits(1), tempfile.TemporaryDirectory() as folder:
        vectors, queries = make_data(n, options.d, options.queries)
        scores = np.partition(queries @ vectors.T, -_TARGET_HITS, axis=1)
        threshold = float(np.median(scores[:, -_TARGET_HITS]))
        for kind in options.kinds or every_kind(n, Path(folder)):
            name = "milvus" if kind.startswith("milvus") else kind
            rows_of_kind = vectors[: round(_IN_MILVUS * n)] if name == "milvus" else vectors
            try:
                index = made(kind, rows_of_kind, threshold)
            except ImportError as error:
                left_out[name] = str(error)
                continue
            some = queries[: _SLOW.get(name, len(queries))]
            rows += measured(name, index, some, threshold, options.rounds)
    for row in rows:
        print("{kind:28} share {selectivity:<7} batch {batch:<3} missed {missed}  ratio {ratio:.3f}".format(**row))
    slower = [row for row in rows if row["ratio"] > _GOAL]
    missed = sum(row["missed"] for row in rows)
    result = {"n": n, "missed": missed, "goal": _GOAL, "slower": slower, "left_out": left_out, "rows": rows}
    print(json.dumps(result))


def every_kind(n: int, folder: Path) -> list[str]:
    """Return one string of each kind."""
    lists = 64 if n < 100_000 else 512
    probes = lists // 8
    return [
        *("Exact", "Flat", f"IVF{lists},nprobe={probes}", f"IVF{lists},SQfp16,nprobe={probes}"),
        *(f"IVF{lists},RaBitQ,nprobe={probes}", f"IVF{lists},PQ8,nprobe={probes}"),
        *("HNSW8,ef=64", "CAGRA32,ef=64", _ON_GPU, f"milvus:{folder}/lite.db?name=filters"),
    ]


def made(kind: str, vectors: Vectors, threshold: float) -> Index:
    """Build an index. Raises ImportError if its library is not installed."""
    if kind == _ON_GPU:
        return GpuIndex.build(vectors, device="cpu", threshold=threshold)
    if kind.startswith("milvus"):
        import milvus_lite  # noqa: F401  # the server behind a path
    if kind.startswith("CAGRA"):
        faiss_native.cagra_on_gpu = cagra_on_cpu
    return build_index(vectors, IndexSpec.parse(kind), threshold=threshold)


def measured(kind: str, index: Index, queries: Vectors, threshold: float, n_rounds: int) -> list[Mapping[str, Any]]:
    """Compare each filter with no filter."""
    rng = np.random.default_rng(1)
    rows: list[Mapping[str, Any]] = []
    for selectivity in _SELECTIVITIES:
        n_allowed = max(1, round(selectivity * index.n_items))
        allowed = np.zeros(index.n_items, np.bool_)
        allowed[rng.choice(index.n_items, n_allowed, replace=False)] = True
        for batch in (1, len(queries)):
            rounds = [
                [timed(index, queries, threshold, filtered, batch) for filtered in (None, allowed)]
                for _ in range(n_rounds + 1)
            ]
            (_, found), (_, kept) = rounds[0]
            ratios = [filtered / without for (without, _), (filtered, _) in rounds[1:]]
            missed = sum(
                int(np.setdiff1d(all_of[allowed[all_of]], some).size) for all_of, some in zip(found, kept, strict=True)
            )
            rows.append(
                {
                    "kind": kind,
                    "n": index.n_items,
                    "selectivity": selectivity,
                    "batch": batch,
                    "missed": missed,
                    "ratio": round(statistics.median(ratios), 3),
                    "microseconds": round(min(cost for _, (cost, _) in rounds), 1),
                    "matches": sum(len(positions) for positions in kept),
                }
            )
    return rows


def timed(
    index: Index, queries: Vectors, threshold: float, allowed: NDArray[np.bool_] | None, batch: int
) -> tuple[float, list[NDArray[np.int64]]]:
    """Return the CPU microseconds a query, and what each found."""
    started = time.process_time()
    hits = [
        each
        for start in range(0, len(queries), batch)
        for each in index.above(queries[start : start + batch], threshold, allowed)
    ]
    cost = time.process_time() - started
    return cost / len(queries) * 1e6, [each.positions for each in hits]


if __name__ == "__main__":
    main()
