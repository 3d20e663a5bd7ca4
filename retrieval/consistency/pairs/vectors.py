"""Labelled vectors: checked once, sorted by class, with the pairs that they make.

A pair's score is `query[i] . gallery[j]` in float32, as a search computes it; for cosine both arrays are the same unit
rows. What is counted from the scores is decided by the callers; `rounds.py` makes the vectors of repeated searches.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from retrieval.consistency.arguments import checked
from retrieval.consistency.pairs.sizes import PairSizes
from retrieval.errors import InvalidEmbeddings, InvalidInput, NotEnoughEvidence

Vectors: TypeAlias = NDArray[np.float32]
Codes: TypeAlias = NDArray[np.int64]
Groups: TypeAlias = NDArray[np.int32]
# Codes and groups of rows and of columns, and whether only the pairs above the diagonal count.
Labels: TypeAlias = tuple[Codes, Codes, Groups, Groups, bool]
Columns: TypeAlias = Sequence[Sequence[str]]
Round: TypeAlias = tuple[slice, slice]
Progress: TypeAlias = Callable[[int, int], None]

# Unit rows that were normalised or stored in float16 must pass: rounding the norm and each component to float16 changes
# the length by at most 2 * 2^-11 = 9.8e-4. Float32 rows are within 1e-6.
UNIT_NORM_TOLERANCE = 1e-3
# Of the root mean square score. Sides that were rounded to float16 separately differ by some 3e-4.
_ASYMMETRY = 1e-3
_SYMMETRY_ROWS = 4096


@dataclass(frozen=True, slots=True, eq=False)
class LabelledVectors:
    """Vectors sorted by class, so that a tile holds few classes, and the numbers of their pairs.

    Build them with `labelled`, `crossed` or `in_rounds`. If gallery_codes is codes, the pairs are the unordered ones
    inside one set of images; otherwise every query makes a pair with every gallery vector, in rounds with those of its
    round. Then the vectors are sorted by class inside each round.
    """

    query: Vectors  # [n, D]
    gallery: Vectors  # [g, D]
    codes: Codes  # [n], index into classes; ascending, or in rounds ascending in each
    gallery_codes: Codes  # [g]
    classes: tuple[str, ...]  # sorted names
    order: NDArray[np.int64]  # [n], the caller's row of each query
    gallery_order: NDArray[np.int64]  # [g], the caller's row of each gallery vector
    groups: Groups  # [n, a]; two vectors with an equal group make no pair, -1 equals none
    gallery_groups: Groups  # [g, a]
    cosine: bool  # whether the score is the cosine of unit rows
    families: Codes | None = None  # [T], the family of each class; None: every class is drawn by itself
    rounds: tuple[Round, ...] = ()  # the queries and the gallery of each round, see `in_rounds`
    positives: Codes = field(init=False)  # [T], pairs of each class
    negatives: Codes = field(init=False)  # [T], a negative pair belongs to both its classes

    def __post_init__(self) -> None:
        every = self.rounds or ((slice(None), slice(None)),)
        parts = [pair_totals(self.labels_of(*part), len(self.classes)) for part in every]
        for name, totals in zip(("positives", "negatives"), zip(*parts, strict=True), strict=True):
            object.__setattr__(self, name, np.sum(totals, axis=0, dtype=np.int64))

    @property
    def one_set(self) -> bool:
        """Whether queries and gallery are the same images."""
        return self.gallery_codes is self.codes

    @property
    def n_images(self) -> NDArray[np.int64]:
        """Images of each class: [T] int64."""
        codes = self.codes
        if self.rounds:  # an image takes part in several
            _, first = np.unique(np.append(self.order, self.gallery_order), return_index=True)
            codes = np.append(codes, self.gallery_codes)[first]
        elif not self.one_set:
            codes = np.append(codes, self.gallery_codes)
        return np.bincount(codes, minlength=len(self.classes)).astype(np.int64)

    @property
    def sizes(self) -> PairSizes:
        """How many pairs each two classes make; if pairs are excluded, how many they would make."""
        if self.one_set:
            n = self.n_images.astype(np.float64)
            return PairSizes(n, n, 0.5)
        queries, items = self.rounds[0] if self.rounds else (slice(None), slice(None))
        of_queries = np.bincount(self.codes[queries], minlength=len(self.classes)).astype(np.float64)
        of_items = np.bincount(self.gallery_codes[items], minlength=len(self.classes)).astype(np.float64)
        return PairSizes(of_queries, of_items, float(max(len(self.rounds), 1)))

    @property
    def repeats(self) -> float:
        """How often a pair of two images of different classes counts on average: 1 unless the vectors are in rounds.

        Two classes without a query never meet and do not count.
        """
        if not self.rounds:
            return 1.0
        n = self.n_images
        never = n[self.sizes.queries == 0]
        n_pairs = int(n.sum() ** 2 - (n**2).sum()) - int(never.sum() ** 2 - (never**2).sum())
        return 2 * self.n_negatives / max(n_pairs, 1)

    @property
    def positive_repeats(self) -> float:
        """How often a pair of two images of one class counts on average: 1 unless the vectors are in rounds."""
        if not self.rounds:
            return 1.0
        n = self.n_images
        return 2 * self.n_positives / max(int((n * (n - 1)).sum()), 1)

    @property
    def n_families(self) -> int | None:
        """Number of families of the classes; None if none are named."""
        return None if self.families is None else len(np.unique(self.families))

    @property
    def n_positives(self) -> int:
        """Number of pairs inside a class."""
        return int(self.positives.sum())

    @property
    def n_negatives(self) -> int:
        """Number of pairs across classes."""
        return int(self.negatives.sum()) // 2

    def labels_of(self, rows: slice, columns: slice) -> Labels:
        """Return codes and groups of a tile's rows and columns, and whether only pairs above its diagonal count."""
        codes, gallery_codes = self.codes[rows], self.gallery_codes[columns]
        diagonal = self.one_set and rows == columns
        return codes, gallery_codes, self.groups[rows], self.gallery_groups[columns], diagonal

    def one_round(self, number: int) -> LabelledVectors:
        """Return the queries and the gallery of one round by themselves, with all class names kept."""
        return self.part(*self.rounds[number])

    def part(self, queries: slice, items: slice) -> LabelledVectors:
        """Return some queries and some gallery vectors of two sets by themselves, with all class names kept."""
        return replace(
            self,
            query=np.ascontiguousarray(self.query[queries]),
            gallery=np.ascontiguousarray(self.gallery[items]),
            codes=self.codes[queries],
            gallery_codes=self.gallery_codes[items],
            order=self.order[queries],
            gallery_order=self.gallery_order[items],
            groups=self.groups[queries],
            gallery_groups=self.gallery_groups[items],
            rounds=(),
        )

    def subset(self, rows: NDArray[np.int64]) -> LabelledVectors:
        """Return the vectors of one set in the given rows ([k] int64) with all class names kept."""
        check_one_set(self)
        codes, groups = self.codes[rows], self.groups[rows]
        return replace(
            self,
            query=self.query[rows],
            gallery=self.gallery[rows],
            codes=codes,
            gallery_codes=codes,
            order=self.order[rows],
            gallery_order=self.order[rows],
            groups=groups,
            gallery_groups=groups,
        )


