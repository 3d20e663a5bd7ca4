"""The four kinds of calibrators, which turn a score into the probability of a match, and their plain JSON.

Platt and beta have a few parameters and extrapolate. Isotonic and Venn-Abers take any rising shape and are constant
beyond the pairs they were fitted on. Fitting is in `fits`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import expit, log_expit

from retrieval.consistency.arguments import checked
from retrieval.consistency.documents import Document, Floats
from retrieval.errors import InvalidInput

MAX_KNOTS = 256

Probabilities: TypeAlias = NDArray[np.float64]


class _Calibrator(Document):
    """What the kinds below share."""

    __slots__ = ()
    noun: ClassVar[str] = "calibrator"


@dataclass(frozen=True, slots=True)
class PlattCalibrator(_Calibrator):
    """Platt scaling: probability expit(slope * score + intercept).

    slope: at least 0. It is 0 if matches do not score higher than other pairs; then every pair gets the prevalence.

    Raises:
        InvalidInput: at construction, when a number is not finite, slope < 0 or prevalence outside (0, 1).

    Source: Platt, "Probabilistic outputs for support vector machines and comparisons to regularized likelihood
    methods", Advances in Large Margin Classifiers, 1999.

    >>> PlattCalibrator(2.0, -1.0, 0.5, 10, 10).probability([0.5, 5.0]).round(4)
    array([0.5   , 0.9999])
    """

    kind: ClassVar[str] = "platt"
    slope: float
    intercept: float
    prevalence: float
    n_positives: int
    n_negatives: int

    def __post_init__(self) -> None:
        check_prevalence(self.prevalence)
        if not (math.isfinite(self.slope) and math.isfinite(self.intercept) and self.slope >= 0):
            raise InvalidInput(
                f"a Platt calibrator needs a finite slope of at least 0 and a finite intercept, found {self.slope} and "
                f"{self.intercept}"
            )

    def probability(self, scores: ArrayLike) -> Probabilities:
        """Return the match probability of scores [n]: [n] float64. Raises InvalidInput on NaN."""
        return np.asarray(expit(self.slope * _numbers(scores) + self.intercept), dtype=np.float64)


@dataclass(frozen=True, slots=True)
class BetaCalibrator(_Calibrator):
    """Beta calibration: probability expit(a log u - b log(1 - u) + c) of u = expit(scale * score + offset) in (0, 1).

    Beta calibration expects probabilities, but scores are any real numbers. So u is the Platt probability at even odds,
    fitted on the same pairs. With a = b this is Platt scaling. scale, a, b: at least 0, so that the map never falls.

    Raises:
        InvalidInput: at construction, when a number is not finite, one of scale, a, b is negative or prevalence outside
            (0, 1).

    Source: Kull, Silva Filho, Flach, "Beta calibration: a well-founded and easily implemented improvement on logistic
    calibration for binary classifiers", AISTATS 2017.

    >>> BetaCalibrator(1.0, 0.0, 1.0, 1.0, 0.0, 0.5, 10, 10).probability([0.0])  # a = b = 1, c = 0 leaves u as it is
    array([0.5])
    """

    kind: ClassVar[str] = "beta"
    scale: float
    offset: float
    a: float
    b: float
    c: float
    prevalence: float
    n_positives: int
    n_negatives: int

    def __post_init__(self) -> None:
        check_prevalence(self.prevalence)
        values = (self.scale, self.offset, self.a, self.b, self.c)
        if not all(math.isfinite(value) for value in values) or min(self.scale, self.a, self.b) < 0:
            raise InvalidInput(
                "a beta calibrator needs finite numbers with scale, a and b at least 0, found scale, offset, a, b, c = "
                f"{values}"
            )

    def probability(self, scores: ArrayLike) -> Probabilities:
        """Return the match probability of scores [n]: [n] float64. Raises InvalidInput on NaN."""
        log_u, minus_log_rest = beta_features(self.scale * _numbers(scores) + self.offset)
        return np.asarray(expit(self.a * log_u + self.b * minus_log_rest + self.c), dtype=np.float64)


def beta_features(z: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return log u and -log(1 - u) of u = expit(z), accurate for every z; both rise with z."""
    return np.asarray(log_expit(z), dtype=np.float64), np.asarray(-log_expit(-z), dtype=np.float64)


@dataclass(frozen=True, slots=True)
class IsotonicCalibrator(_Calibrator):
    """A non-decreasing, piecewise linear map from score to match probability; constant beyond its end knots.

    Raises:
        InvalidInput: at construction, when the knots do not fit.
    """

    kind: ClassVar[str] = "isotonic"
    scores: Floats  # at most 256, ascending
    probabilities: Floats  # at the scores, non-decreasing, strictly between 0 and 1
    prevalence: float
    n_positives: int
    n_negatives: int

    def __post_init__(self) -> None:
        check_prevalence(self.prevalence)
        _check_knots(self.scores, self.probabilities)
        if not 0 < self.probabilities[0] <= self.probabilities[-1] < 1:
            raise InvalidInput("a calibrator's probabilities must lie strictly between 0 and 1")

    def probability(self, scores: ArrayLike) -> Probabilities:
        """Return the match probability of scores [n]: [n] float64. Raises InvalidInput on NaN."""
        return interpolate(_numbers(scores), self.scores, self.probabilities)


