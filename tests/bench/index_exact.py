"""How much faster is the exact index than a flat scan, and than the best approximate index at recall 0.99?

One thread, CPU time. For each pair FAR, the threshold is the score that this share of the pairs (query, vector)
reaches. Flat is FAISS's `range_search`, in batches with its matrix products. Approximate are IVF at the smallest nprobe
of a grid that finds 99 % of the matches, the same with 16-bit codes, and HNSW; the fastest counts. The cases take
turns, and a ratio is one of medians. Every answer of the exact index is compared with brute force in float64, also at
thresholds that are equal to scores of the gallery.

Prints one JSON object. `--quick` uses fewer vectors and no HNSW. A ratio above 1: the exact index is faster.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import faiss
import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]  # ships no types

from retrieval.engine.index.exact_index import ExactIndex
from retrieval.engine.index.index import Hits
from retrieval.errors import RetrievalError
from tests.bench.measuring.smoothed import BUNDLE, drawings, made_up, smoothed, whitened_cohort, without_duplicates

Vectors = NDArray[np.float32]
Search = Callable[[Vectors], object]

FARS = (1e-2, 1e-3, 1e-4, 1e-5)
_BATCH = 64
_RECALL = 0.99
_PROBES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
_EFS = (64, 256, 1024)
_PAIRS = 20_000_000  # pairs whose scores set the thresholds
_TILE = 64
_MOST_FOR_HNSW = 200_000  # its build takes minutes beyond


def main() -> None:
    options = _options()
    with threadpool_limits(1):
        faiss.omp_set_num_threads(1)
        base, source = _base(options)
        rows = smoothed(base, options.n + options.checked, seed=7)
        gallery, queries = rows[: options.n], rows[options.n :]
        if options.cohort:
            score = whitened_cohort(base)
            gallery, queries = score.gallery_vectors(gallery), score.query_vectors(queries)
        result = measure(np.ascontiguousarray(gallery), np.ascontiguousarray(queries), options)
    facts = {"data": source, "score": "whitened cohort" if options.cohort else "cosine", "n": options.n}
    print(json.dumps({**facts, "d": gallery.shape[1], **result}))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="50,000 vectors, fewer queries, no HNSW")
    parser.add_argument("--n", type=int, help="vectors (default 100000, quick 50000)")
    parser.add_argument("--queries", type=int, help="queries a round (default 100, quick 30)")
    parser.add_argument("--checked", type=int, help="queries compared with brute force (default 2000, quick 100)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--cohort", action="store_true", help="the whitened cohort score, not the cosine")
    parser.add_argument("--bundle", type=Path, default=BUNDLE, help="model that embeds drawings (default demo/bundle)")
    parser.add_argument("--embeddings", type=Path, help="embeddings [n, d] in a .npy file, in place of drawings")
    options = parser.parse_args()
    options.n = options.n or (50_000 if options.quick else 100_000)
    options.queries = options.queries or (30 if options.quick else 100)
    options.checked = max(options.checked or (100 if options.quick else 2000), options.queries, _BATCH)
    return options


def _base(options: argparse.Namespace) -> tuple[Vectors, str]:
    """Return real embeddings if there are any, and where they are from."""
    n = 800 if options.quick else None
    if options.embeddings:
        return without_duplicates(np.load(options.embeddings)), str(options.embeddings)
    try:
        return drawings(options.bundle, n=n), f"drawings by {options.bundle}"
    except RetrievalError as error:
        return made_up(n or 8000), f"made up, because there are no drawings: {error}"


def measure(gallery: Vectors, queries: Vectors, options: argparse.Namespace) -> dict[str, object]:
    """Return the ratios by FAR, and how many matches were missed or wrong."""
    flat = faiss.IndexFlatIP(gallery.shape[1])
    flat.add(gallery)
    faiss.cvar.distance_compute_blas_threshold = 16 * gallery.shape[1]
    approximate = dict(_approximate(gallery, hnsw=not options.quick and len(gallery) <= _MOST_FOR_HNSW))
    figures: dict[str, dict[str, float]] = {}
    missed = wrong = 0
    for far, threshold in thresholds(gallery, queries).items():
        started = time.thread_time()
        exact = ExactIndex.build(gallery, threshold=threshold)
        built = time.thread_time() - started
        more_missed, more_wrong = compare(exact, gallery, queries, threshold)
        missed, wrong = missed + more_missed, wrong + more_wrong
        asked = queries[: options.queries]
        tuned = _tuned(approximate, asked, threshold, [hits.positions for hits in exact.above(asked, threshold)])
        cases = {"exact": _singly(lambda q, e=exact, t=threshold: e.above(q, t), asked)}
        cases["flat"] = _singly(lambda q, t=threshold: flat.range_search(q, t), asked[: max(5, len(asked) // 5)])
        cases |= {name: _singly(search, asked) for name, search in tuned.items()}
        batch = queries[:_BATCH]
        cases["exact, batch"] = lambda e=exact, t=threshold, b=batch: _cost(lambda: e.above(b, t), len(b))
        cases["flat, batch"] = lambda t=threshold, b=batch: _cost(lambda: flat.range_search(b, t), len(b))
        costs = _in_turns(cases, options.rounds)
        fastest = min((costs[name] for name in tuned), default=float("nan"))
        figures[f"{far:g}"] = {
            "single_over_flat": round(costs["flat"] / costs["exact"], 2),
            "single_over_approximate": round(fastest / costs["exact"], 2),
            "batch_over_flat": round(costs["flat, batch"] / costs["exact, batch"], 2),
            "microseconds": round(costs["exact"] * 1e6, 1),
            "build_s": round(built, 2),
        }
        shown = {name: round(cost * 1e6, 1) for name, cost in costs.items()}
        print(f"FAR {far:g}: {exact.choice}, microseconds {shown}", file=sys.stderr, flush=True)
    names = ("single_over_flat", "single_over_approximate", "batch_over_flat", "microseconds", "build_s")
    by_name = {name: {far: row[name] for far, row in figures.items()} for name in names}
    return {"missed": missed, "wrong": wrong, **by_name}


def thresholds(gallery: Vectors, queries: Vectors) -> dict[float, float]:
    """Return the threshold of each FAR: the score that this share of the pairs reaches."""
    rng = np.random.default_rng(0)
    n_queries = min(len(queries), 200)
    rows = gallery[rng.permutation(len(gallery))[: _PAIRS // n_queries]]
    scores = (queries[:n_queries] @ rows.T).ravel()
    order = [len(scores) - max(1, round(far * len(scores))) for far in FARS]
    ranked = np.partition(scores, order)
    return {far: float(ranked[position]) for far, position in zip(FARS, order, strict=True)}


def compare(index: ExactIndex, gallery: Vectors, queries: Vectors, threshold: float) -> tuple[int, int]:
    """Count the matches that the index misses, and those that it should not find; at scores of the gallery too."""
    missed = wrong = 0
    wide = gallery.astype(np.float64)
    for start in range(0, len(queries), _TILE):
        tile = queries[start : start + _TILE]
        scores = (tile.astype(np.float64) @ wide.T).astype(np.float32)
        in_batch = index.above(tile, threshold)
        for number, row in enumerate(scores):
            alone = index.above(tile[number : number + 1], threshold)[0]
            stored = float(row[row <= np.float32(threshold)].max(initial=-np.inf))  # the next score below
            at_stored = index.above(tile[number : number + 1], stored)[0]
            for hits, lowest in ((in_batch[number], threshold), (alone, threshold), (at_stored, stored)):
                more_missed, more_wrong = _difference(hits, row, lowest)
                missed, wrong = missed + more_missed, wrong + more_wrong
    return missed, wrong


def _difference(hits: Hits, scores: NDArray[np.float32], threshold: float) -> tuple[int, int]:
    expected = scores.astype(np.float64) >= threshold
    found = np.zeros(len(scores), np.bool_)
    found[hits.positions] = hits.scores == scores[hits.positions]
    return int((expected & ~found).sum()), len(hits.positions) - int((expected & found).sum())


def _approximate(gallery: Vectors, *, hnsw: bool) -> Iterator[tuple[str, faiss.Index]]:
    d, n_lists = gallery.shape[1], max(64, round(4 * len(gallery) ** 0.5 / 64) * 64)
    factories = [f"IVF{n_lists},Flat", f"IVF{n_lists},SQfp16"] + (["HNSW32"] if hnsw else [])
    for factory in factories:
        index = faiss.index_factory(d, factory, faiss.METRIC_INNER_PRODUCT)
        if isinstance(index, faiss.IndexIVF):
            index.cp.niter, index.cp.max_points_per_centroid = 6, 64
        index.train(gallery)
        index.add(gallery)
        yield factory, index


def _tuned(
    indexes: Mapping[str, faiss.Index], queries: Vectors, threshold: float, wanted: list[NDArray[np.int64]]
) -> dict[str, Search]:
    """Return a search for each index that reaches the recall, at the least effort of the grid that does."""
    found: dict[str, Search] = {}
    for name, index in indexes.items():
        ivf = isinstance(index, faiss.IndexIVF)
        for effort in _PROBES if ivf else _EFS:

            def search(query: Vectors, index: faiss.Index = index, ivf: bool = ivf, effort: int = effort) -> object:
                if ivf:
                    index.nprobe = effort
                else:
                    index.hnsw.efSearch = effort
                return index.range_search(query, threshold)

            ends, _, rows = search(queries)  # type: ignore[misc]  # FAISS returns a tuple
            hits = sum(np.isin(wanted[i], rows[ends[i] : ends[i + 1]]).sum() for i in range(len(queries)))
            if hits >= _RECALL * sum(map(len, wanted)):
                found[f"{name} {effort}"] = search
                break
    return found


def _singly(search: Search, queries: Vectors) -> Callable[[], float]:
    def ask() -> None:
        for number in range(len(queries)):
            search(queries[number : number + 1])

    return lambda: _cost(ask, len(queries))


def _cost(ask: Callable[[], object], n_parts: int) -> float:
    started = time.thread_time()
    ask()
    return (time.thread_time() - started) / n_parts


def _in_turns(cases: Mapping[str, Callable[[], float]], n_rounds: int) -> dict[str, float]:
    """Return the median cost of each case."""
    rounds = [{name: case() for name, case in cases.items()} for _ in range(n_rounds)]
    return {name: statistics.median(each[name] for each in rounds) for name in cases}


if __name__ == "__main__":
    main()