# What the functions take that are called first: labelled vectors, or a plain (embeddings, labels).
VectorsOrPair: TypeAlias = LabelledVectors | tuple[Vectors, Sequence[str]]


@checked
def labelled(
    embeddings: Vectors,
    labels: Sequence[str],
    *,
    gallery: Vectors | None = None,
    exclude: Columns = (),
    families: Sequence[str] | None = None,
) -> LabelledVectors:
    """Check the vectors and labels of one set of images and return them sorted by class.

    Without a gallery, or with one equal to the embeddings, the score is cosine and unit rows are demanded. Otherwise
    the two arrays are the two sides of an inner product, finite and symmetric: a pair has one score, whichever of its
    images is the query. Two sets whose score is not symmetric go to `crossed`.

    embeddings, gallery: [n, D] float32; labels: n strings; exclude: columns of n strings, for instance makers: two
    images with the same string in a column make no pair; the empty string equals none. families: n strings, the unit
    above the class in which classes are drawn together, for instance the maker or the product line: intervals are then
    over the draw of families. The empty string is a family of its class alone.

    Raises:
        InvalidEmbeddings: wrong shape or dtype, NaN or infinity, rows that are not unit, a score that is not symmetric,
            or labels or a column of another length or type.
        InvalidInput: images of one class are in several families.
        NotEnoughEvidence: fewer than two classes.

    >>> vectors = labelled(np.eye(3, dtype=np.float32), ["a", "a", "b"])
    >>> vectors.classes, vectors.n_positives, vectors.n_negatives
    (('a', 'b'), 1, 2)
    """
    check_array("embeddings", embeddings)
    if gallery is not None:
        check_array("gallery", gallery)
        if gallery.shape != embeddings.shape:
            raise InvalidEmbeddings(
                f"gallery must have the shape of the embeddings {embeddings.shape}, found {gallery.shape}"
            )
    if gallery is not None and len(embeddings):
        _check_symmetry(embeddings, gallery)
    cosine = gallery is None or gallery is embeddings or np.array_equal(gallery, embeddings)
    if cosine:
        check_unit_rows(embeddings, "embeddings of a cosine score (for another score pass its gallery side too)")
    classes = class_names(labels)
    (groups,) = _encode_groups((exclude,), (len(embeddings),))
    codes, order = sorted_codes(labels, classes, len(embeddings))
    query, groups = np.ascontiguousarray(embeddings[order]), groups[order]
    return LabelledVectors(
        query=query,
        gallery=query if cosine or gallery is None else np.ascontiguousarray(gallery[order]),
        codes=codes,
        gallery_codes=codes,
        classes=classes,
        order=order,
        gallery_order=order,
        groups=groups,
        gallery_groups=groups,
        cosine=cosine,
        families=None if families is None else family_codes(families, labels, classes),
    )


