"""What does a filter cost, and does it lose matches?

Every kind of index, at several selectivities (share of the rows that may be found), single queries and batches, one
thread. Ratio: CPU time with the filter over CPU time without it, in turns, the conversion of the filter included.
Lost: matches that the index finds without the filter, that the filter allows, and that it does not find with it.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]  # ships no types

from retrieval.engine.index.index import Index
from retrieval.engine.index.open import build_index
from retrieval.engine.index.spec import IndexSpec
from tests.bench.measuring.rounds import option_parser
from tests.bench.range_search import make_data

Vectors = NDArray[np.float32]
_SELECTIVITIES = (0.5, 0.01, 0.0001)
_BATCHES = (1, 64)
_GOAL = 1.2
_TARGET_HITS = 20  # of a query without a filter


def main() -> None:
    parser = option_parser(__doc__)
    parser.add_argument("--n", type=int, help="vectors (default 100000, quick 20000)")
    parser.add_argument("--d", type=int, default=128, help="dimension")
    parser.add_argument("--queries", type=int, default=64, help="queries a run")
    parser.add_argument("--kinds", nargs="+", help="strings of kinds; default: one of each")
    options = parser.parse_args()
    n = options.n or (20_000 if options.quick else 100_000)
    lists = 128 if n < 100_000 else 512
    kinds = options.kinds or [
        *("Exact", "Flat", f"IVF{lists},nprobe=16", f"IVF{lists},SQfp16,nprobe=16", f"IVF{lists},RaBitQ,nprobe=16"),
        *(f"IVF{lists},PQ16,nprobe=16", "HNSW16,ef=64"),
    ]
    rows = []
    with threadpool_limits(1):
        vectors, queries = make_data(n, options.d, options.queries)
        scores = np.partition(queries @ vectors.T, -_TARGET_HITS, axis=1)
        threshold = float(np.median(scores[:, -_TARGET_HITS]))
        for kind in kinds:
            index = build_index(vectors, IndexSpec.parse(kind), threshold=threshold)
            rows += measured(kind, index, queries, threshold, options.rounds)
    for row in rows:
        print("{kind:28} selectivity {selectivity:<7} batch {batch:<3} lost {lost}  ratio {ratio:.3f}".format(**row))
    slower = [row for row in rows if row["ratio"] > _GOAL]
    print(json.dumps({"n": n, "lost": sum(row["lost"] for row in rows), "goal": _GOAL, "slower": slower, "rows": rows}))


def measured(kind: str, index: Index, queries: Vectors, threshold: float, n_rounds: int) -> list[Mapping[str, Any]]:
    """Compare each filter with no filter."""
    rng = np.random.default_rng(1)
    rows: list[Mapping[str, Any]] = []
    for selectivity in _SELECTIVITIES:
        n_allowed = max(1, round(selectivity * index.n_items))
        allowed = np.zeros(index.n_items, np.bool_)
        allowed[rng.choice(index.n_items, n_allowed, replace=False)] = True
        for batch in _BATCHES:
            rounds = [
                [timed(index, queries, threshold, filtered, batch) for filtered in (None, allowed)]
                for _ in range(n_rounds + 1)
            ]
            (_, found), (_, kept) = rounds[0]
            ratios = [filtered / without for (without, _), (filtered, _) in rounds[1:]]
            lost = sum(
                int(np.setdiff1d(all_of[allowed[all_of]], some).size) for all_of, some in zip(found, kept, strict=True)
            )
            rows.append(
                {
                    "kind": kind,
                    "selectivity": selectivity,
                    "batch": batch,
                    "lost": lost,
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
    started = time.thread_time()
    hits = [
        each
        for start in range(0, len(queries), batch)
        for each in index.above(queries[start : start + batch], threshold, allowed)
    ]
    cost = time.thread_time() - started
    return cost / len(queries) * 1e6, [each.positions for each in hits]


if __name__ == "__main__":
    main()
