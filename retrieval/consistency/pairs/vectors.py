"""Labelled vectors, checked, and the scores of their pairs, tile by tile in bounded memory.

A pair's score is `query[i] . gallery[j]`, in float32 as a search computes it; for cosine both arrays are the same unit
rows. What is counted from the scores is decided by the modules above.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from retrieval.consistency.pairs.products import scores_of
from retrieval.errors import InvalidEmbeddings, InvalidInput, NotEnoughEvidence

Vectors: TypeAlias = NDArray[np.float32]
Codes: TypeAlias = NDArray[np.int64]
Groups: TypeAlias = NDArray[np.int32]
Columns: TypeAlias = Sequence[Sequence[str]]
Progress: TypeAlias = Callable[[int, int], None]

# float32 rows normalised by any common library are within 1e-6 of unit length; half-precision storage adds 1e-3.
UNIT_NORM_TOLERANCE = 2e-3


@dataclass(frozen=True, slots=True, eq=False)
class LabelledVectors:
    """Vectors sorted by class, so that a tile meets few classes, and which of their pairs are visited.

    query: [n, D] float32; gallery: [g, D]; codes, gallery_codes: [n] and [g] int64, ascending, index into classes
    (sorted names); order: [n] int64, the caller's row of each query; groups, gallery_groups: [n, a] and [g, a] int32,
    two vectors that share one make no pair, -1 shares with none; positives, negatives: [T] int64, pairs of each class;
    cosine: whether the score is the cosine of unit rows.

    Where gallery_codes is codes, the pairs are the unordered ones inside one set of images; otherwise every query with
    every gallery vector.
    """

    query: Vectors
    gallery: Vectors
    codes: Codes
    gallery_codes: Codes
    classes: tuple[str, ...]
    order: NDArray[np.int64]
    groups: Groups
    gallery_groups: Groups
    positives: Codes
    negatives: Codes
    cosine: bool

    @property
    def one_set(self) -> bool:
        """Whether queries and gallery are the same images."""
        return self.gallery_codes is self.codes

    @property
    def n_images(self) -> NDArray[np.int64]:
        """Images of each class: [T] int64."""
        counts = np.bincount(self.codes, minlength=len(self.classes))
        if not self.one_set:
            counts = counts + np.bincount(self.gallery_codes, minlength=len(self.classes))
        return counts.astype(np.int64)

    @property
    def n_positives(self) -> int:
        """Number of pairs inside a class."""
        return int(self.positives.sum())

    @property
    def n_negatives(self) -> int:
        """Number of pairs across classes."""
        return int(self.negatives.sum()) // 2

    def subset(self, rows: NDArray[np.int64]) -> LabelledVectors:
        """Return the vectors of one set in the given rows ([k] int64) with all class names kept."""
        codes, groups = self.codes[rows], self.groups[rows]
        positives, negatives = pair_totals(codes, codes, groups, groups, len(self.classes))
        return LabelledVectors(
            query=self.query[rows],
            gallery=self.gallery[rows],
            codes=codes,
            gallery_codes=codes,
            classes=self.classes,
            order=self.order[rows],
            groups=groups,
            gallery_groups=groups,
            positives=positives,
            negatives=negatives,
            cosine=self.cosine,
        )


def labelled_vectors(
    query_vectors: Vectors,
    labels: Sequence[str],
    gallery_vectors: Vectors | None = None,
    *,
    exclude: Columns = (),
) -> LabelledVectors:
    """Check the vectors and labels of one set of images and return them sorted by class.

    The score is taken to be cosine, and unit rows are demanded, when gallery_vectors is omitted or equals
    query_vectors; otherwise the two arrays are used as given and only have to be finite.

    query_vectors, gallery_vectors: [n, D] float32; labels: n strings; exclude: columns of n strings, two images that
    have the same one in a column make no pair, the empty string is shared with none.

    Raises:
        InvalidEmbeddings: wrong shape or dtype, NaN or infinity, rows that are not unit where cosine is meant, or
            labels or a column of another length or type.
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
        _check_unit_rows("query_vectors", query_vectors)
    _check_length(labels, len(query_vectors))
    classes = _class_names(labels)
    unsorted = _encode(labels, classes, len(query_vectors))
    order = np.argsort(unsorted, kind="stable").astype(np.int64)
    query = np.ascontiguousarray(query_vectors[order])
    codes, groups = unsorted[order], _encode_groups(exclude, exclude, len(query))[0][order]
    positives, negatives = pair_totals(codes, codes, groups, groups, len(classes))
    return LabelledVectors(
        query=query,
        gallery=query if cosine else np.ascontiguousarray(gallery_vectors[order]),
        codes=codes,
        gallery_codes=codes,
        classes=classes,
        order=order,
        groups=groups,
        gallery_groups=groups,
        positives=positives,
        negatives=negatives,
        cosine=cosine,
    )


