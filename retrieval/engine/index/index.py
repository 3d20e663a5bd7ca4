"""The interface of every vector index: it finds everything whose score reaches a threshold.

`contract/score.py` defines the meaning of the vectors; each kind of index decides how they are stored.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from retrieval.engine.index.spec import IndexSpec
from retrieval.errors import InvalidEmbeddings


@dataclass(frozen=True, slots=True)
class Hits:
    """What one query found, best first: `positions` [m] int64 (rows as added), `scores` [m] float32."""

    positions: NDArray[np.int64]
    scores: NDArray[np.float32]


class Index(Protocol):
    """An immutable index over score vectors. Searching is safe from several threads."""

    @property
    def spec(self) -> IndexSpec:
        """The spec that the index was built from."""

    @property
    def n_items(self) -> int:
        """The number of vectors."""

    @property
    def dimension(self) -> int:
        """The number of columns of the vectors."""

    def above(
        self, queries: NDArray[np.float32], threshold: float, allowed: NDArray[np.bool_] | None = None
    ) -> list[Hits]:
        """Return, for each row of `queries` [q, D], what has `score >= threshold`: best first, ties by row.

        The score is the inner product in float64, rounded to float32. allowed: [n], the rows that may be found.
        A kind that is not exact misses some. Raises InvalidEmbeddings for NaN, or a wrong shape.
        """

    def details(self) -> dict[str, Any]:
        """Return what the snapshot's manifest records: the choices made, and what the kind cannot promise."""

    def save(self, path: Path) -> None:
        """Write the index into a file that `load_index` reads."""


def recall(found: Sequence[Hits], expected: Sequence[Hits]) -> float:
    """Return the share of the expected hits that were found; 1 if none was expected."""
    n_expected = sum(len(hits.positions) for hits in expected)
    n_found = sum(np.isin(wanted.positions, hits.positions).sum() for hits, wanted in zip(found, expected, strict=True))
    return float(n_found) / n_expected if n_expected else 1.0


def check_search(
    index: Index, queries: NDArray[np.float32], threshold: float, allowed: NDArray[np.bool_] | None
) -> None:
    """Raise InvalidEmbeddings if the arguments of `above` do not fit this index."""
    check_vectors(queries, index.dimension)
    check_threshold(threshold)
    if allowed is not None and (allowed.dtype != np.bool_ or allowed.shape != (index.n_items,)):
        raise InvalidEmbeddings(
            f"expected a filter of bool [{index.n_items}], found {allowed.dtype} {list(allowed.shape)}"
        )


def check_threshold(threshold: float) -> None:
    """Raise InvalidEmbeddings for NaN, which no score reaches."""
    if math.isnan(threshold):
        raise InvalidEmbeddings("expected a threshold, found NaN")


def check_vectors(vectors: NDArray[np.float32], dimension: int) -> None:
    """Raise InvalidEmbeddings unless these are finite float32 vectors [n, dimension], n >= 1."""
    if vectors.ndim != 2 or vectors.dtype != np.float32 or vectors.shape[1] != dimension or not dimension:
        raise InvalidEmbeddings(
            f"expected float32 vectors [n, {dimension or 'd'}], found {vectors.dtype} {vectors.shape}"
        )
    if not len(vectors):
        raise InvalidEmbeddings(f"expected at least one vector of dimension {dimension}, found none")
    if not np.isfinite(vectors).all():
        row = int(np.argmin(np.isfinite(vectors).all(axis=1)))
        raise InvalidEmbeddings(f"expected finite vectors, found NaN or infinity in row {row}")
