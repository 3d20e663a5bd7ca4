"""Calibrators of a few numbers: Platt scaling and beta calibration. They extrapolate; few pairs suffice to fit them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import expit, log_expit

from retrieval.consistency.calibration.calibrator import (
    Probabilities,
    check_prevalence,
    document_of,
    fields_of,
    numbers,
)
from retrieval.errors import InvalidInput


@dataclass(frozen=True, slots=True)
class PlattCalibrator:
    """Platt scaling: probability expit(slope * score + intercept).

    slope: at least 0; 0, where matches do not score higher than others, gives every pair the prevalence.

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
        return np.asarray(expit(self.slope * numbers(scores) + self.intercept), dtype=np.float64)

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON types from which `from_json` makes an equal calibrator."""
        return document_of(self)

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> PlattCalibrator:
        """Undo `to_json`. Raises InvalidInput on another kind, a missing field or values that are no calibrator."""
        return cls(**fields_of(cls.kind, document, floats=("slope", "intercept")))


@dataclass(frozen=True, slots=True)
class BetaCalibrator:
    """Beta calibration: probability expit(a log u - b log(1 - u) + c) of u = expit(scale * score + offset) in (0, 1).

    Beta calibration is about scores that are probabilities. Cosines lie in [-1, 1] and cohort scores anywhere, so u is
    what a classifier would say: the Platt probability at even odds, fitted on the same pairs. Any real score is mapped
    without clipping; far below the point of even odds log odds rise with slope a * scale, far above it with slope
    b * scale, and a = b is Platt scaling.

    scale, a, b: at least 0, so that the map never falls.

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
        log_u, minus_log_rest = beta_features(self.scale * numbers(scores) + self.offset)
        return np.asarray(expit(self.a * log_u + self.b * minus_log_rest + self.c), dtype=np.float64)

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON types from which `from_json` makes an equal calibrator."""
        return document_of(self)

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> BetaCalibrator:
        """Undo `to_json`. Raises InvalidInput on another kind, a missing field or values that are no calibrator."""
        return cls(**fields_of(cls.kind, document, floats=("scale", "offset", "a", "b", "c")))


def beta_features(z: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return log u and -log(1 - u) of u = expit(z), accurate for every z; both rise with z."""
    return np.asarray(log_expit(z), dtype=np.float64), np.asarray(-log_expit(-z), dtype=np.float64)