def crossed_vectors(
    query_vectors: Vectors,
    query_labels: Sequence[str],
    gallery_vectors: Vectors,
    gallery_labels: Sequence[str],
    *,
    cosine: bool = True,
    exclude: Columns = (),
    gallery_exclude: Columns = (),
) -> LabelledVectors:
    """Check two sets of images, each query of which is paired with each gallery vector, and return them sorted.

    query_vectors: [n, D] float32; gallery_vectors: [g, D]; cosine: whether unit rows are meant, and demanded; exclude,
    gallery_exclude: as many columns of n and of g strings, as `labelled_vectors` takes them.

    Raises:
        InvalidEmbeddings, NotEnoughEvidence: see `labelled_vectors`; also columns that do not correspond.
    """
    _check_array("query_vectors", query_vectors)
    _check_array("gallery_vectors", gallery_vectors)
    if gallery_vectors.shape[1] != query_vectors.shape[1]:
        raise InvalidEmbeddings(
            f"expected gallery_vectors of {query_vectors.shape[1]} columns, found {gallery_vectors.shape[1]}"
        )
    if cosine:
        _check_unit_rows("query_vectors", query_vectors)
        _check_unit_rows("gallery_vectors", gallery_vectors)
    _check_length(query_labels, len(query_vectors))
    _check_length(gallery_labels, len(gallery_vectors))
    classes = _class_names([*query_labels, *gallery_labels])
    query_codes = _encode(query_labels, classes, len(query_vectors))
    gallery_codes = _encode(gallery_labels, classes, len(gallery_vectors))
    groups, gallery_groups = _encode_groups(exclude, gallery_exclude, len(query_codes), len(gallery_codes))
    order = np.argsort(query_codes, kind="stable").astype(np.int64)
    gallery_order = np.argsort(gallery_codes, kind="stable")
    query_codes, gallery_codes = query_codes[order], gallery_codes[gallery_order]
    groups, gallery_groups = groups[order], gallery_groups[gallery_order]
    positives, negatives = pair_totals(query_codes, gallery_codes, groups, gallery_groups, len(classes))
    return LabelledVectors(
        query=np.ascontiguousarray(query_vectors[order]),
        gallery=np.ascontiguousarray(gallery_vectors[gallery_order]),
        codes=query_codes,
        gallery_codes=gallery_codes,
        classes=classes,
        order=order,
        groups=groups,
        gallery_groups=gallery_groups,
        positives=positives,
        negatives=negatives,
        cosine=cosine,
    )


def check_positives(vectors: LabelledVectors) -> None:
    """Raises NotEnoughEvidence where no class has two images that make a pair."""
    if vectors.n_positives == 0:
        raise NotEnoughEvidence(
            f"no class has two images that make a pair, among {len(vectors.classes)} classes; add images per class"
        )


