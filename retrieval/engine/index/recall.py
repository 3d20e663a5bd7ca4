"""The recall of an approximate index: measured at the threshold in force, with an interval, when it is built.

The queries are the items, asked as queries. The match of an item with itself does not count: it costs no search to
find, so it would make the recall look better. A new image that looks like the stored ones meets the same neighbours.

The matches of a query lie in the same part of the index, so they are found or missed together. The interval counts
queries, not matches.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retrieval.consistency.intervals import effective_number
from retrieval.consistency.subgroups.clustered import clustered_interval
from retrieval.engine.index.exact.layout import as_queries, has_offset
from retrieval.engine.index.index import Hits, Index
from retrieval.engine.index.open import build_index
from retrieval.engine.index.spec import IndexSpec
from retrieval.errors import ValidationFailed

CONFIDENCE = 0.95
LEAST_RECALL = 0.9  # an index that finds a smaller share of the matches is not published
ENOUGH = 1000  # queries: if all of their matches are found, the recall is above 0.996

_FEWEST = 256  # queries that are asked in any case
_PRODUCTS = 1 << 38  # numbers multiplied by the complete search of all queries: about 15 s of one core
_AT_ONCE = 128  # queries: the matches of all queries together would not fit in memory

Counts = NDArray[np.float64]
# The query vectors [k, D] float32 of the items in these rows [k].
QueriesOf = Callable[[NDArray[np.int64]], NDArray[np.float32]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Recall:
    """The share of the matches that were found, and its 95 % interval.

    n_queries: those that have a match. n_matches: of all of them together.
    """

    value: float
    low: float
    high: float
    n_queries: int
    n_matches: int

    def details(self) -> dict[str, Any]:
        """Return what the manifest records; nothing if the index is complete."""
        return {} if self == COMPLETE else {"measured_recall": {**asdict(self), "least": LEAST_RECALL}}


COMPLETE = Recall(value=1.0, low=1.0, high=1.0, n_queries=0, n_matches=0)  # of an exact kind: it is not measured


def measure_recall(
    index: Index, vectors: NDArray[np.float32], threshold: float, queries_of: QueriesOf | None = None
) -> Recall:
    """Return the recall of an index over `vectors` [n, D] at a threshold.

    Random items are asked until the queries with a match are worth `ENOUGH` equal ones, or all items were asked, or the
    complete search costs too much; at least `_FEWEST` are asked. queries_of: needed if the score compares an item in
    another place than its image, as a catalogue score does; without it the stored vectors are the queries. Raises
    ValidationFailed if the recall is below `LEAST_RECALL`.
    """
    if index.spec.is_exact:
        return COMPLETE
    n, dimension = vectors.shape
    complete, offset = build_index(vectors, IndexSpec(kind="Flat")), has_offset(vectors)
    order = np.random.default_rng(0).permutation(n)[: max(_FEWEST, _PRODUCTS // (n * dimension))]
    wanted, missed = np.zeros(len(order)), np.zeros(len(order))
    for start in range(0, len(order), _AT_ONCE):
        if start >= _FEWEST and effective_number(wanted) >= ENOUGH:
            break
        part = slice(start, start + _AT_ONCE)
        rows = order[part]
        queries = as_queries(vectors[rows], offset=offset) if queries_of is None else queries_of(rows)
        found, expected = index.above(queries, threshold), complete.above(queries, threshold)
        wanted[part], missed[part] = counted(found, expected, rows)
    measured = recall_of(wanted, missed)
    if measured.value < LEAST_RECALL:
        raise ValidationFailed(
            f"index {index.spec}: it finds {measured.value:.1%} ({measured.low:.1%} to {measured.high:.1%}) of the "
            f"{measured.n_matches:,} matches of {measured.n_queries:,} queries above {threshold:.4f}, at least "
            f"{LEAST_RECALL:.0%} is required: raise nprobe or ef, or use Exact"
        )
    return measured


def counted(found: Sequence[Hits], expected: Sequence[Hits], own_rows: NDArray[np.int64]) -> tuple[Counts, Counts]:
    """Return the number of matches of each query, and how many of them were missed: [q], [q].

    own_rows: [q], the row of each query, which does not count.
    """
    wanted, missed = np.zeros(len(expected)), np.zeros(len(expected))
    for i, (mine, theirs) in enumerate(zip(found, expected, strict=True)):
        others = theirs.positions[theirs.positions != own_rows[i]]
        wanted[i], missed[i] = len(others), len(np.setdiff1d(others, mine.positions))
    return wanted, missed


def recall_of(wanted: Counts, missed: Counts) -> Recall:
    """Return the recall over all queries, with its interval. wanted, missed: [q], counts of matches.

    The variance is that between queries. It is never taken for less than if each query found or missed all of its
    matches: queries that miss are rare, so their variance may not have been seen. Hence nothing missed gives the
    narrowest interval. Without any match, or with one query, the interval is 0 to 1: nothing is known.

    Source: Cochran, Sampling Techniques (1977), 6.4, for the variance of a ratio; `clustered_interval`.

    >>> recall_of(np.ones(1000), np.zeros(1000)).low.__round__(4)
    0.9962
    """
    with_match = wanted > 0
    wanted, missed = wanted[with_match], missed[with_match]
    n, k = float(wanted.sum()), len(wanted)
    if not k:
        return Recall(value=1.0, low=0.0, high=1.0, n_queries=0, n_matches=0)
    rate = float(missed.sum()) / n
    worth = effective_number(wanted)
    seen = k / max(k - 1, 1) * float(((missed - rate * wanted) ** 2).sum()) / n**2
    alone = rate * (1 - rate)
    worth_seen = min(worth, alone / seen) if seen > 0 else worth
    interval = clustered_interval(rate, worth_seen, worth, CONFIDENCE)
    return Recall(value=1 - rate, low=1 - interval.high, high=1 - interval.low, n_queries=k, n_matches=int(n))
