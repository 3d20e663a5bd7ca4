"""Choose one threshold for a stated target, with its cost and with predictions for classes not seen yet.

The targets are in `targets`, the exact search in `reaching`, the variances in `rate_variances`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from scipy.special import expit, logit

from retrieval.consistency.arguments import checked
from retrieval.consistency.curves import OperatingCurves, count_accepted
from retrieval.consistency.intervals import Interval, check_confidence, student_quantile
from retrieval.consistency.pairs.selection import thresholds_at_far
from retrieval.consistency.pairs.vectors import LabelledVectors, VectorsOrPair, as_labelled, check_one_population
from retrieval.consistency.thresholds.enough import enough_data, least_target
from retrieval.consistency.thresholds.near_optimum import near_optimum
from retrieval.consistency.thresholds.rate_variances import (
    RateVariances,
    log_interval,
    predicted_interval,
    predicted_tar_interval,
    rate_variances,
    tar_interval,
)
from retrieval.consistency.thresholds.reaching import Wanted, find_threshold, reach
from retrieval.consistency.thresholds.targets import Target, parse_target
from retrieval.errors import InvalidInput, NotEnoughEvidence

# With 10 errors a count has a relative error of a third: the most that a threshold may have.
_MIN_ERRORS = 10
# If half of the true pairs score above all negative pairs, no image is filed under several classes.
_SEPARATED = 0.5
# Fields that documents of older versions lack.
_ADDED = {"far_units", "tar_units", "tar_trials", "class_tar", "n_families", "warnings"}
_INTERVALS = ("threshold_interval", "far_interval", "class_far_interval", "tar_interval")


@dataclass(frozen=True, slots=True, kw_only=True)
class ThresholdChoice:
    """A threshold for a target, with its evidence.

    Intervals have the stated confidence and are about the population of the classes: threshold_interval contains the
    threshold that the target asks for there, the others contain the rates of `threshold` there.
    """

    target: Target
    threshold: float  # the float32 value that the target asks for on the given pairs
    achieved: float  # the rate, precision, F-beta or utility that the target is about
    far: float  # pooled
    class_far: float  # mean over classes
    tar: float  # pooled
    threshold_interval: Interval
    far_interval: Interval
    class_far_interval: Interval
    tar_interval: Interval
    n_classes: int
    n_classes_with_positives: int  # those in TAR
    n_images: int
    confidence: float
    class_variance: float  # the part of the variance of log FAR that falls with 1 / n_classes
    pair_variance: float  # the part that falls with 1 / n_classes^2
    tar_variance: float  # of logit TAR
    # Effective numbers: of classes (or families) behind the variance of FAR and behind TAR, and of independent pairs
    # behind TAR. None in what older versions stored.
    far_units: float | None = None
    tar_units: float | None = None
    tar_trials: float | None = None
    class_tar: float | None = None  # mean over classes
    n_families: int | None = None  # the units that were drawn, if they were given
    warnings: tuple[str, ...] = ()  # sentences on what the intervals rest on

    @property
    def target_far(self) -> float:
        """The pooled FAR of the target; for another kind of target, the achieved one."""
        return self.far if self.target.far is None else self.target.far

    @property
    def cost(self) -> float:
        """Share of the true pairs that the threshold rejects, 1 - TAR."""
        return 1 - self.tar

    def __str__(self) -> str:
        return (
            f"threshold {self.threshold:.4f} ({100 * self.confidence:g} % interval {self.threshold_interval}) "
            f"for {self.target.describe()}: FAR {self.far:.4g} ({self.far_interval}), "
            f"class-mean FAR {self.class_far:.4g} ({self.class_far_interval}), "
            f"TAR {self.tar:.4g} ({self.tar_interval}), from {self.n_images} images of {self.n_classes} classes"
            + "".join(f"; {warning}" for warning in self.warnings)
        )

    @checked
    def predicted_far(self, n_new_classes: int) -> Interval:
        """Predict the pooled FAR among n_new_classes other classes, with the stated confidence.

        Assumes classes of about as many images, drawn independently from the same population.

        Raises:
            InvalidInput: fewer than two new classes.
        """
        if n_new_classes < 2:
            raise InvalidInput(f"a pooled FAR needs at least 2 new classes, found {n_new_classes}")
        ratio = self.n_classes / n_new_classes
        old = self.class_variance + self.pair_variance
        new = self.class_variance * ratio + self.pair_variance * ratio**2
        return predicted_interval(self.far, (old, new), self.far_units or self.n_classes, self.confidence)

    @checked
    def predicted_tar(self, n_new_classes: int) -> Interval:
        """Predict the pooled TAR of n_new_classes other classes, with the stated confidence.

        Raises:
            InvalidInput: no new class.
        """
        if n_new_classes < 1:
            raise InvalidInput(f"a pooled TAR needs at least 1 new class, found {n_new_classes}")
        trials, units = self._tar_evidence
        new_trials = trials * n_new_classes / self.n_classes_with_positives
        return predicted_tar_interval(self.tar, (trials, units), new_trials, self.confidence)

    @property
    def _tar_evidence(self) -> tuple[float, float]:
        """Effective pairs and classes behind TAR; of an older document, those that its variance amounts to."""
        if self.tar_trials is not None and self.tar_units is not None:
            return self.tar_trials, self.tar_units
        units = float(self.n_classes_with_positives)
        spread = self.tar_variance * self.tar * (1 - self.tar)
        return (1 / spread if spread > 0 else units), units

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON types from which `from_json` makes an equal value; the target as text.

        What an older version did not store is left out where it is absent, so that digests of old documents stay.
        """
        document = {**asdict(self), "target": str(self.target), "warnings": list(self.warnings)}
        return {name: value for name, value in document.items() if name not in _ADDED or value not in (None, [])}

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> ThresholdChoice:
        """Undo `to_json`.

        Raises:
            InvalidInput: a missing, surplus or malformed field.
        """
        try:
            intervals = {name: Interval(**document[name]) for name in _INTERVALS}
            warnings = tuple(document.get("warnings", ()))
            parsed = {"target": parse_target(str(document["target"])), "warnings": warnings}
            return cls(**{**document, **intervals, **parsed})
        except (KeyError, TypeError, AttributeError) as error:
            raise InvalidInput(f"the document of a threshold is incomplete or malformed: {error!r}") from error


