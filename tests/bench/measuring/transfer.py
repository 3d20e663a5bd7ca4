"""Estimate a threshold for a domain with few labels or none, from its unlabelled pairs and a few labelled classes.

The two estimates are weighted by their errors. If neither suffices, the result is refused. Nothing in the product uses
this: at FAR 1e-3 the intervals are too narrow, as `threshold_transfer.py` measures.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, logit, ndtri

from retrieval.consistency import Interval, OperatingCurves, labelled, thresholds_at_far
from retrieval.consistency.curves import count_accepted
from retrieval.errors import InvalidInput, NotEnoughEvidence

Rates = NDArray[np.float64]
Vectors = NDArray[np.float32]

_N_LEVELS = 33  # thresholds tried, evenly spaced in the logarithm of the share of accepted pairs
_SPAN = 6.0  # the share at the ends, as a factor below and above the target
_MIN_ACCEPTED = 10  # pairs at the threshold, as for a threshold chosen with labels

_MIN_CLASSES = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class DomainPrior:
    """What is known of a domain before any label is seen, with the confidence of the result.

    prevalence: share of matching pairs among all pairs, (c - 1) / n for c images a class; tar: TAR at the threshold,
    generously wide, for instance that of the source domain at the same FAR.

    Raises:
        InvalidInput: at construction, an interval that is not inside (0, 1).
    """

    prevalence: Interval
    tar: Interval

    def __post_init__(self) -> None:
        for name, interval in (("prevalence", self.prevalence), ("tar", self.tar)):
            if not 0 < interval.low <= interval.high < 1:
                raise InvalidInput(f"{name} must be an interval inside (0, 1), found {interval}")


@dataclass(frozen=True, slots=True, kw_only=True)
class TransferredThreshold:
    """A threshold for a target domain, and how well the FAR is known there.

    threshold: its estimated FAR is target_far; interval: contains the threshold whose FAR is the target; far_interval:
    contains the FAR of `threshold`; tar: from the labelled classes and the prior together; label_share: weight of the
    labelled classes in the estimate, 0 to 1; n_classes: labelled classes.
    """

    threshold: float
    interval: Interval
    target_far: float
    far_interval: Interval
    tar: Interval
    label_share: float
    n_images: int
    n_classes: int
    confidence: float

    def __str__(self) -> str:
        return (
            f"threshold {self.threshold:.4f} ({100 * self.confidence:g} % interval {self.interval}) for FAR "
            f"{self.target_far:g} ({self.far_interval}), TAR {self.tar}; from {self.n_images} images, "
            f"{self.n_classes} classes of them labelled (weight {self.label_share:.2f})"
        )


def transfer_threshold(
    embeddings: Vectors,
    labels: Sequence[str | None],
    *,
    prior: DomainPrior,
    target_far: float,
    gallery: Vectors | None = None,
    confidence: float = 0.95,
    max_factor: float = 3.0,
) -> TransferredThreshold:
    """Return the threshold for a pooled FAR in a domain with few labelled images or none.

    embeddings, gallery: [n, D] float32, see `labelled`, all of the target domain; labels: n, None if unknown: that is
    why this function does not take labelled vectors. A labelled class must be labelled completely, because its other
    images would count as false accepts. max_factor: refuse if the FAR is not known to within this factor.

    There are two estimates of the FAR at every threshold. *All pairs*: (share accepted - prevalence * TAR) /
    (1 - prevalence) needs no label, and fails if matches are most of what is accepted. *Labelled classes against all
    images*: their false accepts; the error is the spread between k classes. They are weighted by the inverse square of
    their errors in the logarithm; the error of the images as a sample of the domain is added. Images of one class count
    as one observation, which is the most cautious.

    Assumes that the images are a fair sample of the target domain and the labelled classes one of its classes; the
    scores of the source are not used. Intervals are rather wide: in simulations of crowded classes, and on three image
    sets at FAR 1e-2, all contained the truth. At 1e-3, near the share of matches, most cases are refused, and the
    others contained it less often (photographs 0.78 to 0.97 of the time; `tests/bench/threshold_transfer.py`).
    Cost: three times n^2 / 2 products; memory: [n, 33].

    Raises:
        NotEnoughEvidence: fewer than 10 accepted pairs at the target, images of fewer than 20 classes by the stated
            prevalence, or a FAR not known to within max_factor.
        InvalidInput: a rate outside (0, 1), max_factor not above 1.
        InvalidEmbeddings: see `labelled`.

    Source: the error of a mean over pairs: Hoeffding, "A class of statistics with asymptotically normal distribution",
    Annals of Mathematical Statistics 19 (1948).
    """
    if not 0 < target_far < 1 or not 0 < confidence < 1 or not max_factor > 1:
        raise InvalidInput(
            "expected target_far and confidence in (0, 1) and max_factor above 1, found "
            f"{target_far}, {confidence} and {max_factor}"
        )
    names = [f"unlabelled {row}" if label is None else f"class {label}" for row, label in enumerate(labels)]
    vectors = labelled(embeddings, names, gallery=gallery)
    n_images, n_classes = len(names), sum(name.startswith("class ") for name in vectors.classes)
    _check_images(n_images, target_far, prior.prevalence)
    each = labelled(embeddings, [f"{row:09d}" for row in range(n_images)], gallery=gallery)
    lowest = max(target_far / _SPAN, _MIN_ACCEPTED / each.n_negatives)
    shares = np.geomspace(min(target_far * _SPAN + prior.prevalence.high, 0.5), lowest, _N_LEVELS)
    thresholds = np.unique(thresholds_at_far(each, shares))
    estimate = _estimate(count_accepted(vectors, thresholds), prior, float(ndtri((1 + confidence) / 2)))
    threshold = _crossing(thresholds, estimate.log_far, math.log(target_far))
    spread = math.exp(float(np.interp(threshold, thresholds, estimate.half_width)))
    if not spread <= max_factor:  # so that NaN is refused, too
        raise NotEnoughEvidence(
            f"the FAR near {target_far:g} is not known to within a factor of {max_factor:g}: among {n_images} images, "
            f"{n_classes} classes are labelled and a share {prior.prevalence} of pairs may match; label more classes, "
            "narrow prevalence or tar, or raise the target"
        )
    low, high = (
        _crossing(thresholds, estimate.log_far + sign * estimate.half_width, math.log(target_far)) for sign in (-1, 1)
    )
    return TransferredThreshold(
        threshold=threshold,
        interval=Interval(
            low if math.isfinite(low) else float(thresholds[0]), high if math.isfinite(high) else float(thresholds[-1])
        ),
        target_far=target_far,
        far_interval=Interval(target_far / spread, min(target_far * spread, 1.0)),
        tar=Interval(*(float(np.interp(threshold, thresholds, end)) for end in estimate.tar)),
        label_share=float(np.interp(threshold, thresholds, estimate.label_share)),
        n_images=n_images,
        n_classes=n_classes,
        confidence=confidence,
    )


def _check_images(n: int, target_far: float, prevalence: Interval) -> None:
    if target_far * n * (n - 1) / 2 < _MIN_ACCEPTED:
        raise NotEnoughEvidence(
            f"a FAR target of {target_far:g} needs at least {_MIN_ACCEPTED / target_far:.0f} pairs, found "
            f"{n * (n - 1) // 2}; add images of the domain, labelled or not"
        )
    n_classes = _independent_images(n, _middle(prevalence))
    if n_classes < _MIN_CLASSES:
        raise NotEnoughEvidence(
            f"{n} images with a share {prevalence} of matching pairs are of about {n_classes:.0f} classes, expected at "
            f"least {_MIN_CLASSES}; add images of other classes"
        )


def _middle(prevalence: Interval) -> float:
    return math.sqrt(prevalence.low * prevalence.high)


def _independent_images(n: int, matching: float) -> float:
    """Return the number of independent images, if those of a class count as one: the number of classes."""
    return n / (1 + matching * (n - 1))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Estimate:
    """At each of m thresholds: log FAR and its error, ends of TAR's interval, weight of the labels: [m] each."""

    log_far: Rates
    half_width: Rates
    tar: tuple[Rates, Rates]
    label_share: Rates


