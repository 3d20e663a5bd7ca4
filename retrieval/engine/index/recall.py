"""The recall of an approximate index: measured with queries whose complete answers are known."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from retrieval.consistency.intervals import effective_number
from retrieval.consistency.subgroups.clustered import RateEstimates
from retrieval.engine.index.index import Hits

CONFIDENCE = 0.95


@dataclass(frozen=True, slots=True, kw_only=True)
class Recall:
    """The share of the matches that were found, and its 95 % interval; n_queries: those that have a match."""

    value: float
    low: float
    high: float
    n_queries: int
    n_matches: int


COMPLETE = Recall(value=1.0, low=1.0, high=1.0, n_queries=0, n_matches=0)  # of an exact kind: it is not measured


def measured_recall(
    found: Sequence[Hits], expected: Sequence[Hits], own_rows: NDArray[np.int64] | None = None
) -> Recall:
    """Return the recall over all queries, with an interval: the matches of a query are found or missed together.

    own_rows: [q], the row of each query if it is in the gallery itself. That match is not counted, because every kind
    of index finds it. Without any match the value is 1, and the interval is 0 to 1: nothing is known.

    Source: ratio estimate with the variance between queries, and `clustered_interval`.
    """
    wanted, missed = np.zeros(len(expected)), np.zeros(len(expected))
    for i, (mine, theirs) in enumerate(zip(found, expected, strict=True)):
        positions = theirs.positions
        if own_rows is not None:
            positions = positions[positions != own_rows[i]]
        wanted[i] = len(positions)
        missed[i] = len(positions) - np.isin(positions, mine.positions).sum()
    with_match = wanted > 0
    wanted, missed = wanted[with_match], missed[with_match]
    n, k = wanted.sum(), len(wanted)
    if not k:
        return Recall(value=1.0, low=0.0, high=1.0, n_queries=0, n_matches=0)
    rate = missed.sum() / n
    residuals = missed - rate * wanted
    variance = k / max(k - 1, 1) * (residuals**2).sum() / n**2
    one = (np.array([value]) for value in (missed.sum(), n, variance, effective_number(wanted)))
    (interval,) = RateEstimates(*one).intervals(CONFIDENCE)
    return Recall(value=float(1 - rate), low=1 - interval.high, high=1 - interval.low, n_queries=k, n_matches=int(n))
