"""Find images that look as if they were filed under the wrong class.

The margin of an image is its similarity to its own class, itself left out, less that to the best other class. An image
is suspect if, at the given threshold, it matches no image of its own class and an image of another class.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from retrieval.consistency.arguments import checked
from retrieval.consistency.pairs import tiles
from retrieval.consistency.pairs.products import scores_of
from retrieval.consistency.pairs.vectors import Codes, LabelledVectors, check_one_set, check_positives
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
    known: NDArray[np.bool_]  # [n], false for an image alone in its class: its own and margin are 0
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
    Cost: one [n, n] product; memory: a tile and its rows by all classes, fewer rows for many classes.

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
    check_one_set(vectors, all_pairs=True)
    check_positives(vectors)
    own, other, likely = _similarities(vectors, linkage)
    known = vectors.n_images[vectors.codes] > 1
    back = np.argsort(vectors.order)
    own = np.where(known, own, 0.0)
    return LabelMargins(
        margins=np.where(known, own - other, 0.0)[back],
        own=own[back],
        other=other[back],
        likely=likely[back],
        known=known[back],
        labels=tuple(vectors.classes[code] for code in vectors.codes[back]),
        classes=vectors.classes,
        threshold=threshold,
    )


def _similarities(vectors: LabelledVectors, linkage: str) -> tuple[Reals, Reals, Codes]:
    """Return for each image its similarity to its class and to the best other class, and that class: three [n]."""
    n, n_classes = len(vectors.codes), len(vectors.classes)
    own, other, likely = np.zeros(n), np.zeros(n), np.zeros(n, dtype=np.int64)
    n_rows = max(1, min(tiles.TILE, _MAX_CELLS // n_classes))
    for start in range(0, n, n_rows):
        rows = slice(start, min(start + n_rows, n))
        to_class = _to_classes(vectors, rows, linkage)
        places = np.arange(rows.stop - rows.start)
        codes = vectors.codes[rows]
        own[rows] = to_class[places, codes]
        to_class[places, codes] = -np.inf
        likely[rows] = to_class.argmax(axis=1)
        other[rows] = to_class[places, likely[rows]]
    return own, other, likely


def _to_classes(vectors: LabelledVectors, rows: slice, linkage: str) -> Reals:
    """Return the similarity of some images to every class, themselves left out: [rows, T] float64."""
    function, empty = (np.add, 0.0) if linkage == "mean" else (np.maximum, -np.inf)
    found = np.full((rows.stop - rows.start, len(vectors.classes)), empty)
    for columns in tiles.slices(0, len(vectors.codes)):
        scores = scores_of(vectors.query[rows], vectors.gallery[columns]).astype(np.float64)
        itself = np.arange(max(rows.start, columns.start), min(rows.stop, columns.stop))
        scores[itself - rows.start, itself - columns.start] = empty
        starts, classes = starts_in(vectors.codes[columns])
        found[:, classes] = function(found[:, classes], function.reduceat(scores, starts, axis=1))
    if linkage == "mean":
        others = vectors.n_images[None, :] - (vectors.codes[rows][:, None] == np.arange(len(vectors.classes))[None, :])
        found /= np.maximum(others, 1)
    return found