@checked
def choose_threshold(
    vectors: VectorsOrPair, *, target: Target | str, confidence: float = 0.95, min_classes: int = 20
) -> ThresholdChoice:
    """Return the threshold that the target asks for, with intervals over the draw of classes.

    vectors: see `labelled` and `in_rounds`, or a tuple (embeddings, labels); target: a `Target` or its text.
    min_classes counts classes with at least two images: with fewer than about 20, the variance over classes is itself
    uncertain by a third. Nothing is random. If no families are named, groups of look-alike classes are looked for; if
    they are found, they are the units of the intervals, and a warning states it, see `find_look_alikes`. Cost: some ten
    times n^2 / 2 products; memory: bounded counts and the class pairs with false accepts.

    FAR intervals are those of the logarithm, TAR intervals are Wilson's, with Student's quantiles; variances as in
    `rate_variances`. For FAR, class-mean FAR, FRR and precision, the threshold's interval contains the thresholds at
    which the sample reaches the target moved by its standard error (test inversion, as for quantiles). For F-beta and
    utility it contains those that are not significantly worse than the best, see `near_optimum`, and covers more than
    stated. The table in docs/consistency.md has the coverage in settings that are hard for intervals, such as few,
    unequal or look-alike classes.

    Raises:
        NotEnoughEvidence: fewer than min_classes classes with two images, no threshold reaches the target, or fewer
            than 10 false accepts (for FRR also false rejects) as evidence.
        InvalidInput: confidence outside (0, 1), two sets of images that are no rounds, or excluded pairs.

    Source: for the threshold's interval, Woodruff, "Confidence intervals for medians and other position measures",
    JASA 47 (1952).

    >>> rng = np.random.default_rng(0)
    >>> rows = np.repeat(rng.normal(size=(40, 8)), 3, axis=0) + 0.5 * rng.normal(size=(120, 8))
    >>> rows = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
    >>> choice = choose_threshold((rows, [str(row // 3) for row in range(120)]), target=Target("far", 0.01))
    >>> choice.far <= 0.01, choice.threshold in choice.threshold_interval
    (True, True)
    """
    check_confidence(confidence)
    target = parse_target(target) if isinstance(target, str) else target
    vectors = as_labelled(vectors)
    check_one_population(vectors)
    _check_data(vectors, target, min_classes)
    far = target.far
    threshold = reach(vectors, target) if far is None else _at_fars(vectors, [far])[0]
    curves = count_accepted(vectors, np.array([threshold]))
    _check_errors(vectors, curves, target)
    variances = rate_variances(vectors, curves)
    far, class_far, tar = (float(rate[0]) for rate in (curves.pooled_far, curves.mean_far, curves.pooled_tar))
    n_classes, n_with_positives = len(vectors.classes), int(np.count_nonzero(curves.with_positives))
    far_variance, known = variances.class_variance + variances.pair_variance, variances.tar
    smooth = (curves.positives_accepted.sum() + 0.5) / (curves.positives.sum() + 1)  # finite if none is rejected
    return ThresholdChoice(
        target=target,
        threshold=threshold,
        achieved=abs(float(target.achieved(curves)[0])),
        far=far,
        class_far=class_far,
        tar=tar,
        threshold_interval=_threshold_interval(vectors, target, threshold, variances, confidence),
        far_interval=log_interval(far, far_variance, variances.far_units, confidence),
        class_far_interval=log_interval(class_far, variances.mean_far, variances.mean_far_units, confidence),
        tar_interval=tar_interval(tar, known.trials, known.units, confidence),
        n_classes=n_classes,
        n_classes_with_positives=n_with_positives,
        n_images=int(vectors.n_images.sum()),
        confidence=confidence,
        class_variance=variances.class_variance,
        pair_variance=variances.pair_variance,
        tar_variance=1 / (known.trials * smooth * (1 - smooth)),
        far_units=variances.far_units,
        tar_units=known.units,
        tar_trials=known.trials,
        class_tar=float(curves.mean_tar[0]),
        n_families=None if vectors.families is None else len(np.unique(vectors.families)),
        warnings=variances.warnings,
    )


