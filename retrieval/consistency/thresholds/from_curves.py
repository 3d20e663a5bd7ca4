"""Choose and certify a threshold from counted curves alone: sharded, judged, sampled, or of queries and a gallery.

Curves hold totals of classes, not of pairs of classes, and only the thresholds of their grid. So both functions take
the next stricter threshold of the grid, and intervals are as a rule wider than those of `choice`.
"""

from __future__ import annotations

import math

import numpy as np
from scipy.special import expit, logit

from retrieval.consistency.arguments import checked
from retrieval.consistency.curves import OperatingCurves, Rates
from retrieval.consistency.intervals import Interval, check_confidence, effective_number, student_quantile
from retrieval.consistency.sampling import SampledCurves
from retrieval.consistency.subgroups.clustered import corrected_residuals
from retrieval.consistency.thresholds.certificate import Certificate, least_kept
from retrieval.consistency.thresholds.choice import ThresholdChoice
from retrieval.consistency.thresholds.rate_variances import (
    RateVariances,
    at_least_even,
    log_interval,
    rates_holding,
    tar_evidence,
    tar_interval,
)
from retrieval.consistency.thresholds.targets import Target, parse_target
from retrieval.consistency.thresholds.warnings import rate_warnings
from retrieval.errors import InvalidInput, NotEnoughEvidence

