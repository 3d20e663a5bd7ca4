"""Find the pairs of classes that are mistaken for each other, and the images that cause it.

The images show whether two classes are look-alikes or one class under two names.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retrieval.consistency.arguments import checked
from retrieval.consistency.intervals import Interval
from retrieval.consistency.pairs import tiles
from retrieval.consistency.pairs.products import float32_at_least, scores_of
from retrieval.consistency.pairs.vectors import Codes, LabelledVectors, check_one_population
from retrieval.consistency.subgroups.clustered import clustered_interval
from retrieval.errors import InvalidInput

# The most numbers in a block of classes by all classes.
_MAX_CELLS = 1 << 22
# Of classes or more: Student's quantile is then the normal one, and the interval Wilson's.
_MANY = 10**9
# What pairs of classes are ordered by, and the field that holds it.
_FIGURES = {"accepted": "n_accepted", "share": "share", "mean": "mean", "highest": "highest"}


@dataclass(frozen=True, slots=True)
class ScoredPair:
    """Two images, as rows of the caller's arrays, and their score; the first is of the first class."""

    first_row: int
    second_row: int
    score: float


@dataclass(frozen=True, slots=True)
class ConfusedPair:
    """Two classes and the scores of the pairs of images across them; in rounds a pair counts each time it meets."""

    first: str
    second: str
    n_pairs: int
    n_accepted: int  # at or above the threshold
    share: float  # n_accepted / n_pairs
    share_interval: Interval  # Wilson's, as if pairs were independent; they share images, so the true one is wider
    mean: float
    highest: float
    examples: tuple[ScoredPair, ...]  # the highest-scoring pairs, best first


@dataclass(frozen=True, slots=True)
class Confusion:
    """The most confused pairs of classes, worst first, and all confusion."""

    threshold: float
    pairs: tuple[ConfusedPair, ...]
    n_class_pairs: int  # all pairs of classes
    n_confused: int  # those with a false accept
    n_false_accepts: int  # accepted pairs of images of different classes

    @property
    def concentration(self) -> float:
        """Share of all false accepts in the listed pairs of classes."""
        return sum(pair.n_accepted for pair in self.pairs) / max(self.n_false_accepts, 1)