@checked
def crossed(
    query_vectors: Vectors,
    query_labels: Sequence[str],
    gallery_vectors: Vectors,
    gallery_labels: Sequence[str],
    *,
    cosine: bool = True,
    exclude: Columns = (),
    gallery_exclude: Columns = (),
) -> LabelledVectors:
    """Check two sets of images, pair each query with each gallery vector, and return them sorted by class.

    query_vectors: [n, D] float32; gallery_vectors: [g, D]; cosine: whether the score is cosine, which demands unit
    rows; exclude, gallery_exclude: as many columns of n as of g strings, see `labelled`.

    Raises:
        InvalidEmbeddings, NotEnoughEvidence: see `labelled`; also columns that do not correspond.
    """
    check_array("query_vectors", query_vectors)
    check_array("gallery_vectors", gallery_vectors)
    if gallery_vectors.shape[1] != query_vectors.shape[1]:
        raise InvalidEmbeddings(
            f"expected gallery_vectors of {query_vectors.shape[1]} columns, found {gallery_vectors.shape[1]}"
        )
    if cosine:
        check_unit_rows(query_vectors, "query_vectors")
        check_unit_rows(gallery_vectors, "gallery_vectors")
    classes = class_names([*query_labels, *gallery_labels])
    sizes = len(query_vectors), len(gallery_vectors)
    groups, gallery_groups = _encode_groups((exclude, gallery_exclude), sizes)
    codes, order = sorted_codes(query_labels, classes, sizes[0])
    gallery_codes, gallery_order = sorted_codes(gallery_labels, classes, sizes[1])
    return LabelledVectors(
        query=np.ascontiguousarray(query_vectors[order]),
        gallery=np.ascontiguousarray(gallery_vectors[gallery_order]),
        codes=codes,
        gallery_codes=gallery_codes,
        classes=classes,
        order=order,
        gallery_order=gallery_order,
        groups=groups[order],
        gallery_groups=gallery_groups[gallery_order],
        cosine=cosine,
    )


def as_labelled(vectors: VectorsOrPair) -> LabelledVectors:
    """Return labelled vectors as they are, and a plain (embeddings, labels) as `labelled` makes it.

    Raises:
        InvalidInput: neither of the two.
        InvalidEmbeddings, NotEnoughEvidence: see `labelled`.
    """
    if isinstance(vectors, LabelledVectors):
        return vectors
    if not isinstance(vectors, tuple) or len(vectors) != 2:  # type: ignore[redundant-expr]  # callers without types
        raise InvalidInput(f"expected labelled vectors or (embeddings, labels), found {type(vectors).__name__}")
    return labelled(*vectors)