_MIN_ERRORS = 10


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
    are the next ones outside. Rates and the interval of TAR are those of `choose_threshold` at the same threshold. The
    variance of FAR is the sum over classes of their squared residuals, in which the part of each pair of classes counts
    twice: at least that of `choose_threshold`. For sampled curves the error of the sample is added. Families of classes
    are not known here, and groups of look-alike classes cannot be found without the embeddings: if classes are drawn
    together, the intervals are too narrow. Give the curves a fine grid around the target, such as `threshold_grid`.

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
            "thresholds, or use a looser target"
        )
    found = curves.at(float(curves.thresholds[column]))
    if (false_accepts := round(int(found.negatives_accepted.sum()) // 2 / curves.repeats)) < _MIN_ERRORS:
        raise NotEnoughEvidence(
            f"the threshold {found.thresholds[0]:.4f} for {target.describe()} accepts {false_accepts} of "
            f"{round(curves.n_negative_pairs / curves.repeats)} negative pairs, and a FAR needs {_MIN_ERRORS} or more; "
            "count more pairs, or at thresholds closer to the target"
        )
    far, class_far, tar = (float(rate[0]) for rate in (found.pooled_far, found.mean_far, found.pooled_tar))
    smooth = (found.positives_accepted.sum() + 0.5) / (found.positives.sum() + 1)
    variances = _variances(found, float(errors[column] / far) ** 2)
    known = variances.tar
    return ThresholdChoice(
        target=target,
        threshold=float(found.thresholds[0]),
        achieved=abs(float(target.achieved(found)[0])),
        far=far,
        class_far=class_far,
        tar=tar,
        threshold_interval=_on_grid(curves, target, column, _levels(target, variances, confidence)),
        far_interval=log_interval(far, variances.class_variance, variances.far_units, confidence),
        class_far_interval=log_interval(class_far, variances.mean_far, variances.mean_far_units, confidence),
        tar_interval=tar_interval(tar, known.trials, known.units, confidence),
        n_classes=len(curves.classes),
        n_classes_with_positives=n_with,
        n_images=int(curves.n_images.sum()),
        confidence=confidence,
        class_variance=variances.class_variance,
        pair_variance=0.0,
        tar_variance=1 / (known.trials * smooth * (1 - smooth)),
        far_units=variances.far_units,
        tar_units=known.units,
        tar_trials=known.trials,
        class_tar=float(found.mean_tar[0]),
        warnings=variances.warnings,
    )


@checked
def certificate_from_curves(curves: OperatingCurves, *, alpha: float, delta: float, strict: bool = True) -> Certificate:
    """Return the lowest threshold of the grid with the certificate of `certify` for the FAR of a new class.

    The rates must be those of all pairs of the classes that the new class will be compared with: of sampled or of some
    shards' pairs they are too noisy to be exchangeable with its own.

    Raises:
        InvalidInput: alpha or delta outside (0, 1), or strict and curves of rounds of searches.
        NotEnoughEvidence: see `certify`; or no threshold of the grid is strict enough.
    """
    if strict and curves.repeats > 1:
        raise InvalidInput("a strict certificate from rounds of searches takes their queries and items: use certify")
    kept, rank, most = least_kept(curves, alpha=alpha, delta=delta, strict=strict)
    reached = np.flatnonzero(kept >= rank)
    if len(reached) == 0:
        refused = f"at no threshold of these curves do {rank} of {len(curves.classes)} classes keep FAR <= {alpha:g}"
        if most < rank:
            largest = int(curves.n_images.argmax())
            raise NotEnoughEvidence(
                f"{refused}: with strict, a new class may be as large as the largest, {curves.classes[largest]!r} with "
                f"{curves.n_images[largest]} of {curves.n_images.sum()} images (in judged curves, ends of pairs), and "
                "its pairs all count as false accepts; use strict=False"
            )
        raise NotEnoughEvidence(
            f"{refused}; the highest is {curves.thresholds[-1]:.4f}: count at higher ones, add classes, raise alpha or "
            "delta"
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


def _variances(curves: OperatingCurves, sampling: float) -> RateVariances:
    """Return `rate_variances` from the totals of classes; sampling: of log FAR, by a sample of the pairs.

    The part of single pairs of classes is not known: it stays in the sum over classes and counts twice. In class-mean
    FAR, a class is also a part of the FARs of all others, by the share of its images; its own FAR stands for that part.
    """
    n_classes, far, class_far = len(curves.classes), curves.pooled_far[0], curves.mean_far[0]
    shares = curves.negatives / (curves.negatives.sum() / 2)
    accepted, positives = (values.astype(np.float64) for values in (curves.positives_accepted[:, 0], curves.positives))
    by_class = (curves.far[:, 0] / far - 1) * shares / np.maximum(1 - shares, 1e-9)
    of_others = 1 / (curves.n_images.sum() - curves.n_images)
    in_mean = (1 + curves.n_images * (of_others.sum() - of_others)) / n_classes  # 2 / n_classes if sizes are equal
    of_mean = (curves.far[:, 0] / class_far - 1) * in_mean / np.maximum(1 - in_mean, 1e-9)
    of_tar = corrected_residuals(accepted, positives) / max(float(accepted.sum()), 0.5)
    return RateVariances(
        class_variance=at_least_even(by_class, shares) + sampling,
        pair_variance=0.0,
        mean_far=float((of_mean**2).sum()) + sampling,
        precision=float(((by_class - of_tar) ** 2).sum()) + sampling,
        tar=tar_evidence(accepted, positives),
        far_units=effective_number(by_class**2),
        mean_far_units=effective_number(of_mean**2),
        warnings=rate_warnings(curves, np.empty(0, dtype=np.int64), families=False),
    )


def _levels(target: Target, variances: RateVariances, confidence: float) -> tuple[float, float]:
    """Return the levels of the target that are a standard error's quantile away from it, as `choose_threshold` does."""
    if target.far is not None:
        spread = rates_holding(target.far, variances.class_variance, variances.far_units, confidence)
        return -spread.high, -spread.low
    if target.kind == "class-far":
        spread = rates_holding(target.value, variances.mean_far, variances.mean_far_units, confidence)
        return -spread.high, -spread.low
    if target.kind == "frr":
        spread = tar_interval(target.value, variances.tar.trials, variances.tar.units, confidence)
        return -spread.high, -spread.low
    units = min(variances.far_units, variances.tar.units)
    half_width = student_quantile(units, confidence) * math.sqrt(variances.precision)
    centre = float(logit(target.value))
    return float(expit(centre - half_width)), float(expit(centre + half_width))


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
