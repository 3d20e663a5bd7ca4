"""The recall of an approximate index: measured with queries whose complete answers are known.

An index is published only if the lower end of the interval reaches the floor: a recall that is high by luck, or known
from few matches, is not enough. `Exact` needs no such evidence.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from retrieval.consistency.intervals import effective_number
from retrieval.consistency.subgroups.clustered import RateEstimates
from retrieval.engine.index.index import Hits, Index
from retrieval.engine.index.open import exact_hits
from retrieval.engine.index.spec import IndexSpec
from retrieval.errors import ValidationFailed

CONFIDENCE = 0.95
FLOOR = 0.9  # an index whose recall may be lower is not published


@dataclass(frozen=True, slots=True, kw_only=True)
class Recall:
    """The share of the matches that were found, and its 95 % interval; n_queries: those that have a match."""

    value: float
    low: float
    high: float
    n_queries: int
    n_matches: int


def check_recall(
    index: Index,
    vectors: NDArray[np.float32],
    queries: NDArray[np.float32],
    threshold: float,
    own_rows: NDArray[np.int64] | None = None,
) -> Recall:
    """Return the recall of an index over `vectors` at a threshold; 1 without queries if it is exact.

    own_rows: see `measured_recall`. Raises ValidationFailed if the interval reaches below `FLOOR`. Cost: q * n * D.
    """
    if index.spec.is_exact:
        return Recall(value=1.0, low=1.0, high=1.0, n_queries=0, n_matches=0)
    found = measured_recall(index.above(queries, threshold), exact_hits(vectors, queries, threshold), own_rows)
    if found.low < FLOOR:
        raise ValidationFailed(
            f"index {index.spec}: it finds {found.value:.1%} of the matches above the threshold {threshold:.4f}, "
            f"{found.low:.1%} to {found.high:.1%} with 95 % confidence ({found.n_matches} matches of {found.n_queries} "
            f"queries). At least {FLOOR:.0%} must be sure: {_advice(index.spec)}use Exact"
        )
    return found


def _advice(spec: IndexSpec) -> str:
    return {"IVF": "raise nprobe or ", "HNSW": "raise ef or "}.get(spec.kind, "")


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
