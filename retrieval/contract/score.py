"""The score that the threshold is applied to: the cosine, or the cosine corrected for the density around each image.

The score of a pair is an inner product of two vectors, so every index and every statistic works on it unchanged.
`engine/score_choice.py` chooses between scores, `consistency/normalisation.py` fits the whitening.

    cosine            s(a, b) = <a, b>
    cohort            s(a, b) - w (r(a) + r(b)) = <[a, -w r(a), 1], [b, 1, -w r(b)]>
    whitened cohort   the cohort score of a' = P (a - c) / |P (a - c)| and b'

The density r(x) is the mean of the k largest similarities of x to a fixed cohort of unlabelled reference embeddings. An
image with many look-alikes has a high r and needs a higher similarity to be accepted. A whitening first makes the
spread of all classes similar. The vectors have two more columns than the embeddings, for any size of the cohort.

A catalogue score also uses the labels of the catalogue: in place of the item b it takes b pulled towards its class, and
subtracts an offset of the item, see `class_terms.py`. Both change the vectors of items only:

    catalogue         s(a, b*) - w (r(a) + r(b*)) - o(b) = <[a, -w r(a), 1], [b*, 1, -w r(b*) - o(b)]>
"""

import io
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NewType, TypeAlias

import numpy as np
from numpy.typing import NDArray

from retrieval.consistency import Whitening, check_unit_rows
from retrieval.contract.canonical import digest_array, digest_json, json_bytes
from retrieval.contract.class_terms import ClassTerms, class_codes, pull_items
from retrieval.contract.documents import parse, read_object
from retrieval.errors import CorruptArtifact, InvalidEmbeddings, InvalidInput

ScoreDigest = NewType("ScoreDigest", str)
Vectors: TypeAlias = NDArray[np.float32]

SCORE, COHORT, CENTRE, PROJECTION = "score.json", "cohort.npy", "centre.npy", "projection.npy"
# A score without what a later format adds is written in the earlier one, which keeps old digests valid.
_FORMAT, _FORMAT_EXTENDED, _FORMAT_CLASSES = 1, 2, 3
_WEIGHT = 0.5
_TILE = 4096  # rows at a time against the cohort: bounds the memory of `density`


@dataclass(frozen=True, slots=True, eq=False)
class GalleryClasses:
    """The classes of a gallery.

    names: [c], sorted; sizes: [c] int64, the number of items; means: [c, D] float32, of the items after the whitening.
    """

    names: tuple[str, ...]
    sizes: NDArray[np.int64]
    means: Vectors


