"""How well each class is set apart from the others, with an interval over the draw of its images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from retrieval.consistency.intervals import Interval, student_quantile
from retrieval.consistency.pairs.pairs import LabelledVectors, Vectors, labelled_vectors
from retrieval.consistency.separation.moments import class_moments, d_prime, image_moments
from retrieval.consistency.separation.separation import area_under_curve, class_histograms, score_range
from retrieval.errors import InvalidInput

_AUC_BINS = 512


@dataclass(frozen=True, slots=True)
class ClassSeparation:
    """How one class is set apart.

    Pairs within have both ends in it, pairs between exactly one. d_prime, auc, mean_within: None for a class of one
    image; d_prime is None too where no score spreads. d_prime_interval: None below three images. With few images the
    spread within is understated and d_prime too large: compare classes of like size.
    """

    name: str
    n_images: int
    mean_within: float | None
    mean_between: float
    d_prime: float | None
    d_prime_interval: Interval | None
    auc: float | None

    def __str__(self) -> str:
        if self.d_prime is None:
            return f"{self.name}: no d' from {self.n_images} images"
        around = f" ({self.d_prime_interval})" if self.d_prime_interval else ""
        return f"{self.name}: d' {self.d_prime:.3g}{around}, AUC {self.auc:.4g}, {self.n_images} images"


def class_separation(
    query_vectors: Vectors,
    labels: Sequence[str],
    *,
    gallery_vectors: Vectors | None = None,
    confidence: float = 0.95,
    tile: int = 1024,
) -> list[ClassSeparation]:
    """Return the separation of every class, sorted by name.

    d' intervals: Student's, with the jackknife over the images of the class, all others held fixed. AUC is counted on
    512 bins, pairs in one bin as ties. Cost: three passes over the pairs; memory: 1,024 counts a class.

    Raises:
        InvalidInput: confidence not strictly between 0 and 1.
        InvalidEmbeddings, NotEnoughEvidence: see `labelled_vectors`.

    >>> rows = np.array([[1, 0], [0.8, 0.6], [0, 1]], dtype=np.float32)
    >>> print(*class_separation(rows, ["a", "a", "b"]), sep="; ")  # within 0.8; between 0, 0.6: (0.8 - 0.3) / 0.2121
    a: d' 2.36, AUC 1, 2 images; b: no d' from 1 images
    """
    check_confidence(confidence)
    vectors = labelled_vectors(query_vectors, labels, gallery_vectors)
    measured = measure_classes(vectors, tile=tile)
    low, high = score_range(vectors, tile=tile)
    counts, _ = class_histograms(vectors, low, high, n_bins=_AUC_BINS, tile=tile)
    return [
        ClassSeparation(
            name=name,
            n_images=int(measured.n_images[row]),
            mean_within=float(measured.means[row, 0]) if measured.n_images[row] > 1 else None,
            mean_between=float(measured.means[row, 1]),
            d_prime=float(measured.d_prime[row]) if measured.usable[row] else None,
            d_prime_interval=image_interval(
                measured.d_prime[row], measured.error[row], measured.n_images[row], confidence
            )
            if measured.usable[row]
            else None,
            auc=float(area_under_curve(counts[row])) if measured.n_images[row] > 1 else None,
        )
        for row, name in enumerate(vectors.classes)
    ]


@dataclass(frozen=True, slots=True, eq=False)
class MeasuredClasses:
    """What is known of every class.

    n_images, d_prime, error (the jackknife's, infinite below three images), usable (has a finite d'): [T]; means:
    [T, 2], within and between; without: [n], d' of the class of each image without that image.
    """

    n_images: NDArray[np.int64]
    means: NDArray[np.float64]
    d_prime: NDArray[np.float64]
    error: NDArray[np.float64]
    without: NDArray[np.float64]
    usable: NDArray[np.bool_]


def measure_classes(vectors: LabelledVectors, *, tile: int) -> MeasuredClasses:
    """Return d' of every class with its jackknife over images, in one pass over the pairs."""
    moments = image_moments(vectors, tile=tile)
    of_classes = class_moments(moments, vectors.codes, len(vectors.classes))
    n_images = vectors.n_images
    counts = np.maximum(of_classes[..., 0], 1)
    several = n_images > 1
    values = np.full(len(n_images), np.inf)
    values[several] = d_prime(of_classes[several])
    without = np.full(len(moments), np.inf)
    enough = n_images[vectors.codes] > 2
    without[enough] = d_prime((of_classes[vectors.codes] - moments)[enough])
    error = jackknife_errors(without, vectors.codes, n_images)
    return MeasuredClasses(n_images, of_classes[..., 1] / counts, values, error, without, several & np.isfinite(values))


def jackknife_errors(
    without: NDArray[np.float64], codes: NDArray[np.int64], n_images: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Return the jackknife's standard error of each class: [T], infinite where a value without an image is."""
    finite = np.isfinite(without)
    known = np.bincount(codes, weights=finite, minlength=len(n_images)) == n_images
    kept = np.where(finite, without, 0)
    means = np.bincount(codes, weights=kept, minlength=len(n_images)) / n_images
    squares = np.bincount(codes, weights=np.square(kept - means[codes]), minlength=len(n_images))
    return np.where(known, np.sqrt((n_images - 1) / n_images * squares), np.inf)


def image_interval(value: float, error: float, n_images: int, confidence: float) -> Interval | None:
    """Return Student's interval of a figure of one class; None where its error is not known."""
    if not np.isfinite(error):
        return None
    half_width = student_quantile(n_images, confidence) * float(error)
    return Interval(float(value) - half_width, float(value) + half_width)


def check_confidence(value: float) -> None:
    """Raise InvalidInput where a probability does not lie strictly between 0 and 1."""
    if not 0 < value < 1:
        raise InvalidInput(f"confidence and false discovery rate must lie strictly between 0 and 1, found {value}")
