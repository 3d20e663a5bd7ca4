"""Error rates at one threshold: of every class, and of every declared group of images.

Intervals are over the draw of classes and images, not of pairs. Whether a difference between groups is acceptable is
decided by the reader of these numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from retrieval.consistency.intervals import Interval
from retrieval.consistency.pairs.pairs import Vectors, labelled_vectors
from retrieval.consistency.subgroups.class_estimates import class_estimates
from retrieval.consistency.subgroups.clustered import RateEstimates
from retrieval.consistency.subgroups.counts import GroupCounts, count_groups
from retrieval.consistency.subgroups.estimates import FrrPairs, false_accept_rates, false_reject_rates
from retrieval.errors import InvalidEmbeddings, InvalidInput

MIN_CLASSES = 10  # with fewer, the variance over classes is itself unknown by half


@dataclass(frozen=True, slots=True)
class GroupRates:
    """False accept and false reject rate of one group, which are FMR and FNMR in biometrics.

    positives, negatives: pairs; far, frr: None without such pairs; the intervals are about other classes and images
    drawn as these were, and wide enough although pairs share them; n_classes: classes with an image in the group;
    small: too few images or classes to rank it.
    """

    name: str
    n_images: int
    positives: int
    negatives: int
    far: float | None
    frr: float | None
    far_interval: Interval
    frr_interval: Interval
    small: bool
    n_classes: int = 1

    def __str__(self) -> str:
        far = "none" if self.far is None else f"{self.far:.3g} ({self.far_interval})"
        frr = "none" if self.frr is None else f"{self.frr:.3g} ({self.frr_interval})"
        return f"{self.name}: FAR {far}, FRR {frr}, {self.n_images} images{', small' if self.small else ''}"


def class_rates(
    query_vectors: Vectors,
    labels: Sequence[str],
    threshold: float,
    *,
    gallery_vectors: Vectors | None = None,
    confidence: float = 0.95,
    small_below: int = 5,
    tile: int = 1024,
) -> list[GroupRates]:
    """Return the rates of every class, sorted by name; negatives of a class have exactly one end in it.

    Intervals are about more images of the same class (and, for FAR, other classes to meet). The variance of FAR is the
    sum of those over own images and over other classes, that of FRR the dyadic one over images.

    Raises:
        InvalidInput: threshold is not finite, or confidence outside (0, 1).
        InvalidEmbeddings, NotEnoughEvidence: see `labelled_vectors`.

    Source: Cameron, Gelbach, Miller, "Robust inference with multiway clustering", Journal of Business & Economic
    Statistics 29 (2011), without the part that both ways share, so that the variance is never too small.
    """
    check_threshold(threshold)
    vectors = labelled_vectors(query_vectors, labels, gallery_vectors)
    far, frr = class_estimates(vectors, threshold, tile=tile)
    n_images = vectors.n_images
    return rate_table(
        vectors.classes, n_images, np.ones_like(n_images), far, frr, n_images < small_below, confidence=confidence
    )


def group_rates(
    query_vectors: Vectors,
    labels: Sequence[str],
    groups: Sequence[str],
    threshold: float,
    *,
    gallery_vectors: Vectors | None = None,
    confidence: float = 0.95,
    small_below: int = 20,
    frr_pairs: FrrPairs = "within",
    tile: int = 1024,
) -> list[GroupRates]:
    """Return the rates of every group, sorted by name; groups: n strings, one per image, classes may span groups.

    A pair counts for a group when both its ends are in it: an impostor is most dangerous inside a group. frr_pairs =
    "touching" counts pairs of one class for the group of either end, for groups that hold one image of each class.
    small: fewer images than small_below, or than 10 classes.

    Raises:
        InvalidInput: threshold is not finite, or confidence outside (0, 1).
        InvalidEmbeddings: groups of another length; see also `labelled_vectors`.
        NotEnoughEvidence: fewer than two classes in all.

    >>> rows = np.array([[1, 0], [0.8, 0.6], [0, 1], [0.6, 0.8]], dtype=np.float32)
    >>> for rates in group_rates(rows, ["a", "a", "b", "b"], ["day", "night", "day", "day"], 0.7):
    ...     print(rates.name, rates.positives, rates.negatives, rates.far, rates.frr)
    day 1 2 0.0 0.0
    night 0 0 None None
    """
    counts = counted_groups(query_vectors, labels, groups, threshold, gallery_vectors, tile)
    return rates_of_groups(counts, small_below=small_below, confidence=confidence, frr_pairs=frr_pairs)


def counted_groups(
    query_vectors: Vectors,
    labels: Sequence[str],
    groups: Sequence[str],
    threshold: float,
    gallery_vectors: Vectors | None,
    tile: int,
) -> GroupCounts:
    """Check what `group_rates` takes, and count."""
    check_threshold(threshold)
    if len(groups) != len(labels):
        raise InvalidEmbeddings(f"expected one group per label, found {len(groups)} groups for {len(labels)} labels")
    vectors = labelled_vectors(query_vectors, labels, gallery_vectors)
    return count_groups(vectors, np.array(groups, dtype=object)[vectors.order], threshold, tile=tile)


def rates_of_groups(
    counts: GroupCounts, *, small_below: int, confidence: float, frr_pairs: FrrPairs
) -> list[GroupRates]:
    """Return the rates of the counted groups, as `group_rates`."""
    n_images = counts.n_images.sum(axis=0)
    n_classes = np.count_nonzero(counts.n_images, axis=0)
    return rate_table(
        counts.groups,
        n_images,
        n_classes,
        false_accept_rates(counts, counts.within)[0],
        false_reject_rates(counts, frr_pairs)[0],
        (n_images < small_below) | (n_classes < MIN_CLASSES),
        confidence=confidence,
    )


def rate_table(
    names: Sequence[str],
    n_images: NDArray[np.int64],
    n_classes: NDArray[np.int64],
    far: RateEstimates,
    frr: RateEstimates,
    small: NDArray[np.bool_],
    *,
    confidence: float,
) -> list[GroupRates]:
    """Return one row for each name, from arrays in their order."""
    far_intervals, frr_intervals = far.intervals(confidence), frr.intervals(confidence)
    return [
        GroupRates(
            name=name,
            n_images=int(n_images[row]),
            positives=int(frr.pairs[row]),
            negatives=int(far.pairs[row]),
            far=float(far.rates[row]) if far.pairs[row] else None,
            frr=float(frr.rates[row]) if frr.pairs[row] else None,
            far_interval=far_intervals[row],
            frr_interval=frr_intervals[row],
            small=bool(small[row]),
            n_classes=int(n_classes[row]),
        )
        for row, name in enumerate(names)
    ]


def check_threshold(threshold: float) -> None:
    """Raise InvalidInput where the threshold is not finite."""
    if not np.isfinite(threshold):
        raise InvalidInput(f"threshold must be finite, found {threshold}")
