"""The self-test of an index: some queries with their answers, stored with it and asked again when it is opened.

An index that was changed on the disk, or a library that calculates otherwise, is found before it answers anyone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retrieval.engine.index.exact.layout import as_queries, has_offset
from retrieval.engine.index.exact_scores import own_columns, score_pairs
from retrieval.engine.index.index import Index
from retrieval.errors import CorruptArtifact

Vectors = NDArray[np.float32]

NAMES = ("test_queries", "test_counts", "test_rows", "test_scores", "test_threshold")

QUERIES, _FEWEST_QUERIES = 100, 10
_PRODUCTS = 1 << 37  # numbers multiplied by a complete search: 100 queries of ten million vectors, 5 s of one core
_HITS = 2000  # of all queries together, about
_SAMPLE = 4096  # vectors from which the number of hits at a threshold is estimated
_FOUND_AGAIN = 0.99  # of an approximate index: another processor rounds distances to lists otherwise


@dataclass(frozen=True, slots=True, eq=False)
class SelfTest:
    """Queries [k, D], and what was found above the threshold: the number of hits of each [k], their rows and scores."""

    queries: Vectors
    counts: NDArray[np.int64]
    rows: NDArray[np.int64]
    scores: Vectors
    threshold: float

    @classmethod
    def record(cls, index: Index, vectors: Vectors, threshold: float | None, *, margin: float = 0.0) -> SelfTest:
        """Ask an index over `vectors` for what it finds above the threshold in force, or above a higher one.

        With a higher one a query finds a few vectors, not thousands; margin: how much higher it is than needed for
        that, for an index that looks at more than it returns. Cost: `_PRODUCTS` for an index that scans.
        """
        n, dimension = vectors.shape
        rng = np.random.default_rng(0)
        n_queries = min(n, QUERIES, max(_FEWEST_QUERIES, _PRODUCTS // (n * dimension)))
        queries = as_queries(vectors[np.sort(rng.choice(n, n_queries, replace=False))], offset=has_offset(vectors))
        highest = _with_few_hits(vectors, queries, rng) + margin
        used = highest if threshold is None else max(threshold, highest)
        hits = index.above(queries, used)
        counts = np.array([len(each.positions) for each in hits], np.int64)
        rows = np.concatenate([each.positions for each in hits])
        return cls(queries, counts, rows, np.concatenate([each.scores for each in hits]), used)

    @classmethod
    def read(cls, arrays: Mapping[str, NDArray[Any]], path: Path, dimension: int) -> SelfTest:
        """Return the self-test in a file of arrays. Raises CorruptArtifact if there is none, or a damaged one."""
        try:
            queries, counts, rows, scores, threshold = (arrays[name] for name in NAMES)
        except KeyError as error:
            raise CorruptArtifact(f"index {path} cannot be read: it has no self-test, {error} is missing") from error
        k, m = len(queries), int(counts.sum()) if counts.dtype == np.int64 else 0
        found = [(array.dtype.name, array.shape) for array in (queries, counts, rows, scores, threshold)]
        wanted = [("float32", (k, dimension)), ("int64", (k,)), ("int64", (m,)), ("float32", (m,)), ("float64", (1,))]
        if not k or found != wanted:
            raise CorruptArtifact(f"index {path} cannot be read: its self-test is damaged")
        if (counts < 0).any() or not np.isfinite(queries).all() or np.isnan(threshold[0]):
            raise CorruptArtifact(f"index {path} cannot be read: its self-test is damaged")
        return cls(np.array(queries), np.array(counts), np.array(rows), np.array(scores), float(threshold[0]))

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Return what `read` reads."""
        values = (self.queries, self.counts, self.rows, self.scores, np.array([self.threshold]))
        return dict(zip(NAMES, values, strict=True))

    def check(self, index: Index, path: Path) -> None:
        """Raise CorruptArtifact if the index does not give the stored answers.

        One that is not exact may lose 1 % of them, because another processor may choose other lists; scores are equal.
        """
        found = index.above(self.queries, self.threshold)
        n_same = 0
        ends = np.cumsum(self.counts)
        for hits, rows, scores in zip(
            found, np.split(self.rows, ends[:-1]), np.split(self.scores, ends[:-1]), strict=True
        ):
            _, mine, stored = np.intersect1d(hits.positions, rows, return_indices=True)
            n_same += int((hits.scores[mine] == scores[stored]).sum())
        n_found = sum(len(hits.positions) for hits in found)
        complete = index.spec.is_exact
        enough = n_same == len(self.rows) if complete else n_same >= _FOUND_AGAIN * len(self.rows)
        if not enough or (complete and n_found != len(self.rows)):
            raise CorruptArtifact(
                f"index {path} fails its self-test: {len(self.queries)} queries have {len(self.rows)} known matches; "
                f"it finds {n_same} of them, and {n_found} in all: roll back or reindex the catalogue"
            )


def check_that_vectors_find_themselves(index: Index, vectors: Vectors, rows: NDArray[np.int64], path: Path) -> None:
    """Raise CorruptArtifact if the index does not find these vectors [k, D] in their rows, with their own scores.

    For the files of earlier versions, which have no stored answers. One in 100 may be missing, as in `check`. Vectors
    with an offset are not turned into queries here: as they are, they lie in the list that is looked at first.
    """
    numbers = np.arange(len(rows))
    own = score_pairs(vectors, vectors, numbers, numbers, d=own_columns(vectors))
    n_found = 0
    for query, row, score in zip(vectors, rows.tolist(), own.tolist(), strict=True):
        (hits,) = index.above(query[None], score)
        n_found += bool((hits.scores[hits.positions == row] == np.float32(score)).any())
    if n_found < _FOUND_AGAIN * len(rows):
        raise CorruptArtifact(
            f"index {path} fails its self-test: {n_found} of {len(rows)} stored vectors find themselves: roll back or "
            "reindex the catalogue"
        )


def _with_few_hits(vectors: Vectors, queries: Vectors, rng: np.random.Generator) -> float:
    """Return a threshold that about `_HITS` pairs of a query and a vector exceed, or minus infinity."""
    n = len(vectors)
    sample = vectors if n <= _SAMPLE else vectors[np.sort(rng.choice(n, _SAMPLE, replace=False))]
    n_above = int(_HITS * len(sample) / n)
    scores = (queries.astype(np.float64) @ sample.astype(np.float64).T).ravel()
    if n_above >= len(scores):
        return -np.inf
    highest = np.float32(np.partition(scores, -n_above - 1)[-n_above - 1])
    return float(np.nextafter(highest, np.float32(np.inf)))
