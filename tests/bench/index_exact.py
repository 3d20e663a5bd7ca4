"""How much faster is the exact index than a flat scan, and than the best approximate index at recall 0.99?

Three regimes (`tests/bench/measuring/regimes.py`), one thread, CPU time. For each pair FAR, the threshold is the score
that this share of the pairs (query, vector) reaches. Flat is FAISS's `range_search`, in batches with its matrix
products. Approximate are IVF and HNSW at the least effort that finds 99 % of the matches of other queries
(`approximate.py`); the fastest counts. The cases take turns; a ratio is the median over the rounds, rounded down. Above
1, the exact index is faster. The answers are compared with brute force: each query alone, in a batch, and at a score
that lies in the gallery.

Without `--embeddings`, the galleries are drawn from icons that a trained model embedded; the first run fetches, renders
and embeds them into `--folder`, for minutes. `--quick` takes the sample of them that is kept with the sources.

Prints one JSON object on the last line: at its top `missed` and `wrong`, by FAR, are sums over the regimes, the other
figures are of the first regime; `regimes` has all of them.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import faiss
import numpy as np
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]  # ships no types

from retrieval.engine.index.exact_index import ExactIndex, warm
from tests.bench.measuring.brute_force import Difference, Truth
from tests.bench.measuring.index_costs import BATCH, costs, on_disk, self_join_over_flat, two_threads
from tests.bench.measuring.kept_sample import BUNDLE, FOLDER
from tests.bench.measuring.prepared import Prepared, prepare
from tests.bench.measuring.regimes import REGIMES, Sources, make_regime
from tests.bench.measuring.shown import Shown

_OPEN_FAR, _JOIN_FAR = 1e-3, 1e-5
_MOST_FOR_JOIN = 200_000  # its flat scan is quadratic
_KEYS = (
    *("missed", "wrong", "single_over_flat", "single_over_approximate", "batch_over_flat", "batch_over_approximate"),
    *("build_cpu_s", "bytes_per_vector"),
)


def main() -> None:
    options = _options()
    shown = Shown()
    sources = Sources(
        embeddings=options.embeddings,
        head_embeddings=options.head_embeddings,
        folder=None if options.quick else options.folder,
        bundle=options.bundle,
        may_make=options.embeddings is None,
    )
    found = {}
    with threadpool_limits(1):
        faiss.omp_set_num_threads(1)
        for name in options.regimes:
            base, data = sources.find(name, shown)
            shown.line(f"{name}: {data}")
            n_queries = max(options.checked, 2 * options.queries)
            n = options.n // 2 if options.quick and name == "head" else options.n  # four times the columns
            regime = make_regime(name, base, data, n=n, n_queries=n_queries, shown=shown)
            found[name] = measure(prepare(name, regime, options, shown), options, shown)
    first = next(iter(found.values()))
    top = {key: first[key] for key in _KEYS}
    for key in ("missed", "wrong"):
        top[key] = {far: sum(each[key][far] for each in found.values()) for far in first[key]}
    print(json.dumps({"n": options.n, "half": options.half, "checked": options.checked, **top, "regimes": found}))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="10,000 vectors of the kept sample (head: 5,000), no HNSW")
    parser.add_argument("--n", type=int, help="vectors (default 100000, quick 10000)")
    parser.add_argument("--checked", type=int, help="queries compared with brute force (default 2000, quick 100)")
    parser.add_argument("--queries", type=int, help="queries that are timed, and as many to tune (1000, quick 100)")
    parser.add_argument("--rounds", type=int, help="rounds of each ratio (default 11, quick 5)")
    parser.add_argument("--regimes", nargs="+", choices=REGIMES, default=REGIMES)
    parser.add_argument("--embeddings", type=Path, help="your embeddings [n, d], .npy, for trained and cohort")
    parser.add_argument("--head-embeddings", type=Path, help="your embeddings [n, d], .npy, for head")
    parser.add_argument("--folder", type=Path, default=FOLDER, help=f"where icons are kept (default {FOLDER})")
    parser.add_argument("--bundle", type=Path, default=BUNDLE, help=f"model that embeds icons (default {BUNDLE})")
    parser.add_argument("--half", action="store_true", help="the index stores float16; all compare those vectors")
    parser.add_argument("--no-hnsw", action="store_true", help="leave HNSW out: building it takes minutes at a million")
    options = parser.parse_args()
    quick = options.quick
    options.n = options.n or (10_000 if quick else 100_000)
    options.checked = options.checked or (100 if quick else 2000)
    options.queries = max(options.queries or (100 if quick else 1000), BATCH)
    options.rounds = options.rounds or (5 if quick else 11)
    options.no_hnsw = options.no_hnsw or quick
    return options


def measure(prepared: Prepared, options: argparse.Namespace, shown: Shown) -> dict[str, Any]:
    """Return the figures of one regime, by FAR."""
    gallery, flat, timed = prepared.gallery, prepared.flat, prepared.timed
    warm()
    by_far: dict[str, dict[str, Any]] = {}
    for far, threshold in prepared.thresholds.items():
        started = time.thread_time()
        exact = ExactIndex.build(gallery, threshold=threshold, half=options.half)
        row: dict[str, Any] = {"build_cpu_s": round(time.thread_time() - started, 2)}
        row["bytes_per_vector"] = exact.details()["bytes_per_vector"]
        row |= costs(exact, flat, prepared.opponents[threshold], timed, threshold, n_rounds=options.rounds)
        difference = compare(exact, prepared.truth, threshold, options.checked, shown)
        row |= {"missed": difference.missed, "wrong": difference.wrong, "answers": difference.answers}
        row |= {"matches": difference.matches, "choice": f"{exact.choice.n_bytes} bytes, {exact.choice.n_lists} lists"}
        row["two_threads_over_one"] = two_threads(exact, timed, threshold, options.rounds)
        if far == _OPEN_FAR:
            row["file"] = on_disk(exact)
        if far == _JOIN_FAR and len(gallery) <= _MOST_FOR_JOIN and prepared.name != "cohort":
            row["self_join_over_flat"] = self_join_over_flat(exact, flat, gallery, threshold)
        by_far[f"{far:g}"] = row
        shown.line(f"{prepared.name}, FAR {far:g}: {row}")
    keys = dict.fromkeys(key for row in by_far.values() for key in row)
    figures = {key: {far: row[key] for far, row in by_far.items() if key in row} for key in keys}
    return {"data": prepared.data, "n": len(gallery), "d": gallery.shape[1], **figures}


def compare(exact: ExactIndex, truth: Truth, threshold: float, n_checked: int, shown: Shown) -> Difference:
    """Compare the answers of the index: each query alone, in a batch, and at a score that lies in the gallery."""
    difference = Difference()
    progress = shown.watch("compare with brute force")
    for first in range(0, n_checked, BATCH):
        numbers = range(first, min(first + BATCH, n_checked))
        batch = exact.above(truth.queries[numbers.start : numbers.stop], threshold)
        for number, hits in zip(numbers, batch, strict=True):
            query = truth.queries[number : number + 1]
            alone = exact.above(query, threshold)[0]
            same = all(map(np.array_equal, (alone.positions, alone.scores), (hits.positions, hits.scores)))
            difference.add(truth, number, threshold, alone, times=2 if same else 1)
            if not same:
                difference.add(truth, number, threshold, hits)
            stored = truth.stored_score(number, threshold)
            if stored is not None:
                difference.add(truth, number, stored, exact.above(query, stored)[0])
        progress(numbers.stop, n_checked)
    return difference


if __name__ == "__main__":
    main()