@dataclass(frozen=True, slots=True)
class VennAbersCalibrator(_Calibrator):
    """An inductive Venn-Abers predictor: two isotonic maps, one for each possible outcome of the new pair.

    Their distance shows how much one more pair could move the probability. Linear between knots, constant beyond.

    Raises:
        InvalidInput: at construction, when the knots do not fit.

    Source: Vovk, Petej, Fedorova, "Large-scale probabilistic predictors with and without guarantees of validity",
    NeurIPS 2015.

    >>> calibrator = VennAbersCalibrator((0.0, 1.0), (0.1, 0.6), (0.2, 0.9), 0.5, 10, 10)
    >>> calibrator.probability([1.0]), calibrator.width([1.0])  # 0.9 / (1 - 0.6 + 0.9)
    (array([0.69230769]), array([0.3]))
    """

    kind: ClassVar[str] = "venn-abers"
    scores: Floats  # at most 256, ascending
    lower: Floats  # at the scores, non-decreasing in [0, 1]: the new pair counted as no match
    upper: Floats  # at least lower: the new pair counted as a match
    prevalence: float
    n_positives: int
    n_negatives: int

    def __post_init__(self) -> None:
        check_prevalence(self.prevalence)
        _check_knots(self.scores, self.lower)
        _check_knots(self.scores, self.upper)
        if any(low > high for low, high in zip(self.lower, self.upper, strict=True)):
            raise InvalidInput("a calibrator's lower probability must not exceed the upper one")
        if self.lower[-1] >= 1 or self.upper[0] <= 0:
            raise InvalidInput("a calibrator's lower probability must stay below 1 and its upper one above 0")

    def interval(self, scores: ArrayLike) -> tuple[Probabilities, Probabilities]:
        """Return the two probabilities of scores [n], lower and upper: [n] float64 each. Raises InvalidInput on NaN."""
        values = _numbers(scores)
        return interpolate(values, self.scores, self.lower), interpolate(values, self.scores, self.upper)

    def width(self, scores: ArrayLike) -> Probabilities:
        """Return the distance of the two probabilities: [n] float64. Raises InvalidInput on NaN."""
        lower, upper = self.interval(scores)
        return upper - lower

    def probability(self, scores: ArrayLike) -> Probabilities:
        """Merge the two probabilities for log loss, upper / (1 - lower + upper) at the knots: [n] float64.

        Raises InvalidInput on NaN.
        """
        lower, upper = np.array(self.lower), np.array(self.upper)
        merged = np.maximum.accumulate(upper / (1 - lower + upper))  # rises anyway, except for rounding
        return interpolate(_numbers(scores), self.scores, tuple(merged.tolist()))


# A map from score to match probability that never falls as the score rises, so that no ranking changes. prevalence:
# share of matches among the pairs that the probability is about; n_positives, n_negatives: pairs used for the fit.
Calibrator: TypeAlias = PlattCalibrator | BetaCalibrator | IsotonicCalibrator | VennAbersCalibrator
_KINDS: dict[str, type[Calibrator]] = {
    kind.kind: kind for kind in (PlattCalibrator, BetaCalibrator, IsotonicCalibrator, VennAbersCalibrator)
}
CALIBRATOR_KINDS = tuple(_KINDS)


@checked
def calibrator_from_json(document: Mapping[str, Any]) -> Calibrator:
    """Return the calibrator of a document that `to_json` wrote, for every kind.

    Raises:
        InvalidInput: an unknown kind, a missing field or an impossible value.

    >>> calibrator_from_json(PlattCalibrator(2.0, -1.0, 0.5, 10, 10).to_json()).kind
    'platt'
    """
    kind = _KINDS.get(str(document.get("kind")))
    if kind is None:
        raise InvalidInput(f"expected a calibrator of kind {', '.join(_KINDS)}, found {document.get('kind')!r}")
    return kind.from_json(document)


def interpolate(values: NDArray[np.float64], scores: Floats, probabilities: Floats) -> Probabilities:
    """Return the piecewise linear map at values [n], constant beyond its knots, rising without a rounding error."""
    knots = np.asarray(probabilities, dtype=np.float64)
    after = np.searchsorted(np.asarray(scores), values, side="right")
    left, right = knots[np.maximum(after - 1, 0)], knots[np.minimum(after, len(knots) - 1)]
    return np.asarray(np.clip(np.interp(values, scores, knots), left, right), dtype=np.float64)


def _numbers(scores: ArrayLike) -> NDArray[np.float64]:
    try:
        values = np.asarray(scores, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise InvalidInput(f"scores must be numbers: {error}") from error
    if np.isnan(values).any():
        raise InvalidInput("scores must be numbers, found NaN")
    return values


def check_prevalence(prevalence: float) -> None:
    """Raise InvalidInput unless the share of matches lies strictly between 0 and 1."""
    if not 0 < prevalence < 1:
        raise InvalidInput(
            f"a calibrator's prevalence is the share of matches and lies strictly between 0 and 1, found {prevalence}"
        )


def _check_knots(scores: Floats, probabilities: Floats) -> None:
    x, p = np.array(scores, dtype=np.float64), np.array(probabilities, dtype=np.float64)
    ordered = (
        x.shape == p.shape and 0 < len(x) <= MAX_KNOTS and bool((np.diff(x) > 0).all() and (np.diff(p) >= 0).all())
    )
    if not ordered or not np.isfinite(x).all() or not ((p >= 0) & (p <= 1)).all():
        raise InvalidInput(
            f"a calibrator needs 1 to {MAX_KNOTS} ascending finite scores with non-decreasing probabilities between 0 "
            f"and 1, found {len(x)} scores and {len(p)} probabilities that are not"
        )