@dataclass(frozen=True, slots=True, eq=False)
class GalleryVectors:
    """The items of a gallery as a score compares them.

    vectors: [n, D] float32, the right factors of the score; densities: [n] float32, of the items after the pull;
    offsets: [n] float32, the offset of each item, 0 if the score has none; far: [n] bool, see `PulledItems`. classes:
    None if the score does not use the labels.
    """

    vectors: Vectors
    densities: Vectors
    offsets: Vectors
    far: NDArray[np.bool_]
    classes: GalleryClasses | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """A score. The cosine has no field set; a cohort score has `cohort` and `k`, and optionally the others.

    cohort: [m, D] float32, unit rows, whitened if there is a whitening; `cohort_score` makes them. k: the number of
    largest similarities whose mean is the density. weight: w above, in (0, 1]. ignore_above: in (-1, 1]; cohort rows at
    least this similar to an image count as the image itself and are left out of its density, because the cohort may be
    a sample of the catalogue. If fewer than k rows are left, the density is their mean; if none is, ignore_above.
    classes: what a catalogue score takes from the labels of the items, over the cosine or over a cohort score.
    """

    cohort: NDArray[np.float32] | None = None
    k: int = 0
    weight: float = _WEIGHT
    ignore_above: float | None = None
    whitening: Whitening | None = None
    classes: ClassTerms | None = None

    def __post_init__(self) -> None:
        if self.cohort is None:
            if self.whitening is not None or self.ignore_above is not None or self.weight != _WEIGHT:
                raise InvalidEmbeddings("expected a cohort with weight, ignore_above or whitening, found none")
            return
        check_unit_rows(self.cohort, "the cohort")
        if not 1 <= self.k <= len(self.cohort):
            raise InvalidEmbeddings(f"expected 1 <= k <= {len(self.cohort)} cohort rows, found k = {self.k}")
        if not 0 < self.weight <= 1 or not (self.ignore_above is None or -1 < self.ignore_above <= 1):
            raise InvalidEmbeddings(
                f"expected a weight in (0, 1] and ignore_above in (-1, 1], found {self.weight} and {self.ignore_above}"
            )
        if self.whitening is not None and self.whitening.projection.shape[1] != self.cohort.shape[1]:
            raise InvalidEmbeddings(
                f"expected a cohort of {self.whitening.projection.shape[1]} columns, as the whitening makes them, "
                f"found {self.cohort.shape[1]}"
            )

    @property
    def kind(self) -> str:
        """`cosine`, `cohort` or `whitened cohort`; `catalogue ` before it if the score uses the labels of items."""
        base = "cosine" if self.cohort is None else "cohort" if self.whitening is None else "whitened cohort"
        return base if self.classes is None else f"catalogue {base}"

    @property
    def digest(self) -> ScoreDigest:
        """The name of this score, equal for equal content."""
        return ScoreDigest(digest_json(self._description()))

    def dimension(self, d: int) -> int:
        """Return the number of columns of the score vectors for embeddings of `d` columns."""
        if not self._has_columns:
            return d
        return 2 + (d if self.whitening is None else self.whitening.projection.shape[1])

    def density(self, embeddings: Vectors) -> Vectors:
        """Return r(x) of each row: [n] float32 in [-1, 1]; zeros for the cosine. `embeddings`: [n, d], unit rows."""
        return self._rows_and_densities(embeddings)[1]

    def query_vectors(self, embeddings: Vectors) -> Vectors:
        """Return the left factors of the score: [n, dimension(d)] float32."""
        return self.query_vectors_and_densities(embeddings)[0]

    def gallery(self, embeddings: Vectors, labels: Sequence[str] = ()) -> GalleryVectors:
        """Return the items of a gallery as the score compares them.

        embeddings: [n, d] float32, unit rows; labels: the class of each, "" for none, used by a catalogue score only.
        An item without a label, or alone in its class, is compared as without the labels. Raises InvalidInput if a
        catalogue score gets no labels, or not one for each item.
        """
        if self.classes is None:
            rows, densities = self._rows_and_densities(embeddings)
            nothing = np.zeros(len(rows), dtype=np.float32)
            return GalleryVectors(self._gallery_factor(rows, densities, nothing), densities, nothing, nothing > 0)
        if len(labels) != len(embeddings) or not any(labels):
            raise InvalidInput(
                f"a {self.kind} score takes the label of each item: expected {len(embeddings)} labels, found "
                f"{sum(map(bool, labels))}; give the items labels, or use a score without them"
            )
        rows = self.rows(embeddings)
        names, codes = class_codes(labels)
        classes = _classes(names, codes, rows)
        pulled = pull_items(self.classes, rows, codes, density=self.row_densities, weight=self.weight)
        vectors = self._gallery_factor(pulled.rows, pulled.densities, pulled.offsets)
        return GalleryVectors(vectors, pulled.densities, pulled.offsets, pulled.far, classes)

    def gallery_vectors(self, embeddings: Vectors) -> Vectors:
        """Return the right factors of a score without labels: [n, dimension(d)] float32."""
        return self.gallery(embeddings).vectors

    def vectors(self, embeddings: Vectors) -> tuple[Vectors, Vectors]:
        """Return both factors of a score without labels; for the cosine both are the embeddings themselves."""
        if self.classes is not None:
            raise InvalidInput(f"a {self.kind} score compares queries with a labelled gallery, not one set with itself")
        rows, densities = self._rows_and_densities(embeddings)
        return self._query_factor(rows, densities), self._gallery_factor(rows, densities, np.zeros_like(densities))

    def query_vectors_and_densities(self, embeddings: Vectors) -> tuple[Vectors, Vectors]:
        """Return `query_vectors` and `density` of the rows, whitened and compared with the cohort only once."""
        rows, densities = self._rows_and_densities(embeddings)
        return self._query_factor(rows, densities), densities

    def similarities(self, ranks: Vectors, query_density: float, gallery_densities: Vectors) -> Vectors:
        """Return the cosines of one query with items, after the whitening and the pull if there are any: [n] float32.

        ranks: [n] float32, scores with the offsets of the items added.
        """
        return np.asarray(ranks + self.weight * (query_density + gallery_densities), dtype=np.float32)

    def files(self) -> dict[str, bytes]:
        """Return the files of the artefact by name."""
        files = {SCORE: json_bytes(self._description())}
        if self.cohort is not None:
            files[COHORT] = _npy(self.cohort)
        if self.whitening is not None:
            files[CENTRE], files[PROJECTION] = _npy(self.whitening.centre), _npy(self.whitening.projection)
        return files

    def rows(self, embeddings: Vectors) -> Vectors:
        """Return embeddings [n, d] after the whitening if there is one: [n, D] float32, unit rows."""
        return embeddings if self.whitening is None else self.whitening.apply(embeddings)

    def _rows_and_densities(self, embeddings: Vectors) -> tuple[Vectors, Vectors]:
        """Return the rows [n, D] after the whitening, and their densities [n]."""
        rows = self.rows(embeddings)
        return rows, self.row_densities(rows)

    def row_densities(self, rows: Vectors) -> Vectors:
        """Return the densities [n] of rows [n, D] after the whitening."""
        densities = np.zeros(len(rows), dtype=np.float32)
        if self.cohort is not None:
            for start in range(0, len(rows), _TILE):
                similarities = rows[start : start + _TILE] @ self.cohort.T
                densities[start : start + _TILE] = _mean_of_largest(similarities, self.k, self.ignore_above)
        return densities

    @property
    def _has_columns(self) -> bool:
        """True if the vectors have the two columns, which the indexes know: also for an offset over the cosine."""
        return self.cohort is not None or (self.classes is not None and self.classes.has_offsets)

    def _query_factor(self, rows: Vectors, densities: Vectors) -> Vectors:
        if not self._has_columns:
            return rows
        column = np.float32(-self.weight) * densities[:, None]
        return np.hstack([rows, column, np.ones_like(column)])

    def _gallery_factor(self, rows: Vectors, densities: Vectors, offsets: Vectors) -> Vectors:
        if not self._has_columns:
            return rows
        column = (np.float32(-self.weight) * densities - offsets)[:, None]
        return np.hstack([rows, np.ones_like(column), column])

    def _description(self) -> dict[str, object]:
        description: dict[str, object] = {
            "format": _FORMAT,
            "kind": self.kind,
            "k": self.k,
            "cohort": None if self.cohort is None else digest_array(self.cohort),
        }
        if (self.weight, self.ignore_above, self.whitening, self.classes) == (_WEIGHT, None, None, None):
            return description
        whitening = self.whitening and {
            "centre": digest_array(self.whitening.centre),
            "projection": digest_array(self.whitening.projection),
        }
        extension = {"weight": float(self.weight), "ignore_above": self.ignore_above, "whitening": whitening}
        extended = description | {"format": _FORMAT_EXTENDED} | extension
        if self.classes is None:
            return extended
        classes = _with_floats(asdict(self.classes))
        if not self.classes.lone_offset:
            del classes["lone_offset"]
        return extended | {"format": _FORMAT_CLASSES, "classes": classes}


