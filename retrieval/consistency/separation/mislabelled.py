"""Find images that look as if they were filed under the wrong class.

The margin of an image is its similarity to its own class, itself left out, less that to the best other class. An image
is suspect if, at the given threshold, it matches no image of its own class and an image of another class. In rounds an
image is judged as a query, and its similarities are means over the rounds in which it is one.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from retrieval.consistency.arguments import checked
from retrieval.consistency.pairs import tiles
from retrieval.consistency.pairs.products import scores_of
from retrieval.consistency.pairs.vectors import Codes, LabelledVectors, check_one_population, check_positives
from retrieval.consistency.separation.confusion import starts_in
from retrieval.errors import InvalidInput

Reals = NDArray[np.float64]

LINKAGES = ("mean", "nearest")
_MAX_CELLS = 1 << 22  # rows of a tile by all classes


@dataclass(frozen=True, slots=True)
class SuspectLabel:
    """An image that its own class rejects and another accepts."""

    row: int  # of the caller's arrays
    label: str
    likely: str
    own: float  # similarity to its class
    other: float  # similarity to the best other class
    margin: float  # own - other


@dataclass(frozen=True, slots=True, eq=False)
class LabelMargins:
    """How well every image fits its label, in the caller's order."""

    margins: Reals  # [n], own - other
    own: Reals  # [n], similarity to its class
    other: Reals  # [n], similarity to the best other class
    likely: Codes  # [n], index into classes of the best other class
    # [n], false for an image alone in its class, and in rounds for one that is never a query: its own and margin are 0,
    # and what is never a query also has no other and likely: they are 0.
    known: NDArray[np.bool_]
    labels: tuple[str, ...]
    classes: tuple[str, ...]
    threshold: float  # defines suspects

    @property
    def suspects(self) -> tuple[SuspectLabel, ...]:
        """Images that their own class rejects and another accepts, lowest margin first."""
        suspect = self.known & (self.own < self.threshold) & (self.other >= self.threshold)
        rows = np.flatnonzero(suspect)
        ranked = rows[np.argsort(self.margins[rows], kind="stable")]
        return tuple(
            SuspectLabel(
                int(row),
                self.labels[row],
                self.classes[self.likely[row]],
                float(self.own[row]),
                float(self.other[row]),
                float(self.margins[row]),
            )
            for row in ranked
        )


@checked
def label_margins(vectors: LabelledVectors, threshold: float, *, linkage: str = "nearest") -> LabelMargins:
    """Return the margin of every image's label, and the suspects at a threshold.

    linkage: the similarity of an image to a class is its highest (`nearest`, for classes of several looks) or its mean
    (`mean`, as in the silhouette) score with the images of that class. The highest score grows with the number of
    images, so use the mean if the sizes of classes are very different.
    Cost: one [n, n] product, or those of all rounds; memory: a tile and its rows by all classes, fewer rows for many
    classes.

    Raises:
        InvalidInput: threshold not finite, an unknown linkage, two sets of images or excluded pairs.
        NotEnoughEvidence: no class has two images.

    Source: the margin of the given label against the best other one with the image held out is the normalised margin of
    Northcutt, Jiang, Chuang, "Confident learning", JAIR 70 (2021); with means it is the numerator of the silhouette,
    Rousseeuw, Journal of Computational and Applied Mathematics 20 (1987).

    >>> from retrieval.consistency import labelled
    >>> rows = np.array([[1, 0], [0.6, 0.8], [0, 1], [0.28, 0.96]], dtype=np.float32)
    >>> (suspect,) = label_margins(labelled(rows, ["a", "a", "b", "b"]), 0.7).suspects  # 0.6 to a, 0.936 to b
    >>> suspect.row, suspect.label, suspect.likely, round(suspect.margin, 3)
    (1, 'a', 'b', -0.336)
    """
    if not np.isfinite(threshold) or linkage not in LINKAGES:
        raise InvalidInput(
            f"expected a finite threshold and a linkage among {', '.join(LINKAGES)}, found {threshold} and {linkage!r}"
        )
    check_one_population(vectors)
    check_positives(vectors)
    codes = np.zeros(int(vectors.n_images.sum()), dtype=np.int64)
    for rows, of_rows in ((vectors.gallery_order, vectors.gallery_codes), (vectors.order, vectors.codes)):
        codes[rows] = of_rows
    own, other, likely, asked = _similarities(vectors, codes, linkage)
    known = asked & (vectors.n_images[codes] > 1)
    own = np.where(known, own, 0.0)
    return LabelMargins(
        margins=np.where(known, own - other, 0.0),
        own=own,
        other=other,
        likely=likely,
        known=known,
        labels=tuple(vectors.classes[code] for code in codes),
        classes=vectors.classes,
        threshold=threshold,
    )


def _similarities(
    vectors: LabelledVectors, codes: Codes, linkage: str
) -> tuple[Reals, Reals, Codes, NDArray[np.bool_]]:
    """Return of each image its similarity to its class and the best other class, that class, and if it was a query.

    codes: [n], of the images in the caller's order, as everything that is returned.
    """
    n, n_classes = len(codes), len(vectors.classes)
    own, other, likely = np.zeros(n), np.zeros(n), np.zeros(n, dtype=np.int64)
    asked = np.zeros(n, dtype=np.bool_)
    asked[vectors.order] = True
    parts = vectors.rounds or ((slice(0, len(vectors.codes)), slice(0, len(vectors.gallery_codes))),)
    n_rows = max(1, min(tiles.TILE, _MAX_CELLS // n_classes))
    place = np.full(n, -1, dtype=np.int64)
    for start in range(0, n, n_rows):
        chunk = np.arange(start, min(start + n_rows, n))
        to_class, n_times = np.zeros((len(chunk), n_classes)), np.zeros(len(chunk))
        for queries, items in parts:
            place[:] = -1
            place[vectors.order[queries]] = np.arange(queries.start, queries.stop)
            met = np.flatnonzero(place[chunk] >= 0)
            to_class[met] += _to_classes(vectors, place[chunk[met]], items, linkage)
            n_times[met] += 1
        to_class /= np.maximum(n_times, 1)[:, None]
        rows = np.arange(len(chunk))
        own[chunk] = to_class[rows, codes[chunk]]
        to_class[rows[n_times > 0], codes[chunk[n_times > 0]]] = -np.inf
        likely[chunk] = to_class.argmax(axis=1)
        other[chunk] = to_class[rows, likely[chunk]]
    return own, other, likely, asked


def _to_classes(vectors: LabelledVectors, rows: Codes, items: slice, linkage: str) -> Reals:
    """Return the similarity of some queries to every class among the items, themselves left out: [rows, T] float64."""
    function, empty = (np.add, 0.0) if linkage == "mean" else (np.maximum, -np.inf)
    found = np.full((len(rows), len(vectors.classes)), empty)
    query = vectors.query[rows]
    for columns in tiles.slices(items.start, items.stop):
        scores = scores_of(query, vectors.gallery[columns]).astype(np.float64)
        if vectors.one_set:
            itself = np.flatnonzero((rows >= columns.start) & (rows < columns.stop))
            scores[itself, rows[itself] - columns.start] = empty
        starts, classes = starts_in(vectors.gallery_codes[columns])
        found[:, classes] = function(found[:, classes], function.reduceat(scores, starts, axis=1))
    if linkage == "mean":
        n_items = np.tile(vectors.sizes.items, (len(rows), 1))
        if vectors.one_set:
            n_items[np.arange(len(rows)), vectors.codes[rows]] -= 1
        found /= np.maximum(n_items, 1)
    return found
