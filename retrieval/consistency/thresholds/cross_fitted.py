"""Measure a threshold on classes that did not fix it, with one set of labelled classes.

Classes are split repeatedly into those that fix the threshold and those that are measured.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from retrieval.consistency.arguments import checked
from retrieval.consistency.curves import count_accepted
from retrieval.consistency.pairs.selection import thresholds_at_far
from retrieval.consistency.pairs.vectors import LabelledVectors, check_one_set
from retrieval.errors import InvalidInput, NotEnoughEvidence

Rates = NDArray[np.float64]

MIN_FALSE_ACCEPTS = 10  # as for a threshold chosen on all classes


@dataclass(frozen=True, slots=True, eq=False)
class CrossFittedRates:
    """Rates of T classes at thresholds fixed on other classes, in s splits."""

    thresholds: Rates  # [2 s], of the two halves of each split in turn
    fars: Rates  # [2 s], the pooled FAR of each in the other half
    classes: tuple[str, ...]  # sorted names
    class_tars: Rates  # [T], means over the splits; NaN for a class with one image
    class_fars: Rates  # [T]
    tar: float  # of all measured pairs of all splits
    far: float

    @property
    def worst_tar(self) -> float:
        """Mean TAR of the tenth of the classes with the lowest TAR (at least one class)."""
        ordered = np.sort(self.class_tars[~np.isnan(self.class_tars)])
        return float(ordered[: _tenth(len(ordered))].mean())

    @property
    def worst_far(self) -> float:
        """Mean FAR of the tenth of the classes with the highest FAR (at least one class)."""
        ordered = np.sort(self.class_fars)
        return float(ordered[-_tenth(len(ordered)) :].mean())


@checked
def cross_fitted_rates(
    vectors: LabelledVectors, *, target_far: float, n_splits: int = 5, rng: np.random.Generator
) -> CrossFittedRates:
    """Return the rates of classes at the lowest threshold whose pooled FAR on other classes is at most the target.

    Classes, or families if they are named, are split at random into two halves, n_splits times. The threshold of each
    half is applied to the pairs inside the other half, so no measured class took part in fixing it. The rates of single
    classes are noisy: the worst look worse than they are, but two models can be compared on the same images.

    Cost: n_splits times two products of n^2 / 8.

    Raises:
        NotEnoughEvidence: a half with fewer than 10 false accepts expected at the target, or without a positive pair.
        InvalidInput: target_far outside (0, 1), n_splits below 1, or two sets of images.
    """
    if not 0 < target_far < 1 or n_splits < 1:
        raise InvalidInput(f"expected target_far in (0, 1) and n_splits of at least 1, found {target_far}, {n_splits}")
    check_one_set(vectors, all_pairs=True)
    thresholds, fars = [], []
    # By class: accepted positives, positives, accepted negatives, negatives.
    counts = np.zeros((4, len(vectors.classes)), dtype=np.int64)
    for _ in range(n_splits):
        halves = split_classes(vectors, rng)
        for fixing, measured in (halves, halves[::-1]):
            threshold = threshold_of_half(fixing, target_far)
            found = count_accepted(measured, np.array([threshold]))
            if found.positives.sum() == 0:
                raise NotEnoughEvidence("half of the classes hold no class with two images; add images per class")
            accepted = found.positives_accepted[:, 0], found.negatives_accepted[:, 0]
            counts += np.stack([accepted[0], found.positives, accepted[1], found.negatives])
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
    """Split the images into those of a random half of the classes (or families) and the others; all names are kept."""
    units = np.arange(len(vectors.classes)) if vectors.families is None else vectors.families
    n_units = int(units.max()) + 1
    in_first = np.zeros(n_units, dtype=np.bool_)
    in_first[rng.permutation(n_units)[: n_units // 2]] = True
    chosen = in_first[units][vectors.codes]
    return vectors.subset(np.flatnonzero(chosen)), vectors.subset(np.flatnonzero(~chosen))


def threshold_of_half(half: LabelledVectors, target_far: float) -> float:
    """Return the lowest threshold whose pooled FAR is at most the target. Raises NotEnoughEvidence, as above."""
    expected = target_far * half.n_negatives
    if expected < MIN_FALSE_ACCEPTS:
        raise NotEnoughEvidence(
            f"a threshold for FAR {target_far:g} from half of the classes needs {MIN_FALSE_ACCEPTS} false accepts "
            f"there, {half.n_negatives} negative pairs give {expected:.3g}; add classes or raise the target"
        )
    (threshold,) = thresholds_at_far(half, np.array([target_far]))
    return float(threshold)


def _tenth(n: int) -> int:
    return max(1, round(n / 10))
