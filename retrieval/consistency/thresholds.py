"""One threshold for a target false accept rate: chosen exactly, with what it promises for classes not seen yet.

Classes are the units that vary. The pooled FAR averages over *pairs* of classes, so that a class takes part in many
terms; taking per-class rates as independent would understate its variance up to four times.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, logit, stdtrit

from retrieval.consistency.curves import OperatingCurves, count_accepted
from retrieval.consistency.intervals import Interval
from retrieval.consistency.pairs import LabelledVectors, Vectors, float32_at_least, labelled_vectors, scored_pairs
from retrieval.consistency.selection import select_thresholds
from retrieval.errors import InvalidInput, NotEnoughEvidence

# A relative error of a third in a count is the worst on which a threshold may rest.
_MIN_FALSE_ACCEPTS = 10


@dataclass(frozen=True, slots=True)
class ThresholdChoice:
    """A threshold for a pooled FAR target, with its evidence.

    threshold: the smallest float32 value whose pooled FAR on the given pairs is at most target_far; far, tar: pooled
    rates achieved on them. Intervals have the stated confidence and are about the population the classes were drawn
    from: threshold_interval holds the threshold with exactly the target FAR, far_interval and tar_interval the rates of
    `threshold`. n_classes: all classes; n_classes_with_positives: those that entered TAR.
    class_variance, pair_variance: the two parts of the variance of log FAR, the first falling with 1 / n_classes, the
    second with 1 / n_classes^2; tar_variance: variance of logit TAR.
    """

    threshold: float
    target_far: float
    far: float
    tar: float
    threshold_interval: Interval
    far_interval: Interval
    tar_interval: Interval
    n_classes: int
    n_classes_with_positives: int
    n_images: int
    confidence: float
    class_variance: float
    pair_variance: float
    tar_variance: float

    def __str__(self) -> str:
        return (
            f"threshold {self.threshold:.4f} ({100 * self.confidence:g} % interval {self.threshold_interval}) "
            f"for pooled FAR {self.target_far:g}: FAR {self.far:.4g} ({self.far_interval}), "
            f"TAR {self.tar:.4g} ({self.tar_interval}), from {self.n_images} images of {self.n_classes} classes"
        )

    def predicted_far(self, n_new_classes: int) -> Interval:
        """Return where the pooled FAR among n_new_classes other classes is expected, with the stated confidence.

        Holds for classes of about as many images, drawn independently from the same population.

        Raises:
            InvalidInput: fewer than two new classes.
        """
        if n_new_classes < 2:
            raise InvalidInput(f"a pooled FAR needs at least 2 new classes, found {n_new_classes}")
        ratio = self.n_classes / n_new_classes
        variance = self.class_variance * (1 + ratio) + self.pair_variance * (1 + ratio**2)
        return _far_interval(self.far, variance, self.n_classes, self.confidence)

    def predicted_tar(self, n_new_classes: int) -> Interval:
        """Return where the pooled TAR of n_new_classes other classes is expected, with the stated confidence.

        Raises:
            InvalidInput: no new class.
        """
        if n_new_classes < 1:
            raise InvalidInput(f"a pooled TAR needs at least 1 new class, found {n_new_classes}")
        variance = self.tar_variance * (1 + self.n_classes_with_positives / n_new_classes)
        return _tar_interval(self.tar, variance, self.n_classes_with_positives, self.confidence)


def choose_threshold_for_far(
    query_vectors: Vectors,
    labels: Sequence[str],
    *,
    gallery_vectors: Vectors | None = None,
    target_far: float,
    confidence: float = 0.95,
    min_classes: int = 20,
    tile: int = 1024,
) -> ThresholdChoice:
    """Return the lowest threshold whose pooled FAR does not exceed the target, with intervals over the draw of classes.

    query_vectors, gallery_vectors: [n, D] float32, see `labelled_vectors`; labels: n strings. min_classes counts those
    with at least two images: with fewer than about 20, the variance over classes is itself unknown by a third.
    Nothing is random. Cost: six times n^2 / 2 products; memory: also the class pairs with false accepts.

    Variances: for FAR the dyadic-robust one, which is what drawing classes and weighting the pair (i, j) by w_i * w_j
    estimates, without the bootstrap's threefold count of the part that belongs to single pairs; for TAR that of a ratio
    of class totals. FAR intervals are symmetric in its logarithm, TAR intervals in its logit, with Student's quantiles.

    Raises:
        NotEnoughEvidence: fewer than min_classes classes with two images, or fewer than 10 false accepts at the target.
        InvalidInput: target_far or confidence outside (0, 1).
        InvalidEmbeddings: see `labelled_vectors`.

    Source: Aronow, Samii, Assenova, "Cluster-robust variance estimation for dyadic data", Political Analysis 23 (2015).
    """
    if not 0 < target_far < 1 or not 0 < confidence < 1:
        raise InvalidInput(f"target_far and confidence must lie in (0, 1), found {target_far} and {confidence}")
    vectors = labelled_vectors(query_vectors, labels, gallery_vectors)
    _check_evidence(vectors, target_far, min_classes)
    selected = select_thresholds(vectors, np.array([target_far]), tile=tile)
    curves = count_accepted(vectors, selected, tile=tile)
    far, tar = float(curves.pooled_far[0]), float(curves.pooled_tar[0])
    if far == 0:
        raise NotEnoughEvidence(
            f"more than a share {target_far:g} of the negative pairs tie at the highest score, so no threshold accepts "
            "any of them; look for images filed under several classes"
        )
    class_variance, pair_variance = _log_far_variance(vectors, curves, tile)
    tar_variance = _logit_tar_variance(curves)
    n_classes, n_with_positives = len(vectors.classes), int(np.count_nonzero(curves.with_positives))
    spread = _far_interval(target_far, class_variance + pair_variance, n_classes, confidence)
    around = select_thresholds(vectors, np.array([min(spread.high, np.nextafter(1, 0)), spread.low]), tile=tile)
    return ThresholdChoice(
        threshold=float(selected[0]),
        target_far=target_far,
        far=far,
        tar=tar,
        threshold_interval=Interval(float(around[0]), float(around[1])),
        far_interval=_far_interval(far, class_variance + pair_variance, n_classes, confidence),
        tar_interval=_tar_interval(tar, tar_variance, n_with_positives, confidence),
        n_classes=n_classes,
        n_classes_with_positives=n_with_positives,
        n_images=len(vectors.codes),
        confidence=confidence,
        class_variance=class_variance,
        pair_variance=pair_variance,
        tar_variance=tar_variance,
    )


def _check_evidence(vectors: LabelledVectors, target_far: float, min_classes: int) -> None:
    usable = int(np.count_nonzero(vectors.n_images >= 2))
    if usable < max(min_classes, 2):
        raise NotEnoughEvidence(
            f"choosing a threshold needs at least {max(min_classes, 2)} classes with 2 images or more, found {usable} "
            f"among {len(vectors.classes)} classes; add labelled classes that were not trained on"
        )
    expected = target_far * vectors.n_negatives
    if expected < _MIN_FALSE_ACCEPTS:
        raise NotEnoughEvidence(
            f"a FAR target of {target_far:g} needs at least {_MIN_FALSE_ACCEPTS / target_far:.0f} negative pairs, "
            f"found {vectors.n_negatives}; add images or raise the target"
        )


def _log_far_variance(vectors: LabelledVectors, curves: OperatingCurves, tile: int) -> tuple[float, float]:
    """Return the parts of the variance of the log of the pooled FAR due to classes and to single class pairs."""
    first, second, accepted = _false_accepts_by_class_pair(vectors, float(curves.thresholds[0]), tile)
    n_images = vectors.n_images.astype(np.float64)
    far, total = float(curves.pooled_far[0]), float(accepted.sum())
    # Residual of the class pair (i, j): accepted_ij - far * n_i * n_j; most pairs accept nothing and enter by formula.
    by_class = curves.negatives_accepted[:, 0] - far * curves.negatives
    products = n_images[first] * n_images[second]
    every_product = (float((n_images**2).sum()) ** 2 - float((n_images**4).sum())) / 2
    by_pair = float((accepted**2).sum() - 2 * far * (accepted * products).sum()) + far**2 * every_product
    # The sum over class pairs that share a class, each once, is sum(by_class^2) - by_pair; where classes do not matter,
    # by_pair of it is left.
    shared = max(float((by_class**2).sum()) - 2 * by_pair, 0.0)
    return shared / total**2, by_pair / total**2


def _false_accepts_by_class_pair(
    vectors: LabelledVectors, threshold: float, tile: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
    """Return first class, second class and count of every class pair with a false accept: three [p]."""
    n_classes = len(vectors.classes)
    lowest = float32_at_least(np.array([threshold]))[0]
    keys = [
        batch.first[~batch.matches] * n_classes + batch.second[~batch.matches]
        for batch in scored_pairs(vectors, lowest=lowest, tile=tile)
    ]
    found, counts = np.unique(np.concatenate(keys), return_counts=True)
    return found // n_classes, found % n_classes, counts.astype(np.float64)


def _logit_tar_variance(curves: OperatingCurves) -> float:
    """Return the variance of logit TAR as a ratio of class totals, at least that of independent pairs."""
    rows = curves.with_positives
    accepted, positives = curves.positives_accepted[rows, 0], curves.positives[rows]
    total, n_classes = float(positives.sum()), len(positives)
    residuals = accepted - accepted.sum() / total * positives
    rate = (accepted.sum() + 0.5) / (total + 1)  # keeps the logit finite where all or none are accepted
    of_rate = max(float((residuals**2).sum()) * n_classes / (n_classes - 1) / total**2, rate * (1 - rate) / total)
    return float(of_rate / (rate * (1 - rate)) ** 2)


def _quantile(n_classes: int, confidence: float) -> float:
    return float(stdtrit(n_classes - 1, (1 + confidence) / 2))


def _far_interval(far: float, variance: float, n_classes: int, confidence: float) -> Interval:
    factor = math.exp(_quantile(n_classes, confidence) * math.sqrt(variance))
    return Interval(far / factor, min(far * factor, 1.0))


def _tar_interval(tar: float, variance: float, n_classes: int, confidence: float) -> Interval:
    half_width = _quantile(n_classes, confidence) * math.sqrt(variance)
    centre = float(logit(min(max(tar, 1e-6), 1 - 1e-6)))
    return Interval(
        0.0 if tar == 0 else float(expit(centre - half_width)), 1.0 if tar == 1 else float(expit(centre + half_width))
    )
