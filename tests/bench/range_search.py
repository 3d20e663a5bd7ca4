"""What does a threshold query cost, compared with the top-k queries that it replaces?

One thread, CPU time per query. `above` finds everything that reaches a threshold which few vectors reach; beside it
FAISS's own search of the same index for the best 10, and for the best 1000 cut at the threshold, which must find the
same where fewer than 1000 reach it.
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import faiss
import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]  # ships no types

from retrieval.engine.index.faiss_file import read_file
from retrieval.engine.index.index import Hits, Index, recall
from retrieval.engine.index.open import build_index, exact_hits
from retrieval.engine.index.spec import IndexSpec
from tests.bench.measuring.rounds import Group, cpu_of, in_turns, option_parser, show

Vectors = NDArray[np.float32]
_PER_CLUSTER = 20
_SPREAD = 0.5  # noise beside a centre of norm 1: cosines inside a cluster are about 1 / (1 + 0.25)
_MANY = 1000
_ROUNDING = 1e-6  # FAISS adds up single queries and batches in different orders


def main() -> None:
    parser = option_parser(__doc__)
    parser.add_argument("--n", type=int, help="vectors (default 100000, quick 10000)")
    parser.add_argument("--d", type=int, default=128, help="dimension")
    parser.add_argument("--queries", type=int, default=128, help="queries a run")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 64], help="queries a call")
    parser.add_argument("--threshold", type=float, default=0.8, help="cosine that a hit reaches")
    parser.add_argument("--ivf", type=IndexSpec.parse, help="second index (default IVF1024,nprobe=16, quick IVF128)")
    options = parser.parse_args()
    n = options.n or (10_000 if options.quick else 100_000)
    ivf = options.ivf or IndexSpec(kind="IVF", n_lists=128 if options.quick else 1024, n_probes=16)
    with threadpool_limits(1):
        vectors, queries = make_data(n, options.d, options.queries)
        exact = exact_hits(vectors, queries, options.threshold)
        facts: dict[str, object] = {"mean hits": round(sum(len(hits.positions) for hits in exact) / len(exact), 2)}
        groups = []
        for spec in (IndexSpec(kind="Flat"), ivf):
            index = build_index(vectors, spec)
            facts[f"recall of {spec}"] = round(recall(index.above(queries, options.threshold), exact), 4)
            groups += [measure(index, queries, batch, options) for batch in options.batches]
    show(__doc__, options, groups, facts)


def make_data(n: int, d: int, n_queries: int) -> tuple[Vectors, Vectors]:
    """Unit vectors [n, d] in small clusters, and queries [n_queries, d] that are further members of some clusters."""
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(n // _PER_CLUSTER, d)).astype(np.float32)
    centres /= np.linalg.norm(centres, axis=1, keepdims=True)
    members = np.concatenate([np.arange(n) % len(centres), rng.integers(len(centres), size=n_queries)])
    noise = rng.normal(scale=_SPREAD / np.sqrt(d), size=(len(members), d)).astype(np.float32)
    vectors = centres[members] + noise
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors[:n], vectors[n:]


def measure(index: Index, queries: Vectors, batch: int, options: argparse.Namespace) -> Group:
    """The three ways to ask one index, all queries in calls of `batch`."""
    native = _native(index)
    threshold: float = options.threshold
    calls = [queries[start : start + batch] for start in range(0, len(queries), batch)]
    for call in calls:
        check_same(index.above(call, threshold), best_above(native, call, threshold), threshold)

    questions: dict[str, Callable[[Vectors], object]] = {
        "search(k=10)": lambda call: native.search(call, 10),
        "above(threshold)": lambda call: index.above(call, threshold),
        f"search(k={_MANY}) and cut": lambda call: best_above(native, call, threshold),
    }
    cases = {name: cpu_of(partial(_each, ask, calls), n_parts=len(queries)) for name, ask in questions.items()}
    title = f"{index.spec}, {index.n_items} x {index.dimension}, {batch} queries a call"
    return in_turns(title, cases, n_rounds=options.rounds)


def _each(ask: Callable[[Vectors], object], calls: Sequence[Vectors]) -> None:
    for call in calls:
        ask(call)


def best_above(native: faiss.Index, queries: Vectors, threshold: float) -> list[Hits]:
    """What a client does that has top-k only: ask for many, drop what is below."""
    scores, positions = native.search(queries, _MANY)
    kept = [np.count_nonzero(row >= threshold) for row in scores]
    return [Hits(p[:k], s[:k]) for p, s, k in zip(positions, scores, kept, strict=True)]


def check_same(found: list[Hits], expected: list[Hits], threshold: float) -> None:
    """Both lists hold the same vectors, but for scores that rounding puts on either side of the threshold."""
    for mine, theirs in zip(found, expected, strict=True):
        assert len(theirs.positions) < _MANY, "the threshold is so low that top-k cuts hits off: raise it"
        for one, other in itertools.permutations((mine, theirs)):
            lone = one.scores[~np.isin(one.positions, other.positions)]
            assert (np.abs(lone - threshold) < _ROUNDING).all(), "range search and top-k disagree"


def _native(index: Index) -> faiss.Index:
    """The same index as FAISS itself opens it."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "index.faiss"
        index.save(path)
        _, _, native = read_file(path)
    if isinstance(native, faiss.IndexIVF):
        native.nprobe = index.spec.n_probes
    return native


if __name__ == "__main__":
    main()
