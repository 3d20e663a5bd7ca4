"""Whitening: a linear map of embeddings that gives classes similar spreads, so that one threshold fits them better.

The map is fitted with labels or without; the score decides what is done with the mapped embeddings.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from retrieval.consistency.arguments import checked
from retrieval.consistency.classes import number_classes
from retrieval.consistency.pairs.tiles import slices
from retrieval.consistency.pairs.vectors import Vectors
from retrieval.errors import InvalidEmbeddings, InvalidInput, NotEnoughEvidence

# With fewer differences the covariance is noise at any shrinkage.
_MIN_DIFFERENCES = 50
# A shorter row is the rounding of float32: it has no direction.
_NO_LENGTH = 1e-6


@dataclass(frozen=True, slots=True, eq=False)
class Whitening:
    """x -> (x - centre) . projection, scaled to length 1. centre: [d] float32; projection: [d, D] float32.

    Raises:
        InvalidEmbeddings: shapes that do not fit, another dtype, NaN or infinity.
    """

    centre: Vectors
    projection: Vectors

    def __post_init__(self) -> None:
        for name, array, ndim in (("centre", self.centre, 1), ("projection", self.projection, 2)):
            if array.ndim != ndim or array.dtype != np.float32 or not np.isfinite(array).all():
                raise InvalidEmbeddings(
                    f"whitening {name}: expected finite float32 with {ndim} axes, found {array.dtype} {array.shape}"
                )
        if self.projection.shape[0] != len(self.centre) or self.projection.shape[1] == 0:
            raise InvalidEmbeddings(
                f"whitening: expected a projection of {len(self.centre)} rows and some columns, "
                f"found {self.projection.shape}"
            )

    @checked
    def apply(self, embeddings: Vectors) -> Vectors:
        """Return the mapped rows, [n, D] float32 of length 1; a row at the centre, without a direction, becomes zeros.

        Raises:
            InvalidEmbeddings: embeddings [n, d] of another width.
        """
        if embeddings.ndim != 2 or embeddings.shape[1] != len(self.centre):
            raise InvalidEmbeddings(
                f"whitening: expected embeddings of {len(self.centre)} columns, found shape {embeddings.shape}"
            )
        mapped = (embeddings - self.centre) @ self.projection
        lengths = np.linalg.norm(mapped, axis=1, keepdims=True)
        unit: Vectors = np.divide(mapped, lengths, out=np.zeros_like(mapped), where=lengths > _NO_LENGTH)
        return unit


@checked
def fit_whitening(
    embeddings: Vectors, labels: Sequence[str] | None = None, *, shrinkage: float = 0.1, n_neighbours: int = 5
) -> Whitening:
    """Return the map that makes differences inside classes equally large in all directions.

    With labels, the differences are those of images to their class mean. Without labels, those of images to their
    n_neighbours most similar images, which on the whole vary as images of one class do. The covariance C of the
    differences is shrunk to (1 - shrinkage) C + shrinkage * mean(diagonal) I; the projection is its symmetric inverse
    square root, times sqrt(mean(diagonal)): shrinkage 1 only centres.

    embeddings: [n, d] float32, unit rows; labels: n strings, classes of one image do not count.
    Cost: d^3 and, without labels, n^2 products of d; memory: a few [1024, n].

    Raises:
        InvalidInput: shrinkage outside (0, 1], or n_neighbours below 1.
        InvalidEmbeddings: wrong shape or dtype, NaN or infinity, or labels of another length.
        NotEnoughEvidence: fewer than 50 differences, or all of them zero.

    Source: with labels, Hatch, Kajarekar, Stolcke, "Within-class covariance normalization for SVM-based speaker
    recognition", Interspeech 2006.

    >>> rows = np.array([[0.8, 0.6], [0.8, -0.6], [-0.8, 0.6], [-0.8, -0.6]] * 20, dtype=np.float32)
    >>> whitening = fit_whitening(rows, ["right", "right", "left", "left"] * 20)
    >>> a, b = whitening.apply(rows[:2])  # the second axis only varies inside classes: its weight falls
    >>> f"{rows[0] @ rows[1]:.2f} before, {a @ b:.2f} after"
    '0.28 before, 0.94 after'
    """
    if not 0 < shrinkage <= 1 or n_neighbours < 1:
        raise InvalidInput(
            f"expected shrinkage in (0, 1] and n_neighbours of at least 1, found {shrinkage} and {n_neighbours}"
        )
    if embeddings.ndim != 2 or embeddings.dtype != np.float32 or not np.isfinite(embeddings).all():
        raise InvalidEmbeddings(
            f"embeddings must be finite float32 of shape [n, d], found {embeddings.dtype} {embeddings.shape}"
        )
    if labels is None:
        scatter, n_differences = _neighbour_scatter(embeddings, n_neighbours)
    else:
        scatter, n_differences = _class_scatter(embeddings, labels)
    if n_differences < _MIN_DIFFERENCES or np.trace(scatter) <= 0:
        raise NotEnoughEvidence(
            f"whitening needs at least {_MIN_DIFFERENCES} differences between images that are not identical, found "
            f"{n_differences}; add images, or use a score without whitening"
        )
    values, vectors = np.linalg.eigh(scatter / n_differences)
    mean = float(np.maximum(values, 0).mean())
    scale = np.sqrt(mean / ((1 - shrinkage) * np.maximum(values, 0) + shrinkage * mean))
    return Whitening(
        centre=embeddings.mean(axis=0, dtype=np.float64).astype(np.float32),
        projection=((vectors * scale) @ vectors.T).astype(np.float32),  # this root does not depend on signs
    )


def _class_scatter(embeddings: Vectors, labels: Sequence[str]) -> tuple[NDArray[np.float64], int]:
    """Return the sum of outer products of differences to the class mean, and its degrees of freedom."""
    if len(labels) != len(embeddings):
        raise InvalidEmbeddings(f"expected one label per row, found {len(labels)} for {len(embeddings)} rows")
    names, codes = number_classes(labels)
    counts = np.bincount(codes, minlength=len(names))
    order = np.argsort(codes, kind="stable")
    rows = embeddings[order].astype(np.float64)
    sums = np.add.reduceat(rows, np.cumsum(counts) - counts, axis=0) if len(rows) else rows
    differences = rows - (sums / counts[:, None])[codes[order]]
    return differences.T @ differences, int((counts - 1).sum())


def _neighbour_scatter(embeddings: Vectors, n_neighbours: int) -> tuple[NDArray[np.float64], int]:
    """Return the sum of outer products of differences to the most similar other rows, and how many there are."""
    n, d = embeddings.shape
    taken = min(n_neighbours, n - 1)
    scatter = np.zeros((d, d))
    if taken < 1:
        return scatter, 0
    for tile in slices(0, n):
        rows = embeddings[tile]
        similarities = rows @ embeddings.T
        similarities[np.arange(len(rows)), np.arange(n)[tile]] = -np.inf
        nearest = np.argpartition(similarities, n - taken, axis=1)[:, n - taken :]
        for column in nearest.T:
            differences = rows - embeddings[column]
            scatter += differences.T @ differences
    return scatter, n * taken
