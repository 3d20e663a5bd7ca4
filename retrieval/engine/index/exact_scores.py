"""Scores the candidates of an index as `ExactIndex` does, bit for bit, and keeps those that reach the threshold.

For indexes that find candidates elsewhere: on a GPU, in a database.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from retrieval.compiled import compiled
from retrieval.consistency import float32_at_least
from retrieval.engine.index.exact.hits import exact_score
from retrieval.engine.index.exact.layout import has_offset
from retrieval.engine.index.index import Hits

Numbers = NDArray[np.int64]


def lowest_score(threshold: float) -> float:
    """Return a number below every score that reaches the threshold, before the score is rounded to float32."""
    (reached,) = float32_at_least(np.array([threshold]))
    with np.errstate(over="ignore"):  # every finite score reaches the threshold
        return float(np.nextafter(reached, np.float32(-np.inf)))


def score_pairs(
    rows: NDArray[np.float32],
    queries: NDArray[np.float32],
    row_numbers: Numbers,
    query_numbers: Numbers,
    *,
    d: int | None = None,
) -> NDArray[np.float32]:
    """Return the score of each pair of a row and a query: the inner product in float64, rounded to float32.

    d: the number of columns that are no offset, see `exact_score`; all if it is None.
    """
    scores = np.empty(len(row_numbers), np.float32)
    _score_pairs(rows, queries, row_numbers, query_numbers, scores, rows.shape[1] if d is None else d)
    return scores


def own_columns(gallery: NDArray[np.float32]) -> int:
    """Return the number of columns that are no offset, the `d` of `score_pairs`."""
    n_columns: int = gallery.shape[1]
    return n_columns - (2 if has_offset(gallery) else 0)


def hits_of(
    n_queries: int, query_numbers: Numbers, positions: Numbers, scores: NDArray[np.float32], threshold: float
) -> list[Hits]:
    """Return the hits of each query with `score >= threshold`: best first, ties by position."""
    (reached,) = float32_at_least(np.array([threshold]))
    kept = scores >= reached
    query_numbers, positions, scores = query_numbers[kept], positions[kept], scores[kept]
    order = np.lexsort((positions, -scores, query_numbers))
    ends = np.searchsorted(query_numbers[order], np.arange(1, n_queries))
    parts = np.split(positions[order], ends), np.split(scores[order], ends)
    return [Hits(*hit) for hit in zip(*parts, strict=True)]


@compiled
def _score_pairs(
    rows: NDArray[np.float32],
    queries: NDArray[np.float32],
    row_numbers: Numbers,
    query_numbers: Numbers,
    scores: NDArray[np.float32],
    d: int,
) -> None:
    """Write the score of each pair."""
    for i in range(row_numbers.shape[0]):
        scores[i] = exact_score(rows[row_numbers[i]], queries[query_numbers[i]], d)
