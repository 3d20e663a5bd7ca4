"""What a threshold does to classes that it was not fixed on, from one set of labelled classes.

Decides how classes are split, again and again, into those that fix the threshold and those that are measured. What a
threshold fixed on all of them promises for new ones is said, with intervals, in `thresholds` and `certificate`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from retrieval.consistency.curves.curves import count_accepted
from retrieval.consistency.pairs.pairs import LabelledVectors, Vectors, labelled_vectors
from retrieval.consistency.pairs.selection import select_thresholds
from retrieval.errors import InvalidInput, NotEnoughEvidence

Rates = NDArray[np.float64]

MIN_FALSE_ACCEPTS = 10  # as for a threshold chosen on all classes


@dataclass(frozen=True, slots=True, eq=False)
class CrossFittedRates:
    """Rates at thresholds fixed on other classes.

    thresholds: [2 s] float64, of the halves, a split's two side by side; fars: [2 s] float64, the pooled FAR of each in
    the half that it was not fixed on; classes: T sorted names; class_tars, class_fars: [T] float64, means over the
    splits, NaN for the TAR of a class with one image; tar, far: of all pairs measured, splits together.
    """

    thresholds: Rates
    fars: Rates
    classes: tuple[str, ...]
    class_tars: Rates
    class_fars: Rates
    tar: float
    far: float

    @property
    def worst_tar(self) -> float:
        """Mean TAR of the tenth of the classes with the lowest, of those with a positive pair; one class at least."""
        ordered = np.sort(self.class_tars[~np.isnan(self.class_tars)])
        return float(ordered[: _tenth(len(ordered))].mean())

    @property
    def worst_far(self) -> float:
        """Mean FAR of the tenth of the classes with the highest; one class at least."""
        ordered = np.sort(self.class_fars)
        return float(ordered[-_tenth(len(ordered)) :].mean())


def cross_fitted_rates(
    query_vectors: Vectors,
    labels: Sequence[str],
    *,
    gallery_vectors: Vectors | None = None,
    target_far: float,
    n_splits: int = 5,
    rng: np.random.Generator,
    tile: int = 1024,
) -> CrossFittedRates:
    """Return the rates of classes at the lowest threshold whose pooled FAR on other classes is at most the target.

    Classes are split at random into two halves, n_splits times; the threshold of either is applied to the other, whose
    pairs among themselves are counted: nothing that is measured took part in fixing. A class is measured once in each
    split, on its pairs with half of the others. The rates of single classes are noisy, so that the worst of them look
    worse than they are; two models on the same images can be compared by them all the same.

    Cost: n_splits times two products of n^2 / 8.

    Raises:
        NotEnoughEvidence: a half with fewer than 10 false accepts expected at the target, or without a positive pair.
        InvalidInput: target_far outside (0, 1), or n_splits below 1.
        InvalidEmbeddings: see `labelled_vectors`.
    """
    if not 0 < target_far < 1 or n_splits < 1:
        raise InvalidInput(f"expected target_far in (0, 1) and n_splits of at least 1, found {target_far}, {n_splits}")
    vectors = labelled_vectors(query_vectors, labels, gallery_vectors)
    thresholds, fars = [], []
    # Accepted and all, positives and negatives of each class.
    counts = np.zeros((4, len(vectors.classes)), dtype=np.int64)
    for _ in range(n_splits):
        halves = split_classes(vectors, rng)
        for fixing, measured in (halves, halves[::-1]):
            threshold = threshold_of_half(fixing, target_far, tile=tile)
            found = count_accepted(measured, np.array([threshold]), tile=tile)
            if found.positives.sum() == 0:
                raise NotEnoughEvidence("half of the classes hold no class with two images; add images per class")
            counts[0] += found.positives_accepted[:, 0]
            counts[1] += found.positives
            counts[2] += found.negatives_accepted[:, 0]
            counts[3] += found.negatives
            thresholds.append(threshold)
            fars.append(float(found.pooled_far[0]))
    true_accepts, positives, false_accepts, negatives = counts.astype(np.float64)
    return CrossFittedRates(
        thresholds=np.array(thresholds),
        fars=np.array(fars),
        classes=vectors.classes,
        class_tars=np.divide(true_accepts, positives, out=np.full(len(positives), np.nan), where=positives > 0),
        class_fars=false_accepts / np.maximum(negatives, 1),
        tar=float(true_accepts.sum() / positives.sum()),
        far=float(false_accepts.sum() / negatives.sum()),
    )


def split_classes(vectors: LabelledVectors, rng: np.random.Generator) -> tuple[LabelledVectors, LabelledVectors]:
    """Return the images of a random half of the classes, and those of the others; all class names are kept."""
    in_first = np.zeros(len(vectors.classes), dtype=np.bool_)
    in_first[rng.permutation(len(vectors.classes))[: len(vectors.classes) // 2]] = True
    chosen = in_first[vectors.codes]
    return vectors.subset(np.flatnonzero(chosen)), vectors.subset(np.flatnonzero(~chosen))


def threshold_of_half(half: LabelledVectors, target_far: float, *, tile: int) -> float:
    """Return the lowest threshold whose pooled FAR is at most the target. Raises NotEnoughEvidence, as above."""
    expected = target_far * half.n_negatives
    if expected < MIN_FALSE_ACCEPTS:
        raise NotEnoughEvidence(
            f"a threshold for FAR {target_far:g} from half of the classes needs {MIN_FALSE_ACCEPTS} false accepts "
            f"there, {half.n_negatives} negative pairs give {expected:.3g}; add classes or raise the target"
        )
    (threshold,) = select_thresholds(half, np.array([target_far]), tile=tile)
    return float(threshold)


def _tenth(n: int) -> int:
    return max(1, round(n / 10))