def _estimate(curves: OperatingCurves, prior: DomainPrior, z: float) -> _Estimate:
    """Combine both estimates; z: quantile of the confidence."""
    prevalence = prior.prevalence
    is_labelled = np.array([name.startswith("class ") for name in curves.classes])
    tar_logit, tar_variance = _tar_of(curves, is_labelled, prior.tar, z)
    n, k = int(curves.n_images.sum()), int(np.count_nonzero(is_labelled))
    ends = curves.negatives_accepted + 2 * curves.positives_accepted  # ends of accepted pairs in each class
    share = ends.sum(axis=0) / (n * (n - 1))
    # Squared relative spread of the number of pairs an image takes part in; a labelled class counts as its mean image.
    relative = ends / curves.n_images[:, None] / ends.sum(axis=0) * n
    spread = np.average((relative - 1) ** 2, axis=0, weights=curves.n_images)
    # The error of the images as a sample of the domain, which no label removes. Two look-alike classes bring as many
    # accepted pairs at once as they have pairs of images.
    n_independent = _independent_images(n, _middle(prevalence))
    at_once = (n / n_independent) ** 2
    sampling = 4 * spread / n_independent + 2 * at_once / ends.sum(axis=0)

    log_far, precision = _from_all_pairs(share, prevalence, expit(tar_logit), tar_variance, z)
    label_share = np.zeros_like(share)
    if k > 0:
        accepted = curves.negatives_accepted[is_labelled].sum(axis=0) + 0.5  # keeps the logarithm finite
        of_labels = 1 / (spread / k + at_once / accepted)
        label_share = of_labels / (precision + of_labels)
        precision = precision + of_labels
        far = accepted / (curves.negatives[is_labelled].sum() + 1)
        log_far = (1 - label_share) * log_far + label_share * np.log(far)
    with np.errstate(divide="ignore"):
        half_width = z * np.sqrt(sampling + 1 / precision)
    around = z * np.sqrt(tar_variance)
    return _Estimate(
        log_far=log_far,
        half_width=half_width,
        tar=(expit(tar_logit - around), expit(tar_logit + around)),
        label_share=label_share,
    )