@checked
def most_confused(
    vectors: LabelledVectors,
    threshold: float,
    *,
    order: str = "accepted",
    n_listed: int = 20,
    n_examples: int = 3,
    confidence: float = 0.95,
) -> Confusion:
    """Return the most confused pairs of classes at a threshold, with their highest-scoring images.

    order: `accepted` (most false accepts, which make up the pooled FAR), `share` (largest share accepted), `mean` or
    `highest` (score); ties go to the higher mean, then by name. The list is shorter if there are fewer pairs. In rounds
    the examples of two classes are different pairs of images, each with its highest score.
    Cost: one [n, n] / 2 product, or those of all rounds, and another of the listed classes; memory: a few tiles and,
    for each of four figures, a block of classes by all classes of at most 32 MB.

    Raises:
        InvalidInput: threshold not finite, an unknown order, n_listed below 1, n_examples below 0, two sets of images
            or excluded pairs.

    >>> from retrieval.consistency import labelled
    >>> rows = np.array([[1, 0], [0.8, 0.6], [0, 1]], dtype=np.float32)
    >>> confusion = most_confused(labelled(rows, ["a", "b", "c"]), 0.7)  # a-b 0.8, b-c 0.6, a-c 0
    >>> [(pair.first, pair.second, pair.n_accepted) for pair in confusion.pairs]
    [('a', 'b', 1), ('b', 'c', 0), ('a', 'c', 0)]
    """
    if not np.isfinite(threshold) or order not in _FIGURES or n_listed < 1 or n_examples < 0:
        raise InvalidInput(
            f"expected a finite threshold, an order among {', '.join(_FIGURES)}, n_listed >= 1 and n_examples >= 0, "
            f"found {threshold}, {order!r}, {n_listed} and {n_examples}"
        )
    check_one_population(vectors)
    n_classes, meetings = len(vectors.classes), _meetings(vectors)
    limit = float32_at_least(np.array([threshold]))[0]
    worst: list[ConfusedPair] = []

    def rank(pair: ConfusedPair) -> tuple[float, float, str, str]:
        return -getattr(pair, _FIGURES[order]), -pair.mean, pair.first, pair.second

    n_confused = n_false_accepts = 0
    for first, end in _class_blocks(_bounds(vectors.n_images)):
        block = _scan(vectors, meetings, first, end, limit)
        n_confused += int(np.count_nonzero(block.accepted))
        n_false_accepts += int(block.accepted.sum())
        worst = sorted([*worst, *block.worst(vectors.classes, order, n_listed, confidence)], key=rank)[:n_listed]
    pairs = tuple(replace(pair, examples=_examples(vectors, meetings, pair, n_examples)) for pair in worst)
    return Confusion(threshold, pairs, n_classes * (n_classes - 1) // 2, n_confused, n_false_accepts)


@dataclass(frozen=True, slots=True, eq=False)
class _Block:
    """Figures of the classes from `first` on with every later class: [block, T]; 0 in cells without a pair."""

    first: int
    n_pairs: NDArray[np.int64]
    n_different: NDArray[np.int64]  # pairs of images, of which n_pairs may count some more than once
    accepted: NDArray[np.int64]
    means: NDArray[np.float64]
    highest: NDArray[np.float32]

    def worst(self, classes: Sequence[str], order: str, n_listed: int, confidence: float) -> list[ConfusedPair]:
        """Return the worst pairs of the block, without examples."""
        figures: dict[str, NDArray[np.float64]] = {
            "accepted": self.accepted.astype(np.float64),
            "share": self.accepted / np.maximum(self.n_pairs, 1),
            "mean": self.means,
            "highest": self.highest.astype(np.float64),
        }
        rows, columns = np.nonzero(self.n_pairs)
        chosen = np.lexsort([columns, rows, -self.means[rows, columns], -figures[order][rows, columns]])[:n_listed]
        return [
            ConfusedPair(
                first=classes[self.first + cell[0]],
                second=classes[cell[1]],
                n_pairs=int(self.n_pairs[cell]),
                n_accepted=int(self.accepted[cell]),
                share=float(figures["share"][cell]),
                share_interval=clustered_interval(
                    float(figures["share"][cell]), float(self.n_different[cell]), _MANY, confidence
                ),
                mean=float(self.means[cell]),
                highest=float(self.highest[cell]),
                examples=(),
            )
            for cell in zip(rows[chosen], columns[chosen], strict=True)
        ]


@dataclass(frozen=True, slots=True, eq=False)
class _Meeting:
    """The one set of images, or a round: where each class starts among its queries and items, and the ends, [T + 1]."""

    queries: NDArray[np.int64]
    items: NDArray[np.int64]


def _bounds(sizes: NDArray[np.int64], start: int = 0) -> NDArray[np.int64]:
    """Return where classes of these sizes [T] start, and the end: [T + 1] int64."""
    return np.asarray(start + np.append(0, np.cumsum(sizes)), dtype=np.int64)


def _meetings(vectors: LabelledVectors) -> list[_Meeting]:
    if vectors.one_set:
        return [_Meeting(_bounds(vectors.n_images), _bounds(vectors.n_images))]
    queries, items = (side.astype(np.int64) for side in (vectors.sizes.queries, vectors.sizes.items))
    return [_Meeting(_bounds(queries, one.start), _bounds(items, other.start)) for one, other in vectors.rounds]


def _class_blocks(bounds: NDArray[np.int64]) -> Iterator[tuple[int, int]]:
    """Yield (first, end) of consecutive classes that have at most TILE images, or of a single larger class.

    A block never has so many classes that [block, T] becomes large.
    """
    n_classes = len(bounds) - 1
    most = max(1, _MAX_CELLS // n_classes)
    first = 0
    while first < n_classes:
        end = int(np.searchsorted(bounds, bounds[first] + tiles.TILE, side="right")) - 1
        end = min(max(end, first + 1), first + most, n_classes)
        yield first, end
        first = end


def starts_in(codes: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the first place of each class among sorted codes of a tile, and the class: two [c] int64."""
    places = np.flatnonzero(np.diff(codes, prepend=-1)).astype(np.int64)
    return places, codes[places]


def _scan(vectors: LabelledVectors, meetings: Sequence[_Meeting], first: int, end: int, limit: np.float32) -> _Block:
    """Reduce the scores of the classes first to end (exclusive) with all later classes."""
    n_classes, n_images = len(vectors.classes), vectors.n_images
    shape = (end - first, n_classes)
    sums, accepted = np.zeros(shape), np.zeros(shape, dtype=np.int64)
    highest = np.full(shape, -np.inf, dtype=np.float32)
    for scores, own, others in _blocks_of_scores(vectors, meetings, first, end):
        row_starts, of_rows = starts_in(own)
        column_starts, of_columns = starts_in(others)
        cells = np.ix_(of_rows - first, of_columns)
        sums[cells] += _reduce(np.add, scores.astype(np.float64), row_starts, column_starts)
        accepted[cells] += _reduce(np.add, (scores >= limit).astype(np.int64), row_starts, column_starts)
        highest[cells] = np.maximum(highest[cells], _reduce(np.maximum, scores, row_starts, column_starts))
    # Each pair of classes once, and none with itself.
    rows, columns = np.nonzero(np.arange(n_classes)[None, :] > np.arange(first, end)[:, None])
    n_pairs, n_different = np.zeros(shape, dtype=np.int64), np.zeros(shape, dtype=np.int64)
    n_pairs[rows, columns] = vectors.sizes.between(first + rows, columns)
    n_different[rows, columns] = np.minimum(n_images[first + rows] * n_images[columns], n_pairs[rows, columns])
    return _Block(
        first, n_pairs, n_different, np.where(n_pairs > 0, accepted, 0), sums / np.maximum(n_pairs, 1), highest
    )


def _blocks_of_scores(
    vectors: LabelledVectors, meetings: Sequence[_Meeting], first: int, end: int
) -> Iterator[tuple[NDArray[np.float32], Codes, Codes]]:
    """Yield scores of images of the classes first to end with those of the classes from first on, and both codes.

    In rounds the classes are first the queries and then the items, so that each pair across two classes comes once.
    """
    for met in meetings:
        for rows in tiles.slices(int(met.queries[first]), int(met.queries[end])):
            for columns in tiles.slices(int(met.items[first]), int(met.items[-1])):
                scores = scores_of(vectors.query[rows], vectors.gallery[columns])
                yield scores, vectors.codes[rows], vectors.gallery_codes[columns]
        if vectors.one_set:
            continue
        for columns in tiles.slices(int(met.items[first]), int(met.items[end])):
            for rows in tiles.slices(int(met.queries[first]), int(met.queries[-1])):
                scores = scores_of(vectors.query[rows], vectors.gallery[columns])
                yield scores.T, vectors.gallery_codes[columns], vectors.codes[rows]


def _reduce(
    function: np.ufunc, values: NDArray[Any], row_starts: NDArray[np.int64], column_starts: NDArray[np.int64]
) -> NDArray[Any]:
    return np.asarray(function.reduceat(function.reduceat(values, column_starts, axis=1), row_starts, axis=0))


def _examples(
    vectors: LabelledVectors, meetings: Sequence[_Meeting], pair: ConfusedPair, n_examples: int
) -> tuple[ScoredPair, ...]:
    """Return the highest-scoring pairs of images across two classes, best first, each pair of images once."""
    first, second = vectors.classes.index(pair.first), vectors.classes.index(pair.second)
    best: dict[tuple[int, int], float] = {}
    for met in meetings:
        found = _best_pairs(vectors, met, first, second, n_examples)
        if not vectors.one_set:
            found += [(score, a, b) for score, b, a in _best_pairs(vectors, met, second, first, n_examples)]
        for score, a, b in found:
            best[a, b] = max(score, best.get((a, b), score))
    listed = heapq.nlargest(n_examples, ((score, *rows) for rows, score in best.items()))
    return tuple(ScoredPair(a, b, score) for score, a, b in listed)


def _best_pairs(
    vectors: LabelledVectors, met: _Meeting, first: int, second: int, n_best: int
) -> list[tuple[float, int, int]]:
    """Return the highest scores of queries of one class with items of another, and the rows of both, best first."""
    best: list[tuple[float, int, int]] = []
    for rows in tiles.slices(int(met.queries[first]), int(met.queries[first + 1])):
        for columns in tiles.slices(int(met.items[second]), int(met.items[second + 1])):
            scores = scores_of(vectors.query[rows], vectors.gallery[columns])
            top = np.argsort(-scores, axis=None, kind="stable")[:n_best]
            i, j = np.unravel_index(top, scores.shape)
            new = zip(scores[i, j], vectors.order[rows][i], vectors.gallery_order[columns][j], strict=True)
            best = heapq.nlargest(n_best, [*best, *((float(s), int(a), int(b)) for s, a, b in new)])
    return best
