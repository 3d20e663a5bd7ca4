"""How many pairs classes make in each pair of groups, from how many images of each class and group meet.

One form serves one set of images and rounds of queries and gallery items, as `PairSizes` does for classes alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from retrieval.consistency.pairs.vectors import Codes, LabelledVectors

Counts = NDArray[np.int64]
Values = NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class GroupSizes:
    """Images of T classes and G groups that meet, and the cells (g, h), pairs of groups with g <= h, that count.

    Classes i and j make half * sum over meetings (one, other) of one_ig other_jh + one_ih other_jg pairs in a cell,
    half = 1/2 if g = h. In one set the images meet themselves. In rounds the queries of each round meet its items, and
    the items its queries.
    """

    meetings: tuple[tuple[Values, Values], ...]  # [T, G] each
    cells: Counts  # [c, 2]
    one_set: bool

    @property
    def n_images(self) -> Counts:
        """Images of each class in each group: [T, G] int64."""
        one, other = self.meetings[0]
        return (one if self.one_set else one + other).astype(np.int64)

    @property
    def half(self) -> Values:
        """1/2 for a cell of a group with itself, else 1: [c]."""
        return np.where(self.cells[:, 0] == self.cells[:, 1], 0.5, 1.0)

    def at(self, cells: Counts) -> GroupSizes:
        """Return the sizes with some of the cells, given by number [k]."""
        return GroupSizes(self.meetings, self.cells[cells], self.one_set)

    def between(self, first: Counts, second: Counts) -> Values:
        """Return the pairs that classes first make with classes second, [e] each: [e, c] float64."""
        g, h = self.cells.T
        pairs = np.zeros((len(first), len(g)))
        for one, other in self.meetings:
            pairs += one[first][:, g] * other[second][:, h] + one[first][:, h] * other[second][:, g]
        return np.asarray(self.half * pairs)

    def inside(self) -> Counts:
        """Return the pairs inside each class: [T, c] int64."""
        classes = np.arange(len(self.meetings[0][0]))
        pairs = self.between(classes, classes) / 2
        if self.one_set:  # an image makes no pair with itself
            g, h = self.cells.T
            pairs -= np.where(g == h, self.meetings[0][0][:, g], 0) / 2
        return pairs.astype(np.int64)

    def across(self) -> Values:
        """Return the pairs of each class with all other classes: [T, c] float64."""
        g, h = self.cells.T
        pairs = np.zeros((len(self.meetings[0][0]), len(g)))
        for one, other in self.meetings:
            others = other.sum(axis=0) - other
            pairs += one[:, g] * others[:, h] + one[:, h] * others[:, g]
        return np.asarray(self.half * pairs)

    def products(self) -> Values:
        """Return for every two cells the sum over pairs of classes of the product of their pairs: [c, c] float64.

        Cost: two products of [G, T] and [T, G] for every two meetings.
        """
        g, h = self.cells.T
        own = np.zeros((len(self.meetings[0][0]), len(g)))  # what a class would make with itself
        total = np.zeros((len(g), len(g)))
        for one, other in self.meetings:
            own += one[:, g] * other[:, h] + one[:, h] * other[:, g]
            for one_too, other_too in self.meetings:
                ones, others = one.T @ one_too, other.T @ other_too
                for a, b in ((g, h), (h, g)):
                    total += ones[np.ix_(a, g)] * others[np.ix_(b, h)] + ones[np.ix_(a, h)] * others[np.ix_(b, g)]
        return np.asarray(np.outer(self.half, self.half) * (total - own.T @ own) / 2)


def group_sizes(vectors: LabelledVectors, group_of: Codes, cells: Counts) -> GroupSizes:
    """Return the sizes of one set or of rounds; group_of: [n], the group of each image in the caller's order."""
    shape = len(vectors.classes), int(group_of.max()) + 1

    def count(codes: Codes, rows: Codes) -> Values:
        counted = np.bincount(codes * shape[1] + group_of[rows], minlength=shape[0] * shape[1])
        return counted.reshape(shape).astype(np.float64)

    if vectors.one_set:
        n = count(vectors.codes, vectors.order)
        return GroupSizes(((n, n),), cells, one_set=True)
    met: list[tuple[Values, Values]] = []
    for queries, items in vectors.rounds:
        of_queries = count(vectors.codes[queries], vectors.order[queries])
        of_items = count(vectors.gallery_codes[items], vectors.gallery_order[items])
        met += [(of_queries, of_items), (of_items, of_queries)]
    return GroupSizes(tuple(met), cells, one_set=False)