def _tar_of(curves: OperatingCurves, is_labelled: NDArray[np.bool_], tar: Interval, z: float) -> tuple[Rates, Rates]:
    """Return the logit of TAR at each threshold and its variance: the prior and one observation a class."""
    low, high = float(logit(tar.low)), float(logit(tar.high))
    mean, variance = np.full(len(curves.thresholds), (low + high) / 2), max(((high - low) / (2 * z)) ** 2, 1e-12)
    rows = is_labelled & curves.with_positives
    k = int(np.count_nonzero(rows))
    if k == 0:
        return mean, np.full_like(mean, variance)
    # Half an observation of each kind keeps the logit finite.
    found = (k * curves.positives_accepted[rows].sum(axis=0) / curves.positives[rows].sum() + 0.5) / (k + 1)
    found_variance = 1 / (k * found * (1 - found))
    weight = variance / (variance + found_variance)
    return (1 - weight) * mean + weight * logit(found), variance * (1 - weight)


def _from_all_pairs(
    share: Rates, prevalence: Interval, tar: Rates, tar_variance: Rates, z: float
) -> tuple[Rates, Rates]:
    """Return log FAR of the images and its precision; very low and 0 if all accepted pairs may match."""
    matching = _middle(prevalence)
    of_matching = (math.log(prevalence.high / prevalence.low) / (2 * z)) ** 2
    matches = matching * tar
    variance = matches**2 * (of_matching + (1 - tar) ** 2 * tar_variance)
    false = share - matches
    seen = false > 0
    log_far = np.log(np.where(seen, false / (1 - matching), 1e-300))
    return log_far, np.where(seen, false**2 / np.maximum(variance, 1e-300), 0.0)


def _crossing(thresholds: Rates, log_far: Rates, target: float) -> float:
    """Return the threshold above which the estimate stays at or below the target; NaN if it is outside the range."""
    above = np.flatnonzero(~(log_far <= target))
    if len(above) == 0 or above[-1] + 1 == len(thresholds):
        return math.nan
    i = int(above[-1])
    part = (log_far[i] - target) / (log_far[i] - log_far[i + 1])
    return float(thresholds[i] + part * (thresholds[i + 1] - thresholds[i]))