def check_positives(vectors: LabelledVectors) -> None:
    """Raise NotEnoughEvidence if no class has two images that make a pair."""
    if vectors.n_positives == 0:
        raise NotEnoughEvidence(
            f"no class has two images that make a pair, among {len(vectors.classes)} classes; add images per class"
        )


def check_one_population(vectors: LabelledVectors) -> None:
    """Raise InvalidInput unless all classes are drawn alike: one set of images or rounds of one, all their pairs."""
    if not vectors.rounds:
        check_one_set(vectors, all_pairs=True)


def check_one_set(vectors: LabelledVectors, *, all_pairs: bool = False) -> None:
    """Raise InvalidInput if the vectors are two sets, or with all_pairs if some of their pairs are excluded."""
    if not vectors.one_set:
        raise InvalidInput("expected one set of images, found queries crossed with a gallery; use labelled")
    if all_pairs and vectors.groups.shape[1]:
        raise InvalidInput("expected vectors without excluded pairs, which cannot be left out here; omit exclude")


def check_same_images(first: LabelledVectors, second: LabelledVectors) -> None:
    """Raise InvalidInput unless row i of both is an image of the same class."""
    if first.classes != second.classes or not (
        np.array_equal(first.order, second.order) and np.array_equal(first.codes, second.codes)
    ):
        raise InvalidInput("expected vectors of the same images: as many rows with the same labels in the same order")


@checked
def check_unit_rows(rows: Vectors, name: str) -> None:
    """Raise InvalidEmbeddings unless the rows [n, D] are finite and of norm 1; the message starts with the name."""
    if rows.ndim != 2:
        raise InvalidEmbeddings(f"{name}: expected an array [n, d], found shape {rows.shape}")
    norms = np.linalg.norm(rows, axis=1)
    wrong = ~(np.abs(norms - 1) <= UNIT_NORM_TOLERANCE)  # written so that NaN counts as wrong
    if wrong.any():
        row = int(np.argmax(wrong))
        raise InvalidEmbeddings(
            f"{name}: expected rows of norm 1, found {norms[row]:.6g} in row {row} "
            f"({np.count_nonzero(wrong)} of {len(rows)} rows are wrong); normalise them"
        )


def pair_totals(labels: Labels, n_classes: int) -> tuple[Codes, Codes]:
    """Return the positives and negatives of each class: two [T] int64, see `LabelledVectors`."""
    codes, gallery_codes, groups, _, diagonal = labels
    if groups.shape[1]:
        from retrieval.consistency.pairs import kernels

        counted = np.zeros((2, n_classes), dtype=np.int64)
        kernels.count_pairs_by_class(*labels, *counted)
        return counted[0], counted[1]
    rows, columns = (np.bincount(side, minlength=n_classes).astype(np.int64) for side in (codes, gallery_codes))
    if diagonal:
        return rows * (rows - 1) // 2, rows * (rows.sum() - rows)
    return rows * columns, rows * (columns.sum() - columns) + columns * (rows.sum() - rows)


def check_array(name: str, vectors: Vectors) -> None:
    """Raise InvalidEmbeddings unless the vectors are finite float32 [n, D]; the message starts with the name."""
    if vectors.ndim != 2 or vectors.dtype != np.float32:
        raise InvalidEmbeddings(f"{name} must be float32 of shape [n, D], found {vectors.dtype} {vectors.shape}")
    finite = np.isfinite(vectors).all(axis=1)
    if not finite.all():
        raise InvalidEmbeddings(
            f"{name} must be finite, found NaN or infinity in {np.count_nonzero(~finite)} rows, "
            f"the first is row {np.argmin(finite)}"
        )