def _at_fars(vectors: LabelledVectors, fars: Sequence[float]) -> list[float]:
    below_one = np.minimum(np.array(fars), np.nextafter(1, 0))
    return [float(value) for value in thresholds_at_far(vectors, below_one)]


def _threshold_interval(
    vectors: LabelledVectors, target: Target, threshold: float, variances: RateVariances, confidence: float
) -> Interval:
    """Return where the sample reaches the target's level moved up and down by its standard error."""
    if target.choice == "best":
        return near_optimum(vectors, target, threshold, confidence=confidence)
    if target.far is not None:
        variance = variances.class_variance + variances.pair_variance
        spread = log_interval(target.far, variance, variances.far_units, confidence)
        low, high = _at_fars(vectors, [spread.high, spread.low])
        return Interval(low, high)
    if target.kind == "class-far":
        half_width = student_quantile(variances.mean_far_units, confidence) * math.sqrt(variances.mean_far)
        levels = [target.level * math.exp(half_width), target.level * math.exp(-half_width)]
    elif target.kind == "frr":
        known = tar_interval(target.value, variances.tar.trials, variances.tar.units, confidence)
        levels = [-known.low, -known.high]
    else:
        units = min(variances.far_units, variances.tar.units)
        half_width = student_quantile(units, confidence) * math.sqrt(variances.precision)
        centre = float(logit(target.value))
        levels = [float(expit(centre - half_width)), float(expit(centre + half_width))]
    found = [find_threshold(vectors, Wanted(target.achieved, target.choice, level)) for level in levels]
    # If a level is out of reach the interval is open on that side; all thresholds above every score are equal.
    highest = _at_fars(vectors, [0.0])[0] if None in found else threshold
    ends = [highest if end is None else end for end in found]
    return Interval(min(*ends, threshold), max(*ends, threshold))


def _check_data(vectors: LabelledVectors, target: Target, min_classes: int) -> None:
    usable = int(np.count_nonzero(vectors.n_images >= 2))
    if usable < max(min_classes, 2):
        raise NotEnoughEvidence(
            f"choosing a threshold needs at least {max(min_classes, 2)} classes with 2 images or more, found {usable} "
            f"among {len(vectors.classes)} classes; add labelled classes that were not trained on"
        )
    share = target.value if target.kind in {"class-far", "frr"} else target.far
    sign, found = ("positive", vectors.n_positives) if target.kind == "frr" else ("negative", vectors.n_negatives)
    repeats = vectors.positive_repeats if target.kind == "frr" else vectors.repeats
    if share is not None and share * found < _MIN_ERRORS * repeats:
        name = (
            f"target {target}"
            if target.kind in {"false-matches", "class-far"}
            else f"{'FRR' if target.kind == 'frr' else 'FAR'} target of {share:g}"
        )
        enough = enough_data(vectors, _MIN_ERRORS / share, positive=target.kind == "frr")
        found = round(found / repeats)
        raise NotEnoughEvidence(
            f"a {name} needs at least {_MIN_ERRORS / share:.0f} {sign} pairs, found {found}; that takes "
            f"{enough}. Add classes, or ask for {least_target(target, _MIN_ERRORS / max(found, 1))} or more"
        )


def _check_errors(vectors: LabelledVectors, curves: OperatingCurves, target: Target) -> None:
    # Of different images: in rounds a pair counts more than once.
    false_accepts = round(int(curves.negatives_accepted.sum()) // 2 / vectors.repeats)
    n_negatives = round(vectors.n_negatives / vectors.repeats)
    if not curves.negatives_accepted.any() and (target.far is not None or target.kind == "class-far"):
        tie = f"more than a share {target.far or target.value:g} of the negative pairs tie at the highest score"
        if curves.pooled_tar[0] >= _SEPARATED:
            raise NotEnoughEvidence(
                f"the classes are separated: {tie} of such a pair, and {curves.pooled_tar[0]:.3g} of the true pairs "
                f"score higher. From {curves.thresholds[0]:.4f} on no negative pair is accepted, so these images do "
                "not show which threshold the target asks for; add images of classes that look more alike"
            )
        raise NotEnoughEvidence(
            f"{tie}, so no threshold accepts any of them; look for images filed under several classes"
        )
    if false_accepts < _MIN_ERRORS:
        n_enough = n_negatives * _MIN_ERRORS / max(false_accepts, 1)
        raise NotEnoughEvidence(
            f"the threshold {curves.thresholds[0]:.4f} for {target.describe()} accepts {false_accepts} of "
            f"{n_negatives} negative pairs, and a FAR needs {_MIN_ERRORS} or more; "
            f"{'more than ' if false_accepts == 0 else 'about '}{n_enough:.2g} pairs would do, that is "
            f"{enough_data(vectors, n_enough)}. Add classes, or ask for "
            f"{least_target(target, _MIN_ERRORS / n_negatives)} or more, which these pairs can measure"
        )
