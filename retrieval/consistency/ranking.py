"""The quality of the ranking, without any threshold: recall at k and mean average precision at R.

Every image of one set queries all other images; in rounds the queries of each round query its gallery. A query without
a right answer is left out.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from retrieval.consistency.arguments import checked
from retrieval.consistency.pairs.vectors import LabelledVectors, check_one_population, check_positives
from retrieval.errors import InvalidInput

# Scores of a chunk of queries with all images: bounds the memory for any n.
_MAX_SCORES = 1 << 22


@checked
def recall_at_k(vectors: LabelledVectors, k: Sequence[int] = (1,)) -> dict[int, float]:
    """Return, for each k, the share of queries with an image of their class among the k best-scoring others.

    Ties go to the image with the lower index.

    Raises:
        InvalidInput: k is empty or holds a value below 1; or vectors of two sets that are no rounds, or with excluded
            pairs.
        NotEnoughEvidence: no class has two images.

    Source: Musgrave et al., "A Metric Learning Reality Check", ECCV 2020.

    >>> from retrieval.consistency import labelled
    >>> rows = np.array([[1, 0], [0.8, 0.6], [0.6, 0.8], [0, 1]], dtype=np.float32)
    >>> recall_at_k(labelled(rows, ["a", "b", "a", "b"]), k=(1, 2))
    {1: 0.0, 2: 0.5}
    """
    if not k or min(k) < 1:
        raise InvalidInput(f"k must hold numbers of at least 1, found {tuple(k)}")
    _check(vectors)
    depth = min(max(k), _n_others(vectors))
    hits = np.zeros(depth, dtype=np.int64)
    n_queries = 0
    for relevant, _ in _ranked(vectors, depth):
        hits += np.logical_or.accumulate(relevant, axis=1).sum(axis=0)
        n_queries += len(relevant)
    return {value: float(hits[min(value, depth) - 1] / n_queries) for value in k}


@checked
def map_at_r(vectors: LabelledVectors) -> float:
    """Return mean average precision at R: precision at the ranks of right answers among the R first, divided by R.

    R is the number of other images of the query's class. Ties go to the image with the lower index.

    Raises, Source: as `recall_at_k`; section 3.2.

    >>> from retrieval.consistency import labelled
    >>> rows = np.array([[1, 0], [0.8, 0.6], [0, 1]], dtype=np.float32)
    >>> map_at_r(labelled(rows, ["a", "a", "b"]))
    1.0
    """
    _check(vectors)
    depth = int(vectors.sizes.items.max()) - (1 if vectors.one_set else 0)
    ranks = np.arange(1, depth + 1)
    total, n_queries = 0.0, 0
    for relevant, n_right in _ranked(vectors, depth):
        counted = relevant & (ranks <= n_right[:, None])
        precision = counted.cumsum(axis=1) / ranks
        total += float(((precision * counted).sum(axis=1) / n_right).sum())
        n_queries += len(relevant)
    return total / n_queries


def _check(vectors: LabelledVectors) -> None:
    check_one_population(vectors)
    check_positives(vectors)


def _n_others(vectors: LabelledVectors) -> int:
    """Return how many gallery vectors a query has."""
    return len(vectors.codes) - 1 if vectors.one_set else len(vectors.gallery_codes) // len(vectors.rounds)


def _ranked(vectors: LabelledVectors, depth: int) -> Iterator[tuple[NDArray[np.bool_], NDArray[np.int64]]]:
    """Yield, for chunks of queries with a right answer, whether each of the best `depth` is right, and how many are."""
    if vectors.rounds:
        for number in range(len(vectors.rounds)):
            yield from _ranked(vectors.one_round(number), depth)
        return
    n_right = vectors.sizes.items.astype(np.int64)[vectors.codes] - (1 if vectors.one_set else 0)
    queries = np.flatnonzero(n_right > 0)
    step = max(1, _MAX_SCORES // len(vectors.gallery_codes))
    for start in range(0, len(queries), step):
        rows = queries[start : start + step]
        scores = vectors.query[rows] @ vectors.gallery.T
        if vectors.one_set:
            scores[np.arange(len(rows)), rows] = -np.inf
        best = _best(scores, vectors.gallery_order, depth)
        yield vectors.gallery_codes[best] == vectors.codes[rows, None], n_right[rows]


def _best(scores: NDArray[np.float32], order: NDArray[np.int64], depth: int) -> NDArray[np.int64]:
    """Return the columns of the `depth` highest scores of each row, best first, ties by the caller's order."""
    last = np.partition(scores, -depth, axis=1)[:, -depth]
    rows, columns = np.nonzero(scores >= last[:, None])
    ranked = np.lexsort((order[columns], -scores[rows, columns], rows))
    rows, columns = rows[ranked], columns[ranked]
    place = np.arange(len(rows)) - np.searchsorted(rows, rows)
    return columns[place < depth].reshape(len(scores), depth)