def _check_symmetry(query: Vectors, gallery: Vectors) -> None:
    """Raise InvalidEmbeddings unless query[i] . gallery[j] is query[j] . gallery[i] for all i and j, up to rounding.

    The sum over all pairs of the squared difference is 2 (|Q G'|^2 - tr(Q G' Q G')), which takes only [D, D] products.
    """
    n, width = query.shape
    products = [np.zeros((width, width)) for _ in range(3)]
    for start in range(0, n, _SYMMETRY_ROWS):
        q, g = (side[start : start + _SYMMETRY_ROWS].astype(np.float64) for side in (query, gallery))
        for total, (left, right) in zip(products, ((q, q), (g, g), (g, q)), strict=True):
            total += left.T @ right
    of_query, of_gallery, crosswise = products
    squares = float((of_query * of_gallery).sum())
    apart = 2 * (squares - float((crosswise * crosswise.T).sum()))
    if apart > _ASYMMETRY**2 * squares:
        raise InvalidEmbeddings(
            f"the score of a pair depends on which image is the query: its two scores differ by "
            f"{np.sqrt(apart) / n:.2g} (root mean square over all pairs); pass two sides of a symmetric score, or two "
            "sets to crossed"
        )


def class_names(labels: Sequence[str]) -> tuple[str, ...]:
    """Return the sorted names of at least two classes. Raises InvalidEmbeddings, NotEnoughEvidence."""
    if not all(isinstance(label, str) for label in labels):
        raise InvalidEmbeddings("labels must be strings; convert class numbers to strings first")
    classes = tuple(sorted({str(label) for label in labels}))
    if len(classes) < 2:
        raise NotEnoughEvidence(f"false accepts need images of at least 2 classes, found {len(classes)}; add classes")
    return classes


def sorted_codes(labels: Sequence[str], classes: Sequence[str], n: int) -> tuple[Codes, NDArray[np.int64]]:
    """Return the class codes of n rows, ascending, and the row that each comes from."""
    if len(labels) != n:
        raise InvalidEmbeddings(f"expected one label per row, found {len(labels)} labels for {n} rows")
    code_of = {name: code for code, name in enumerate(classes)}
    codes = np.fromiter((code_of[label] for label in labels), dtype=np.int64, count=n)
    order = np.argsort(codes, kind="stable").astype(np.int64)
    return codes[order], order


def family_codes(families: Sequence[str], labels: Sequence[str], classes: Sequence[str]) -> Codes:
    """Return the number of the family of each class: [T] int64."""
    if len(families) != len(labels):
        raise InvalidEmbeddings(f"expected one family per label, found {len(families)} for {len(labels)} labels")
    family_of: dict[str, str] = {}
    for label, family in zip(labels, families, strict=True):
        if not isinstance(family, str):
            raise InvalidEmbeddings("families must be strings; convert numbers to strings first")
        if family_of.setdefault(label, family) != family:
            raise InvalidInput(
                f"expected all images of a class in one family, found class {label!r} in {family_of[label]!r} and "
                f"{family!r}"
            )
    # A class without a family is one by itself; a tuple cannot equal a name.
    names = [family_of[name] or (name,) for name in classes]
    number = {name: code for code, name in enumerate(dict.fromkeys(names))}
    return np.array([number[name] for name in names], dtype=np.int64)


def _encode_groups(sides: Sequence[Columns], sizes: Sequence[int]) -> list[Groups]:
    """Return group numbers that agree between the sides: an [n, a] int32 for each of the sizes."""
    n_columns = [len(side) for side in sides]
    if len(set(n_columns)) > 1:
        raise InvalidEmbeddings(
            f"expected as many columns to exclude by for queries as for the gallery, found {n_columns[0]} and "
            f"{n_columns[1]}"
        )
    encoded = [np.empty((n, n_columns[0]), dtype=np.int32) for n in sizes]
    for column, values in enumerate(zip(*sides, strict=True)):
        names = sorted({str(name) for side in values for name in side} - {""})
        code_of = {"": -1} | {name: code for code, name in enumerate(names)}
        for side, codes in zip(values, encoded, strict=True):
            if len(side) != len(codes):
                raise InvalidEmbeddings(
                    f"expected one value per row to exclude by, found {len(side)} for {len(codes)} rows"
                )
            codes[:, column] = [code_of[str(name)] for name in side]
    return encoded
