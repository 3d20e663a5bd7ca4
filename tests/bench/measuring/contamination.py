"""How far a threshold moves when part of the data it is calibrated on is bad, and what it then does on clean data.

Four ways in which labelled images go bad, each a function of a share and random numbers; the curve over the share. How
bad the data at hand are is not estimated here: `mislabelled.py` names suspects.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from retrieval.consistency import LabelledVectors, label_margins, labelled, operating_curves, thresholds_at_far
from retrieval.errors import InvalidEmbeddings, InvalidInput, NotEnoughEvidence

Vectors = NDArray[np.float32]
KINDS = ("random_labels", "confusable_labels", "outliers", "double_filing")


@dataclass(frozen=True, slots=True, eq=False)
class LabelledData:
    """Vectors of labelled images, good or bad: query, gallery: [n, D] float32, equal for cosine; labels: n strings."""

    query: Vectors
    gallery: Vectors
    labels: tuple[str, ...]

    @property
    def vectors(self) -> LabelledVectors:
        """The same, checked and sorted."""
        return labelled(self.query, self.labels, gallery=self.gallery)


@dataclass(frozen=True, slots=True)
class ContaminationPoint:
    """Thresholds calibrated with one share of bad data, and their rates on clean data: one value a repetition each."""

    share: float
    thresholds: tuple[float, ...]
    fars: tuple[float, ...]
    tars: tuple[float, ...]

    def __str__(self) -> str:
        def span(values: tuple[float, ...]) -> str:
            return f"{np.median(values):.4g} ({min(values):.4g} to {max(values):.4g})"

        return (
            f"{100 * self.share:g} % bad: threshold {span(self.thresholds)}, on clean data FAR {span(self.fars)}, "
            f"TAR {span(self.tars)}"
        )


@dataclass(frozen=True, slots=True)
class ContaminationCurve:
    """The threshold against the share of bad data of one kind.

    threshold, far, tar: calibrated on the data as given, rates on the clean data. Printed: median, lowest and highest
    over the repetitions.
    """

    kind: str
    target_far: float
    threshold: float
    far: float
    tar: float
    points: tuple[ContaminationPoint, ...]

    def __str__(self) -> str:
        head = (
            f"{self.kind}, target FAR {self.target_far:g}: threshold {self.threshold:.4g} without, FAR {self.far:.4g}, "
            f"TAR {self.tar:.4g}"
        )
        return "\n  ".join([head, *map(str, self.points)])


def contaminate(
    data: LabelledData,
    kind: str,
    share: float,
    *,
    rng: np.random.Generator,
    outliers: tuple[Vectors, Vectors] | None = None,
) -> LabelledData:
    """Return the data with a share of the images gone bad.

    kind: `random_labels`: the image gets the label of another class, by its number of images; `confusable_labels`: that
    of the class that its nearest image of another class is of; `outliers`: the image is replaced by one that shows
    nothing, its label stays; `double_filing`: a copy is added under another class, so that n grows. share, in [0, 1):
    of the n images given, rounded. outliers: query and gallery vectors to draw replacements from; by default directions
    drawn at random, which is kinder than real pictures of nothing, as those lie close together.

    Raises:
        InvalidInput: an unknown kind, or a share outside [0, 1).
        InvalidEmbeddings: outliers of another dimension, none, or left out where the score is not cosine.
        NotEnoughEvidence: fewer than two classes.
    """
    if kind not in KINDS or not 0 <= share < 1:
        raise InvalidInput(
            f"expected a kind among {', '.join(KINDS)} and a share in [0, 1), found {kind!r} and {share}"
        )
    n = len(data.labels)
    if len(set(data.labels)) < 2:
        raise NotEnoughEvidence(f"a wrong label needs a second class, found {n} images of one or none; add classes")
    rows = rng.choice(n, size=round(share * n), replace=False)
    return _CHANGES[kind](data, rows, rng, outliers)


def threshold_under_contamination(
    calibration: LabelledData,
    kind: str,
    *,
    target_far: float,
    shares: Sequence[float] = (0.01, 0.02, 0.05, 0.1, 0.2),
    n_repeats: int = 5,
    rng: np.random.Generator,
    clean: LabelledData | None = None,
    outliers: tuple[Vectors, Vectors] | None = None,
) -> ContaminationCurve:
    """Return the thresholds that a pooled FAR target leads to when a share of the calibration data is bad.

    clean: what FAR and TAR are measured on, the calibration data as given by default; for what a user would meet, other
    classes. kind, outliers: see `contaminate`. Cost: two passes over the pairs for each share and repetition, and one.

    Raises:
        InvalidInput: no share, no repetition, or as `contaminate`; target_far outside (0, 1).
        NotEnoughEvidence: no pair of one class among the clean data.
        InvalidEmbeddings: as `contaminate`.
    """
    if not shares or n_repeats < 1 or not 0 < target_far < 1:
        raise InvalidInput(
            f"expected shares, n_repeats >= 1 and target_far in (0, 1), found {list(shares)}, {n_repeats}, {target_far}"
        )
    thresholds = [_threshold(calibration, target_far)]
    for share in shares:
        for _ in range(n_repeats):
            bad = contaminate(calibration, kind, share, rng=rng, outliers=outliers)
            thresholds.append(_threshold(bad, target_far))
    fars, tars = _rates(clean or calibration, thresholds)
    points = []
    for place, share in enumerate(shares):
        chosen = slice(1 + place * n_repeats, 1 + (place + 1) * n_repeats)
        points.append(ContaminationPoint(share, tuple(thresholds[chosen]), tuple(fars[chosen]), tuple(tars[chosen])))
    return ContaminationCurve(kind, target_far, thresholds[0], fars[0], tars[0], tuple(points))


def _threshold(data: LabelledData, target_far: float) -> float:
    found = thresholds_at_far(data.vectors, [target_far])
    return float(found[0])


def _rates(data: LabelledData, thresholds: Sequence[float]) -> tuple[list[float], list[float]]:
    """Return pooled FAR and TAR at every threshold, in the order given."""
    ascending, place = np.unique(np.asarray(thresholds), return_inverse=True)
    curves = operating_curves(data.vectors, thresholds=ascending)
    if not curves.with_positives.any():
        raise NotEnoughEvidence("TAR on clean data needs a class of two images there; add images per class")
    return curves.pooled_far[place].tolist(), curves.pooled_tar[place].tolist()


_Rows = NDArray[np.int64]
_Outliers = tuple[Vectors, Vectors] | None


def _random_labels(data: LabelledData, rows: _Rows, rng: np.random.Generator, _: _Outliers) -> LabelledData:
    labels = np.array(data.labels, dtype=object)
    labels[rows] = _labels_of_others(data.labels, rows, rng)
    return LabelledData(data.query, data.gallery, tuple(labels))


def _confusable_labels(data: LabelledData, rows: _Rows, rng: np.random.Generator, _: _Outliers) -> LabelledData:
    margins = label_margins(data.vectors, 0.0)
    labels = np.array(data.labels, dtype=object)
    labels[rows] = np.array(margins.classes, dtype=object)[margins.likely[rows]]
    return LabelledData(data.query, data.gallery, tuple(labels))


def _replaced(data: LabelledData, rows: _Rows, rng: np.random.Generator, outliers: _Outliers) -> LabelledData:
    queries, galleries = outliers if outliers is not None else _directions(data, len(rows), rng)
    if not len(queries) or not queries.shape == galleries.shape or queries.shape[1:] != data.query.shape[1:]:
        raise InvalidEmbeddings(
            f"expected outliers of {data.query.shape[1]} columns, found {queries.shape} and {galleries.shape}"
        )
    drawn = rng.integers(len(queries), size=len(rows))
    query, gallery = data.query.copy(), data.gallery.copy()
    query[rows], gallery[rows] = queries[drawn], galleries[drawn]
    return LabelledData(query, gallery, data.labels)


def _directions(data: LabelledData, n: int, rng: np.random.Generator) -> tuple[Vectors, Vectors]:
    if not np.array_equal(data.query, data.gallery):
        raise InvalidEmbeddings("outliers must be given where the score is not cosine: score vectors of such images")
    drawn = rng.normal(size=(max(n, 1), data.query.shape[1]))
    rows = (drawn / np.linalg.norm(drawn, axis=1, keepdims=True)).astype(np.float32)
    return rows, rows


def _double_filing(data: LabelledData, rows: _Rows, rng: np.random.Generator, _: _Outliers) -> LabelledData:
    added = _labels_of_others(data.labels, rows, rng)
    query, gallery = (np.concatenate([vectors, vectors[rows]]) for vectors in (data.query, data.gallery))
    return LabelledData(query, gallery, (*data.labels, *added))


def _labels_of_others(labels: Sequence[str], rows: _Rows, rng: np.random.Generator) -> list[str]:
    """Return, for each row, the label of an image of another class drawn at random."""
    codes = np.unique(labels, return_inverse=True)[1]
    drawn = rng.integers(len(codes), size=len(rows))
    while (same := codes[drawn] == codes[rows]).any():  # there are two classes at least
        drawn[same] = rng.integers(len(codes), size=int(same.sum()))
    return [labels[row] for row in drawn]


_Change = Callable[[LabelledData, _Rows, np.random.Generator, _Outliers], LabelledData]
_CHANGES: dict[str, _Change] = dict(
    zip(KINDS, (_random_labels, _confusable_labels, _replaced, _double_filing), strict=True)
)