def pair_totals(
    codes: Codes, gallery_codes: Codes, groups: Groups, gallery_groups: Groups, n_classes: int
) -> tuple[Codes, Codes]:
    """Return the positives and negatives of each class: two [T] int64; a negative pair belongs to both its classes.

    Pairs are the unordered ones inside one set of images where gallery_codes is codes.
    """
    one_set = gallery_codes is codes
    if groups.shape[1]:
        from retrieval.consistency.pairs import kernels

        counted = np.zeros((2, n_classes), dtype=np.int64)
        kernels.count_pairs_by_class(codes, gallery_codes, groups, gallery_groups, one_set, *counted)
        return counted[0], counted[1]
    above, beside = (np.bincount(side, minlength=n_classes).astype(np.int64) for side in (codes, gallery_codes))
    if one_set:
        return above * (above - 1) // 2, above * (above.sum() - above)
    return above * beside, above * (beside.sum() - beside) + beside * (above.sum() - above)


def _check_array(name: str, vectors: Vectors) -> None:
    if vectors.ndim != 2 or vectors.dtype != np.float32:
        raise InvalidEmbeddings(f"{name} must be float32 of shape [n, D], found {vectors.dtype} {vectors.shape}")
    finite = np.isfinite(vectors).all(axis=1)
    if not finite.all():
        raise InvalidEmbeddings(
            f"{name} must be finite, found NaN or infinity in {np.count_nonzero(~finite)} rows, "
            f"the first is row {np.argmin(finite)}"
        )


def _check_unit_rows(name: str, vectors: Vectors) -> None:
    norms = np.linalg.norm(vectors, axis=1)
    wrong = np.abs(norms - 1) > UNIT_NORM_TOLERANCE
    if wrong.any():
        row = int(np.argmax(wrong))
        raise InvalidEmbeddings(
            f"cosine needs unit rows, found {np.count_nonzero(wrong)} that are not, the first is row {row} of norm "
            f"{norms[row]:.4g} in {name}; normalise them, or say by other gallery_vectors that the score is not cosine"
        )


def _check_length(labels: Sequence[str], n: int) -> None:
    if len(labels) != n:
        raise InvalidEmbeddings(f"expected one label per row, found {len(labels)} labels for {n} rows")


def _class_names(labels: Sequence[str]) -> tuple[str, ...]:
    if not all(isinstance(label, str) for label in labels):
        raise InvalidEmbeddings("labels must be strings; convert class numbers to strings first")
    classes = tuple(sorted({str(label) for label in labels}))
    if len(classes) < 2:
        raise NotEnoughEvidence(f"false accepts need images of at least 2 classes, found {len(classes)}; add classes")
    return classes


def _encode(labels: Sequence[str], names: Sequence[str], n: int) -> Codes:
    code_of = {name: code for code, name in enumerate(names)}
    return np.fromiter((code_of[label] for label in labels), dtype=np.int64, count=n)


def _encode_groups(exclude: Columns, gallery_exclude: Columns, *sizes: int) -> tuple[Groups, ...]:
    """Number the groups of each column alike in both sets: an [n, a] int32 for each of the sizes."""
    if len(exclude) != len(gallery_exclude):
        raise InvalidEmbeddings(
            f"expected as many columns to exclude by for queries as for the gallery, found {len(exclude)} and "
            f"{len(gallery_exclude)}"
        )
    sides = (exclude, gallery_exclude)[: len(sizes)]
    encoded = tuple(np.empty((n, len(exclude)), dtype=np.int32) for n in sizes)
    for attribute in range(len(exclude)):
        names = sorted({str(name) for side in sides for name in side[attribute]} - {""})
        code_of = {"": -1} | {name: code for code, name in enumerate(names)}
        for side, codes, n in zip(sides, encoded, sizes, strict=True):
            if len(side[attribute]) != n:
                raise InvalidEmbeddings(
                    f"expected one value per row to exclude by, found {len(side[attribute])} for {n} rows"
                )
            codes[:, attribute] = [code_of[str(name)] for name in side[attribute]]
    return encoded