def cohort_score(
    embeddings: NDArray[np.float32],
    *,
    k: int,
    weight: float = _WEIGHT,
    ignore_above: float | None = None,
    whitening: Whitening | None = None,
) -> Score:
    """Return the cohort score of embeddings [m, d] float32, unit rows, not whitened. Raises InvalidEmbeddings."""
    check_unit_rows(embeddings, "the cohort")
    cohort = embeddings if whitening is None else whitening.apply(embeddings)
    return Score(cohort=cohort, k=k, weight=weight, ignore_above=ignore_above, whitening=whitening)


def open_score(directory: Path, digest: ScoreDigest) -> Score:
    """Open the score in `directory`. Raises CorruptArtifact if its content does not have this digest."""
    where = f"score {directory}"
    try:
        document = read_object((directory / SCORE).read_bytes(), where)
        description = parse(_ScoreDocument, document, where)
        if (found := digest_json(document)) != digest:
            raise CorruptArtifact(f"{where}: expected digest {digest}, its content has {found}")
        score = _score_of(directory, description)
    except (OSError, ValueError, EOFError, MemoryError, LookupError, InvalidEmbeddings) as error:
        raise CorruptArtifact(f"{where}: cannot be read: {error}") from error
    if score.digest != digest:
        raise CorruptArtifact(f"{where}: expected digest {digest}, its content has {score.digest}")
    return score


