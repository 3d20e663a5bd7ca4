"""The numbers of pairs that classes make with each other, from how many queries and gallery items each class has.

One form serves one set of images, a query set with a gallery, and repeated rounds of the two.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Codes = NDArray[np.int64]
Rates = NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class PairSizes:
    """Two classes i and j make factor * (queries_i * items_j + items_i * queries_j) pairs.

    In one set of images queries and items are the images of the class, and factor is 1/2: a pair has no order.
    """

    queries: Rates  # [T]
    items: Rates  # [T]
    factor: float

    def weighted(self, weights: Rates) -> Rates:
        """Return for each class the sum of weights over its pairs with the other classes: [T] or [T, m] -> the same.

        weights: of the other class of the pair.
        """
        shape = (-1,) + (1,) * (weights.ndim - 1)
        queries, items = self.queries.reshape(shape), self.items.reshape(shape)
        of_items, of_queries = weights * items, weights * queries
        every = queries * (of_items.sum(axis=0) - of_items) + items * (of_queries.sum(axis=0) - of_queries)
        return np.asarray(self.factor * every, dtype=np.float64)

    def between(self, first: Codes, second: Codes) -> Rates:
        """Return the pairs that classes first make with classes second, [e] codes each: [e] float64."""
        q, g = self.queries, self.items
        return np.asarray(self.factor * (q[first] * g[second] + g[first] * q[second]), dtype=np.float64)

    def squares(self) -> Rates:
        """Return for each class the sum of the squares of its pairs with each other class: [T] float64."""
        q, g = self.queries, self.items
        qq, gg, qg = ((product.sum() - product) for product in (q**2, g**2, q * g))
        return np.asarray(self.factor**2 * (q**2 * gg + 2 * q * g * qg + g**2 * qq), dtype=np.float64)

    def with_new(self, queries: float, items: float) -> Rates:
        """Return the pairs of each class with a new class of so many queries and items: [T] float64."""
        return np.asarray(self.factor * (self.queries * items + self.items * queries), dtype=np.float64)
