"""Report error rates at one threshold for every class and for every declared group of images.

Intervals are over the draw of classes and images, not of pairs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from retrieval.consistency.arguments import checked
from retrieval.consistency.intervals import Interval
from retrieval.consistency.pairs.vectors import LabelledVectors, check_one_population
from retrieval.consistency.subgroups.clustered import RateEstimates
from retrieval.consistency.subgroups.counts import GroupCounts, check_threshold
from retrieval.consistency.subgroups.estimates import FrrPairs, class_estimates, false_accept_rates, false_reject_rates

MIN_CLASSES = 10  # with fewer, the variance over classes is itself uncertain by half


@dataclass(frozen=True, slots=True)
class GroupRates:
    """False accept and false reject rate of one group (in biometrics FMR and FNMR).

    The intervals are about other classes and images of the same population, and allow for pairs that share images.
    """

    name: str
    n_images: int
    positives: int  # pairs
    negatives: int
    far: float | None  # None without such pairs
    frr: float | None
    far_interval: Interval
    frr_interval: Interval
    small: bool  # too few images or classes to be ranked
    n_classes: int = 1  # with an image in the group


@checked
def class_rates(
    vectors: LabelledVectors, threshold: float, *, confidence: float = 0.95, small_below: int = 5
) -> list[GroupRates]:
    """Return the rates of every class, sorted by name; negatives of a class have exactly one end in it.

    Intervals are about more images of the same class (and, for FAR, other classes to meet). The variance of FAR is the
    sum of those over own images and over other classes, that of FRR the dyadic one over images.

    Raises:
        InvalidInput: threshold is not finite, confidence outside (0, 1), two sets of images or excluded pairs.

    Source: Cameron, Gelbach, Miller, "Robust inference with multiway clustering", Journal of Business & Economic
    Statistics 29 (2011), without the part that both ways share, so that the variance is never too small.
    """
    check_threshold(threshold)
    check_one_population(vectors)
    far, frr = class_estimates(vectors, threshold)
    n = vectors.n_images
    return _rate_table(vectors.classes, (n, np.ones_like(n)), far, frr, n < small_below, confidence)


def rates_of_groups(
    counts: GroupCounts, *, small_below: int, confidence: float, frr_pairs: FrrPairs
) -> list[GroupRates]:
    """Return the rates of the counted groups, sorted by name; a class may span groups.

    A pair counts for a group if both its ends are in it: an impostor is most dangerous inside a group. frr_pairs =
    "touching" counts pairs of one class for the group of either end, for groups that contain one image of each class.
    """
    n_images = counts.n_images.sum(axis=0)
    n_classes = np.count_nonzero(counts.n_images, axis=0)
    far, frr = false_accept_rates(counts, counts.within)[0], false_reject_rates(counts, frr_pairs)[0]
    small = (n_images < small_below) | (n_classes < MIN_CLASSES)
    return _rate_table(counts.groups, (n_images, n_classes), far, frr, small, confidence)


def _rate_table(
    names: Sequence[str],
    sizes: tuple[NDArray[np.int64], NDArray[np.int64]],
    far: RateEstimates,
    frr: RateEstimates,
    small: NDArray[np.bool_],
    confidence: float,
) -> list[GroupRates]:
    """Return one row for each name; sizes: images and classes of each."""
    far_intervals, frr_intervals = far.intervals(confidence), frr.intervals(confidence)
    return [
        GroupRates(
            name=name,
            n_images=int(sizes[0][row]),
            positives=int(frr.pairs[row]),
            negatives=int(far.pairs[row]),
            far=float(far.rates[row]) if far.pairs[row] else None,
            frr=float(frr.rates[row]) if frr.pairs[row] else None,
            far_interval=far_intervals[row],
            frr_interval=frr_intervals[row],
            small=bool(small[row]),
            n_classes=int(sizes[1][row]),
        )
        for row, name in enumerate(names)
    ]
