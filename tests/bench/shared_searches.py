"""What do callers gain who are searched together, and what does it cost a lone one?

Callers ask a searcher by embedding, each its next query when the last is answered. The baseline gives every query its
own call of the index, on as many threads. CPU time of the process, as other work on the machine disturbs the clock.
"""

from __future__ import annotations

import argparse
import asyncio
import copy
import json
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]  # ships no types

from retrieval.contract.limits import DEFAULT_LIMITS
from retrieval.engine.batcher import Batcher
from retrieval.engine.encoder import Encoder
from retrieval.engine.matches import LiveQuery, SearchResult, find_matches
from retrieval.engine.store import Store
from retrieval.flows.search import QueryEmbedding, Searcher
from tests.bench.measuring.callers import drive
from tests.bench.measuring.rounds import Group, Values, in_turns, option_parser, show
from tests.bench.measuring.smoothed import made_up
from tests.stores import publish_vectors
from tests.tiny_bundle import write_tiny_bundle

CATALOG = "shop"
_THREADS = 2
Vectors = NDArray[np.float32]


def main() -> None:
    """Measure one and many callers; the last line is one JSON object with the ratios."""
    parser = option_parser(__doc__)
    parser.add_argument("--gallery", type=Path, help="vectors [n, d] in a .npy file (default: made up)")
    parser.add_argument("--n", type=int, help="made-up vectors (default 100000, quick 20000)")
    parser.add_argument("--far", type=float, default=1e-3, help="share of the pairs that match (default 1e-3)")
    parser.add_argument("--queries", type=int, help="queries a run (default 1600, quick 480)")
    parser.add_argument("--callers", type=int, nargs="+", default=[1, 16], help="concurrent callers")
    options = parser.parse_args()
    vectors = (
        np.load(options.gallery) if options.gallery else made_up(options.n or (20_000 if options.quick else 100_000))
    )
    rows = np.random.default_rng(0).permutation(len(vectors))[: options.queries or (480 if options.quick else 1600)]
    threshold = float(np.quantile(vectors[rows[:64]] @ vectors.T, 1 - options.far))
    with threadpool_limits(1), tempfile.TemporaryDirectory() as folder:
        searcher = _searcher(Path(folder), vectors, threshold)
        digest = searcher.live[CATALOG].bundle.digest
        queries = [QueryEmbedding(row, digest) for row in vectors[rows]]
        n_matches = asyncio.run(check_same(searcher, queries))
        groups = [measure(searcher, queries, n_callers, options) for n_callers in options.callers]
    facts = {"vectors": len(vectors), "FAR": options.far, "matches a query": n_matches}
    show(__doc__, options, groups, facts)
    if not options.json:
        ratios = {
            f"together_over_alone_{n}_callers": group.rows[1].ratio
            for n, group in zip(options.callers, groups, strict=True)
        }
        print(json.dumps({**facts, **ratios}))


def measure(
    together: Searcher, queries: Sequence[QueryEmbedding], n_callers: int, options: argparse.Namespace
) -> Group:
    cases = {
        "each with its own call": partial(run, alone(together), queries, n_callers),
        "together": partial(run, together, queries, n_callers),
    }
    return in_turns(f"{n_callers} callers, {len(queries)} queries", cases, n_rounds=options.rounds)


def run(searcher: Searcher, queries: Sequence[QueryEmbedding], n_callers: int) -> Values:
    """Queries for each second of CPU time, and by the clock."""
    started = time.process_time()
    values = asyncio.run(drive(partial(searcher.search, CATALOG), queries, n_callers))
    return {"per_cpu_s": len(queries) / (time.process_time() - started), **values}


def alone(together: Searcher) -> Searcher:
    """The same searcher, without the collecting of queries."""
    searcher = copy.copy(together)
    searcher._searches = OneByOne(find_matches, name="index", max_batch=1, n_threads=_THREADS)
    return searcher


class OneByOne(Batcher[LiveQuery, SearchResult]):
    """Gives every request its own call."""

    async def ask(self, request: LiveQuery) -> SearchResult:
        """Return the answer to a request, which waits for a thread only."""
        (result,) = await asyncio.get_running_loop().run_in_executor(self._threads, self._answer, [request])
        return result


async def check_same(searcher: Searcher, queries: Sequence[QueryEmbedding]) -> float:
    """Both ways must give equal results, bit for bit; returns the mean number of matches."""
    some, one_by_one = queries[:200], alone(searcher)
    together = await asyncio.gather(*(searcher.search(CATALOG, query) for query in some))
    singly = [await one_by_one.search(CATALOG, query) for query in some]
    if [(each.n_total, each.matches) for each in together] != [(each.n_total, each.matches) for each in singly]:
        raise SystemExit("queries that are asked together get other answers")
    return float(np.mean([each.n_total for each in singly]))


def _searcher(folder: Path, vectors: Vectors, threshold: float) -> Searcher:
    bundle = write_tiny_bundle(folder / "bundle", dimension=vectors.shape[1])
    store = Store((folder / "store").as_uri())
    publish_vectors(store, bundle, vectors, threshold=threshold, catalog=CATALOG)
    searcher = Searcher(
        store,
        open_encoder=lambda bundle: Encoder.open(bundle, threads=1),
        limits=DEFAULT_LIMITS,
        max_waiting=1,
        threads=_THREADS,
    )
    searcher.warm()
    searcher.refresh()
    return searcher


if __name__ == "__main__":
    main()