@dataclass(frozen=True, slots=True, kw_only=True)
class _WhiteningDocument:
    centre: str
    projection: str


@dataclass(frozen=True, slots=True, kw_only=True)
class _ScoreDocument:
    """The schema of score.json; those of format 1 lack the last four fields, those of format 2 the last."""

    format: int
    kind: str
    k: int
    cohort: str | None
    weight: float = _WEIGHT
    ignore_above: float | None = None
    whitening: _WhiteningDocument | None = None
    classes: ClassTerms | None = None


def _score_of(directory: Path, description: _ScoreDocument) -> Score:
    """Return the score that a description and the arrays beside it make."""
    if description.cohort is None:
        return Score(classes=description.classes)
    names = description.whitening
    whitening = None
    if names is not None:
        centre = _array(directory / CENTRE, names.centre)
        whitening = Whitening(centre, _array(directory / PROJECTION, names.projection))
    return Score(
        cohort=_array(directory / COHORT, description.cohort),
        k=description.k,
        weight=description.weight,
        ignore_above=description.ignore_above,
        whitening=whitening,
        classes=description.classes,
    )


def _classes(names: tuple[str, ...], codes: NDArray[np.int64], rows: Vectors) -> GalleryClasses:
    """Return the classes of rows [n, D]; codes: [n], the class of each row, -1 for none."""
    from scipy.sparse import csr_array  # slow to import, and only a reindex needs it

    own = np.flatnonzero(codes >= 0)
    sizes = np.bincount(codes[own], minlength=len(names))
    members = csr_array((np.ones(len(own), np.float32), (codes[own], own)), shape=(len(names), len(rows)))
    means = np.asarray(members @ rows, dtype=np.float32)
    means /= sizes[:, None]
    return GalleryClasses(names, sizes, means)


def _with_floats(value: Any) -> Any:
    """Return plain values with every number as it is when it is read back: 1 and 1.0 have different digests."""
    if isinstance(value, dict):
        return {name: _with_floats(inner) for name, inner in value.items()}
    if isinstance(value, tuple):
        return [_with_floats(inner) for inner in value]
    return value if value is None else float(value)


def _mean_of_largest(similarities: NDArray[np.float32], k: int, ignore_above: float | None) -> NDArray[np.float32]:
    """Return the mean of the k largest values of each row below ignore_above; overwrites what it ignores."""
    cut = similarities.shape[1] - k
    if ignore_above is None:
        return np.asarray(np.partition(similarities, cut, axis=1)[:, cut:].mean(axis=1))
    similarities[similarities >= ignore_above] = -np.inf
    largest = np.partition(similarities, cut, axis=1)[:, cut:]
    counted = np.isfinite(largest)
    n_counted = counted.sum(axis=1)
    sums = np.where(counted, largest, 0).sum(axis=1)
    return np.where(n_counted > 0, sums / np.maximum(n_counted, 1), ignore_above).astype(np.float32)


def _array(path: Path, digest: str) -> NDArray[np.float32]:
    """Return the array in a file. Raises CorruptArtifact if it has another digest."""
    array: NDArray[np.float32] = np.load(path, allow_pickle=False)
    if (found := digest_array(array)) != digest:
        raise CorruptArtifact(f"{path}: expected digest {digest}, found {found}")
    return array


def _npy(array: NDArray[np.float32]) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()
