"""The complete answers of many queries, without the index: float32 products, and float64 where they cannot decide.

A float32 product of d columns differs from the exact sum by at most d 2^-23 |q| |x|, in whichever order it is added.
Scores nearer to a threshold than that are computed again in float64 and rounded to float32, as the index defines them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from retrieval.engine.index.index import Hits

Vectors = NDArray[np.float32]
Rows = NDArray[np.int32]

_QUERIES, _ROWS = 256, 1 << 15
_UNIT = 2.0**-23
_SAMPLE = 32  # hits of an answer whose scores are compared bit for bit, beside those at the threshold


@dataclass(frozen=True, slots=True, eq=False)
class Truth:
    """What may match at a threshold that is not below `lowest`, by query.

    rows, scores: of query i, rows[i] ascending and their float32 products; slack: [q], how wrong these may be.
    """

    gallery: Vectors
    queries: Vectors
    lowest: float
    rows: list[Rows]
    scores: list[Vectors]
    slack: NDArray[np.float64]

    def expected(self, number: int, threshold: float) -> Rows:
        """Return the rows, ascending, that reach the threshold for one query."""
        rows, scores, slack = self.rows[number], self.scores[number].astype(np.float64), self.slack[number]
        reached = scores >= threshold
        near = np.flatnonzero(np.abs(scores - threshold) <= slack)
        reached[near] = self.exact(number, rows[near]) >= threshold
        return rows[reached]

    def exact(self, number: int, rows: NDArray[np.integer]) -> NDArray[np.float64]:
        """Return the scores of some rows: float64, rounded to float32."""
        sums = self.gallery[rows].astype(np.float64) @ self.queries[number].astype(np.float64)
        return sums.astype(np.float32).astype(np.float64)

    def stored_score(self, number: int, threshold: float) -> float | None:
        """Return the score of the gallery next to a threshold, above it or below it by turns; None if there is none."""
        rows, scores = self.rows[number], self.scores[number]
        above = scores >= threshold
        side = above if (above.any() and number % 2) or not (~above).any() else ~above
        if not side.any():
            return None
        nearest = rows[side][np.argmin(np.abs(scores[side] - threshold))]
        return float(self.exact(number, np.array([nearest]))[0])


def brute_force(gallery: Vectors, queries: Vectors, lowest: float, progress: Callable[[int, int], None]) -> Truth:
    """Multiply every query with every row, and keep the products that may reach `lowest`.

    Cost: 2 n q d operations, and 8 bytes for each product that is kept.
    """
    longest = max(float(np.linalg.norm(part, axis=1).max()) for part in _parts(gallery, _ROWS))
    slack = gallery.shape[1] * _UNIT * longest * np.linalg.norm(queries, axis=1).astype(np.float64) * 1.001
    rows: list[Rows] = []
    scores: list[Vectors] = []
    for first in range(0, len(queries), _QUERIES):
        asked = queries[first : first + _QUERIES]
        limits = (lowest - slack[first : first + _QUERIES]).astype(np.float32)[:, None]
        found: list[tuple[NDArray[np.int64], Rows, Vectors]] = []
        for number, part in enumerate(_parts(gallery, _ROWS)):
            products = asked @ part.T
            query, row = np.nonzero(products >= limits)
            found.append((query, (row + number * _ROWS).astype(np.int32), products[query, row]))
        query, row, score = (np.concatenate(parts) for parts in zip(*found, strict=True))
        order = np.argsort(query, kind="stable")
        ends = np.searchsorted(query[order], np.arange(1, len(asked)))
        rows += np.split(row[order], ends)
        scores += np.split(score[order], ends)
        progress(first + len(asked), len(queries))
    return Truth(gallery, queries, lowest, rows, scores, slack)


@dataclass(slots=True)
class Difference:
    """Matches that an index missed, and hits that are no match or have another score; of how many answers."""

    missed: int = 0
    wrong: int = 0
    answers: int = 0
    matches: int = 0

    def add(self, truth: Truth, number: int, threshold: float, hits: Hits, *, times: int = 1) -> None:
        """Compare one answer that was given so many times."""
        expected = truth.expected(number, threshold)
        found = np.zeros(len(truth.gallery), np.bool_)
        found[hits.positions] = True
        n_right = int(np.count_nonzero(found[expected]))
        self.missed += times * (len(expected) - n_right)
        self.wrong += times * (len(hits.positions) - n_right + _wrong_scores(truth, number, threshold, hits))
        self.answers += times
        self.matches += times * len(expected)


def _wrong_scores(truth: Truth, number: int, threshold: float, hits: Hits) -> int:
    """Count the hits whose score is not the defined one: at the threshold and a sample, which shows any system."""
    near = np.flatnonzero(np.abs(hits.scores - threshold) <= truth.slack[number])
    spread = np.linspace(0, len(hits.scores) - 1, min(_SAMPLE, len(hits.scores))).astype(np.int64)
    looked_at = np.union1d(near, spread)
    exact = truth.exact(number, hits.positions[looked_at])
    return int(np.count_nonzero(exact != hits.scores[looked_at]))


def _parts(rows: Vectors, size: int) -> Iterator[Vectors]:
    return (rows[start : start + size] for start in range(0, len(rows), size))