@dataclass(frozen=True, slots=True, eq=False)
class PairBatch:
    """Pairs of one tile: scores [p] float32, never -0.0; class codes and rows, [p] int64 each, of both ends.

    Rows are those of the sorted query and gallery. Inside one set of images first <= second.
    """

    scores: NDArray[np.float32]
    first: Codes
    second: Codes
    first_rows: NDArray[np.int64]
    second_rows: NDArray[np.int64]

    @property
    def matches(self) -> NDArray[np.bool_]:
        """Whether both ends are of one class: [p] bool."""
        return np.equal(self.first, self.second)


def tile_bounds(
    n: int, tile: int, shard: tuple[int, int] = (0, 1), *, n_columns: int | None = None
) -> list[tuple[slice, slice]]:
    """Return the (rows, columns) of the tiles that belong to shard (index, count).

    Those on and above the diagonal of the pairs inside one set; with n_columns, all tiles of two sets.

    Raises:
        InvalidInput: tile is not positive or the shard does not exist.
    """
    index, count = shard
    if tile < 1 or not 0 <= index < count:
        raise InvalidInput(f"expected tile >= 1 and 0 <= shard index < count, found tile {tile}, shard {shard}")
    width = n if n_columns is None else n_columns
    every = [
        (slice(i, min(i + tile, n)), slice(j, min(j + tile, width)))
        for i in range(0, n, tile)
        for j in range(i if n_columns is None else 0, width, tile)
    ]
    return every[index::count]


def tiles_of(vectors: LabelledVectors, tile: int, shard: tuple[int, int] = (0, 1)) -> list[tuple[slice, slice]]:
    """Return the tiles of the vectors' pairs that belong to the shard, see `tile_bounds`."""
    n_columns = None if vectors.one_set else len(vectors.gallery_codes)
    return tile_bounds(len(vectors.codes), tile, shard, n_columns=n_columns)


def scored_pairs(
    vectors: LabelledVectors,
    *,
    lowest: np.float32 | float = -np.inf,
    tile: int,
    shard: tuple[int, int] = (0, 1),
    progress: Progress | None = None,
) -> Iterator[PairBatch]:
    """Yield every pair that scores at least `lowest`, once, one batch per tile.

    progress is called with (tiles done, tiles in all). Cost: one matrix product of all pairs; memory: a few
    [tile, tile].
    """
    bounds = tiles_of(vectors, tile, shard)
    floor = np.float32(lowest)
    for done, (rows, columns) in enumerate(bounds, start=1):
        scores = scores_of(vectors.query[rows], vectors.gallery[columns])
        kept = scores >= floor
        for attribute in range(vectors.groups.shape[1]):
            groups = vectors.groups[rows, attribute, None]
            kept &= (groups != vectors.gallery_groups[columns, attribute]) | (groups < 0)
        if vectors.one_set and rows == columns:
            kept = np.triu(kept, k=1)
        i, j = np.nonzero(kept)
        # Adding zero turns -0.0 into 0.0, which would otherwise order differently as bits and as a number.
        reached = scores[i, j] + np.float32(0)
        i, j = i + rows.start, j + columns.start
        yield PairBatch(reached, vectors.codes[i], vectors.gallery_codes[j], i, j)
        if progress is not None:
            progress(done, len(bounds))


def accepted_pairs(vectors: LabelledVectors, threshold: float, *, tile: int) -> Iterator[PairBatch]:
    """Yield every pair that scores at least the threshold, once, one batch per tile."""
    yield from scored_pairs(vectors, lowest=float32_at_least(np.array([threshold]))[0], tile=tile)


def float32_at_least(thresholds: NDArray[np.float64]) -> NDArray[np.float32]:
    """Return the smallest float32 not below each threshold: a float32 score reaches both or neither."""
    nearest = thresholds.astype(np.float32)
    return np.where(nearest < thresholds, np.nextafter(nearest, np.float32(np.inf)), nearest).astype(np.float32)
