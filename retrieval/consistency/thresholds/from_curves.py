"""Choose and certify a threshold from counted curves alone: sharded, judged, sampled, or of queries and a gallery.

Curves hold totals of classes, not of pairs of classes, and only the thresholds of their grid. So both functions take
the next stricter threshold of the grid, and intervals are as a rule wider than those of `choice`.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from retrieval.consistency.arguments import checked
from retrieval.consistency.curves import OperatingCurves, Rates
from retrieval.consistency.intervals import Interval, check_confidence, student_quantile
from retrieval.consistency.sampling import SampledCurves
from retrieval.consistency.subgroups.clustered import clustered_interval
from retrieval.consistency.thresholds.certificate import Certificate, least_kept
from retrieval.consistency.thresholds.choice import ThresholdChoice
from retrieval.consistency.thresholds.rate_variances import log_interval
from retrieval.consistency.thresholds.targets import Target, parse_target
from retrieval.errors import InvalidInput, NotEnoughEvidence

_MIN_ERRORS = 10
_MOST_SHARE = 0.5  # of the pairs in one class: beyond, its residual says little about the others


@checked
def threshold_from_curves(
    curves: OperatingCurves | SampledCurves,
    *,
    target: Target | str,
    confidence: float = 0.95,
    min_classes: int = 20,
) -> ThresholdChoice:
    """Return the threshold of the grid that the target asks for, with intervals over the draw of classes.

    The threshold is the lowest (for FRR the highest) of the grid that reaches the target, and the ends of its interval
    are the next ones outside. The variance of FAR is the sum over classes of their squared residuals, in which the part
    of each pair of classes counts twice: at least that of `choose_threshold`. For sampled curves the error of the
    sample is added. Give the curves a fine grid around the target, such as `threshold_grid`.

    Raises:
        InvalidInput: a target of the best F-beta or utility, whose interval takes the images; or confidence outside
            (0, 1).
        NotEnoughEvidence: fewer than min_classes classes with a positive pair, no threshold of the grid reaches the
            target, or fewer than 10 false accepts at it.
    """
    check_confidence(confidence)
    target = parse_target(target) if isinstance(target, str) else target
    if isinstance(curves, SampledCurves):
        errors, curves = curves.far_error, curves.curves
    else:
        errors = np.zeros(len(curves.thresholds))
    if target.choice == "best":
        raise InvalidInput(f"{target}: its interval takes the images; use choose_threshold, or a FAR, FRR or precision")
    n_with = len(curves.classes) - curves.n_excluded
    if n_with < max(min_classes, 2):
        raise NotEnoughEvidence(
            f"choosing a threshold needs at least {max(min_classes, 2)} classes with a positive pair, found {n_with}"
        )
    column = _reaching(target.achieved(curves), target, target.level)
    if column is None:
        raise NotEnoughEvidence(
            f"no threshold of the {len(curves.thresholds)} of these curves reaches {target.describe()}; count at more "
            "thresholds, or ask for less"
        )
    found = curves.at(float(curves.thresholds[column]))
    if (false_accepts := int(found.negatives_accepted.sum()) // 2) < _MIN_ERRORS:
        raise NotEnoughEvidence(
            f"the threshold {found.thresholds[0]:.4f} for {target.describe()} accepts {false_accepts} of "
            f"{curves.n_negative_pairs} negative pairs, and a FAR needs {_MIN_ERRORS} or more; count more pairs, or at "
            "thresholds closer to the target"
        )
    far, class_far, tar = (float(rate[0]) for rate in (found.pooled_far, found.mean_far, found.pooled_tar))
    sampling = float(errors[column] / far) ** 2
    by_far = _residuals(found.negatives_accepted[:, 0], found.negatives, ends=2) / far
    by_mean = 2 * (found.far[:, 0] - class_far) / (len(curves.classes) * class_far)
    by_tar = _residuals(found.positives_accepted[:, 0], found.positives, ends=1)
    far_variance, far_units = float((by_far**2).sum()) + sampling, _effective(by_far**2)
    mean_variance, mean_units = float((by_mean**2).sum()) + sampling, _effective(by_mean**2)
    tar_units, total = _effective(found.positives.astype(np.float64)), float(found.positives.sum())
    smooth = (found.positives_accepted.sum() + 0.5) / (total + 1)
    # Without a rejected (or accepted) pair nothing is known about how pairs of a class stand together: a class is one.
    tar_variance = max(float((by_tar**2).sum()), smooth * (1 - smooth) / (total if 0 < tar < 1 else tar_units))
    logit_variance = tar_variance / (smooth * (1 - smooth)) ** 2
    trials = tar * (1 - tar) / tar_variance or tar_units
    if target.kind == "frr":
        spread = _logit_spread(target, student_quantile(max(tar_units, 2), confidence) * math.sqrt(logit_variance))
    elif target.kind == "precision":
        variance = float(((by_far - by_tar / max(tar, 1e-9)) ** 2).sum()) + sampling
        spread = _logit_spread(target, student_quantile(max(far_units, 2), confidence) * math.sqrt(variance))
    else:
        variance, units = (mean_variance, mean_units) if target.kind == "class-far" else (far_variance, far_units)
        factor = math.exp(student_quantile(max(units, 2), confidence) * math.sqrt(variance))
        spread = (target.level * factor, target.level / factor)
    return ThresholdChoice(
        target=target,
        threshold=float(found.thresholds[0]),
        achieved=abs(float(target.achieved(found)[0])),
        far=far,
        class_far=class_far,
        tar=tar,
        threshold_interval=_on_grid(curves, target, column, spread),
        far_interval=log_interval(far, far_variance, max(far_units, 2), confidence),
        class_far_interval=log_interval(class_far, mean_variance, max(mean_units, 2), confidence),
        tar_interval=clustered_interval(tar, trials, max(tar_units, 2), confidence),
        n_classes=len(curves.classes),
        n_classes_with_positives=n_with,
        n_images=int(curves.n_images.sum()),
        confidence=confidence,
        class_variance=far_variance,
        pair_variance=0.0,
        tar_variance=logit_variance,
    )


@checked
def certificate_from_curves(curves: OperatingCurves, *, alpha: float, delta: float, strict: bool = True) -> Certificate:
    """Return the lowest threshold of the grid with the certificate of `certify` for the FAR of a new class.

    The rates must be those of all pairs of the classes that the new class will be compared with: of sampled or of some
    shards' pairs they are too noisy to be exchangeable with its own.

    Raises:
        InvalidInput: alpha or delta outside (0, 1).
        NotEnoughEvidence: see `certify`; or no threshold of the grid is strict enough.
    """
    kept, rank = least_kept(curves, alpha=alpha, delta=delta, strict=strict)
    reached = np.flatnonzero(kept >= rank)
    if len(reached) == 0:
        raise NotEnoughEvidence(
            f"at no threshold of these curves do {rank} of {len(curves.classes)} classes keep FAR <= {alpha:g}; the "
            f"highest is {curves.thresholds[-1]:.4f}: count at higher ones, add classes, raise alpha or delta"
        )
    found = curves.at(float(curves.thresholds[reached[0]]))
    return Certificate(
        threshold=float(found.thresholds[0]),
        rate="far",
        alpha=alpha,
        delta=delta,
        strict=strict,
        n_classes=len(curves.classes),
        far=float(found.pooled_far[0]),
        tar=float(found.pooled_tar[0]),
    )


def _residuals(accepted: NDArray[np.int64], pairs: NDArray[np.int64], *, ends: int) -> Rates:
    """Return what each class adds to the error of the pooled rate, by 1 - its share of the pairs: [T] float64."""
    total = pairs.sum() / ends
    share = np.minimum(pairs / total, _MOST_SHARE)
    rate = accepted.sum() / pairs.sum()
    return np.asarray((accepted - rate * pairs) / total / (1 - share), dtype=np.float64)


def _effective(weights: Rates) -> float:
    """Return Kish's effective number of the weights."""
    squares = float((weights**2).sum())
    return float(weights.sum()) ** 2 / squares if squares > 0 else 0.0


def _logit_spread(target: Target, half_width: float) -> tuple[float, float]:
    from scipy.special import expit, logit

    centre, sign = float(logit(target.value)), -1 if target.kind == "frr" else 1
    ends = sorted(sign * float(expit(centre + side * half_width)) for side in (-1, 1))
    return ends[0], ends[1]


def _reaching(achieved: Rates, target: Target, level: float) -> int | None:
    """Return the column of the lowest (for FRR the highest) threshold that reaches a level."""
    columns = np.flatnonzero(achieved >= level)
    if len(columns) == 0:
        return None
    return int(columns[0 if target.choice == "lowest" else -1])


def _on_grid(curves: OperatingCurves, target: Target, column: int, levels: tuple[float, float]) -> Interval:
    """Return the thresholds that reach the levels, moved outwards to the next of the grid; open ends are its ends."""
    achieved, last = target.achieved(curves), len(curves.thresholds) - 1
    strict_end = last if target.choice == "lowest" else 0
    found = [strict_end if (at := _reaching(achieved, target, level)) is None else at for level in levels]
    low, high = max(min(*found, column) - 1, 0), min(max(*found, column) + 1, last)
    return Interval(float(curves.thresholds[low]), float(curves.thresholds[high]))
