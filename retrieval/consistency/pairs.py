"""Labelled vectors, checked, and the scores of their unordered pairs, tile by tile in bounded memory.

A pair's score is `query[i] . gallery[j]`, in float32 as a search computes it; for cosine both arrays are the same unit
rows. What is counted from the scores is decided by the modules above.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from retrieval.errors import InvalidEmbeddings, InvalidInput, NotEnoughEvidence

Vectors: TypeAlias = NDArray[np.float32]
Progress: TypeAlias = Callable[[int, int], None]

# float32 rows normalised by any common library are within 1e-6 of unit length; half-precision storage adds 1e-3.
UNIT_NORM_TOLERANCE = 2e-3


@dataclass(frozen=True, slots=True, eq=False)
class LabelledVectors:
    """Vectors sorted by class, so that a tile meets few classes.

    query, gallery: [n, D] float32; codes: [n] int64, ascending, index into classes (sorted names);
    order: [n] int64, the caller's row of each vector; cosine: whether the score is the cosine of unit rows.
    """

    query: Vectors
    gallery: Vectors
    codes: NDArray[np.int64]
    classes: tuple[str, ...]
    order: NDArray[np.int64]
    cosine: bool

    @property
    def n_images(self) -> NDArray[np.int64]:
        """Images of each class: [T] int64."""
        return np.bincount(self.codes, minlength=len(self.classes)).astype(np.int64)

    @property
    def n_positives(self) -> int:
        """Number of unordered pairs inside a class."""
        n_images = self.n_images
        return int((n_images * (n_images - 1) // 2).sum())

    @property
    def n_negatives(self) -> int:
        """Number of unordered pairs across classes."""
        n = len(self.codes)
        return n * (n - 1) // 2 - self.n_positives

    def subset(self, rows: NDArray[np.int64]) -> LabelledVectors:
        """Return the vectors in the given rows ([k] int64, ascending) with all class names kept."""
        return LabelledVectors(
            self.query[rows], self.gallery[rows], self.codes[rows], self.classes, self.order[rows], self.cosine
        )


def labelled_vectors(
    query_vectors: Vectors, labels: Sequence[str], gallery_vectors: Vectors | None = None
) -> LabelledVectors:
    """Check vectors and labels and return them sorted by class.

    The score is taken to be cosine, and unit rows are demanded, when gallery_vectors is omitted or equals
    query_vectors; otherwise the two arrays are used as given and only have to be finite.

    query_vectors, gallery_vectors: [n, D] float32; labels: n strings.

    Raises:
        InvalidEmbeddings: wrong shape or dtype, NaN or infinity, rows that are not unit where cosine is meant, or
            labels of another length or type.
        NotEnoughEvidence: fewer than two classes.
    """
    _check_array("query_vectors", query_vectors)
    if gallery_vectors is None:
        gallery_vectors = query_vectors
    else:
        _check_array("gallery_vectors", gallery_vectors)
        if gallery_vectors.shape != query_vectors.shape:
            raise InvalidEmbeddings(
                f"gallery_vectors must have the shape of query_vectors {query_vectors.shape}, "
                f"found {gallery_vectors.shape}"
            )
    cosine = gallery_vectors is query_vectors or np.array_equal(gallery_vectors, query_vectors)
    if cosine:
        _check_unit_rows(query_vectors)
    codes, classes = _encode_labels(labels, len(query_vectors))
    order = np.argsort(codes, kind="stable").astype(np.int64)
    query = np.ascontiguousarray(query_vectors[order])
    gallery = query if cosine else np.ascontiguousarray(gallery_vectors[order])
    return LabelledVectors(query, gallery, codes[order], classes, order, cosine)


def _check_array(name: str, vectors: Vectors) -> None:
    if vectors.ndim != 2 or vectors.dtype != np.float32:
        raise InvalidEmbeddings(f"{name} must be float32 of shape [n, D], found {vectors.dtype} {vectors.shape}")
    finite = np.isfinite(vectors).all(axis=1)
    if not finite.all():
        raise InvalidEmbeddings(
            f"{name} must be finite, found NaN or infinity in {np.count_nonzero(~finite)} rows, "
            f"the first is row {np.argmin(finite)}"
        )


def _check_unit_rows(vectors: Vectors) -> None:
    norms = np.linalg.norm(vectors, axis=1)
    wrong = np.abs(norms - 1) > UNIT_NORM_TOLERANCE
    if wrong.any():
        row = int(np.argmax(wrong))
        raise InvalidEmbeddings(
            f"cosine needs unit rows, found {np.count_nonzero(wrong)} that are not, the first is row {row} of norm "
            f"{norms[row]:.4g}; normalise them, or pass gallery_vectors where the score is not cosine"
        )


def _encode_labels(labels: Sequence[str], n: int) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    if len(labels) != n:
        raise InvalidEmbeddings(f"expected one label per row, found {len(labels)} labels for {n} rows")
    if not all(isinstance(label, str) for label in labels):
        raise InvalidEmbeddings("labels must be strings; convert class numbers to strings first")
    classes = tuple(sorted({str(label) for label in labels}))
    if len(classes) < 2:
        raise NotEnoughEvidence(f"false accepts need images of at least 2 classes, found {len(classes)}; add classes")
    code_of = {name: code for code, name in enumerate(classes)}
    return np.fromiter((code_of[label] for label in labels), dtype=np.int64, count=n), classes


@dataclass(frozen=True, slots=True, eq=False)
class PairBatch:
    """Pairs of one tile: scores [p] float32, never -0.0; class codes [p] int64 of both ends, first <= second."""

    scores: NDArray[np.float32]
    first: NDArray[np.int64]
    second: NDArray[np.int64]

    @property
    def matches(self) -> NDArray[np.bool_]:
        """Whether both ends are of one class: [p] bool."""
        return np.equal(self.first, self.second)


def tile_bounds(n: int, tile: int, shard: tuple[int, int] = (0, 1)) -> list[tuple[slice, slice]]:
    """Return the (rows, columns) of the tiles on and above the diagonal that belong to shard (index, count).

    Raises:
        InvalidInput: tile is not positive or the shard does not exist.
    """
    index, count = shard
    if tile < 1 or not 0 <= index < count:
        raise InvalidInput(f"expected tile >= 1 and 0 <= shard index < count, found tile {tile}, shard {shard}")
    starts = range(0, n, tile)
    every = [
        (slice(i, min(i + tile, n)), slice(j, min(j + tile, n))) for i in starts for j in starts if j >= i
    ]  # fmt: skip
    return every[index::count]


def scored_pairs(
    vectors: LabelledVectors,
    *,
    lowest: np.float32 | float = -np.inf,
    tile: int,
    shard: tuple[int, int] = (0, 1),
    progress: Progress | None = None,
) -> Iterator[PairBatch]:
    """Yield every unordered pair that scores at least `lowest`, once, one batch per tile.

    progress is called with (tiles done, tiles in all). Cost: one [n, n] / 2 matrix product; memory: a few [tile, tile].
    """
    bounds = tile_bounds(len(vectors.codes), tile, shard)
    floor = np.float32(lowest)
    for done, (rows, columns) in enumerate(bounds, start=1):
        scores = vectors.query[rows] @ vectors.gallery[columns].T
        kept = scores >= floor
        if rows == columns:
            kept = np.triu(kept, k=1)
        i, j = np.nonzero(kept)
        # Adding zero turns -0.0 into 0.0, which would otherwise order differently as bits and as a number.
        yield PairBatch(scores[i, j] + np.float32(0), vectors.codes[rows][i], vectors.codes[columns][j])
        if progress is not None:
            progress(done, len(bounds))


def float32_at_least(thresholds: NDArray[np.float64]) -> NDArray[np.float32]:
    """Return the smallest float32 not below each threshold: a float32 score reaches both or neither."""
    nearest = thresholds.astype(np.float32)
    return np.where(nearest < thresholds, np.nextafter(nearest, np.float32(np.inf)), nearest).astype(np.float32)
