"""Calibrators of any rising shape: isotonic regression and Venn-Abers. They claim nothing beyond the pairs they saw."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import ArrayLike

from retrieval.consistency.calibration.calibrator import (
    Knots,
    Probabilities,
    check_knots,
    check_prevalence,
    document_of,
    fields_of,
    interpolate,
    numbers,
)
from retrieval.errors import InvalidInput


@dataclass(frozen=True, slots=True)
class IsotonicCalibrator:
    """A non-decreasing, piecewise linear map from score to match probability.

    scores: at most 256 ascending knots; probabilities: at the knots, non-decreasing, strictly between 0 and 1.
    Beyond the end knots the probability is that of the end knot.

    Raises:
        InvalidInput: at construction, when the knots break one of these rules.
    """

    kind: ClassVar[str] = "isotonic"
    scores: Knots
    probabilities: Knots
    prevalence: float
    n_positives: int
    n_negatives: int

    def __post_init__(self) -> None:
        check_prevalence(self.prevalence)
        check_knots(self.scores, self.probabilities)
        if not 0 < self.probabilities[0] <= self.probabilities[-1] < 1:
            raise InvalidInput("a calibrator's probabilities must lie strictly between 0 and 1")

    def probability(self, scores: ArrayLike) -> Probabilities:
        """Return the match probability of scores [n]: [n] float64. Raises InvalidInput on NaN."""
        return interpolate(numbers(scores), self.scores, self.probabilities)

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON types from which `from_json` makes an equal calibrator."""
        return document_of(self)

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> IsotonicCalibrator:
        """Undo `to_json`. Raises InvalidInput on another kind, a missing field or values that are no calibrator."""
        return cls(**fields_of(cls.kind, document, knots=("scores", "probabilities")))


@dataclass(frozen=True, slots=True)
class VennAbersCalibrator:
    """An inductive Venn-Abers predictor: two isotonic maps, one for each answer that the new pair may turn out to be.

    scores: at most 256 ascending knots; lower, upper: at the knots, non-decreasing in [0, 1], lower <= upper, the
    isotonic probability with the new pair counted as no match and as a match. Their distance says how much one pair
    more could move the answer: wide where calibration pairs are few. Linear between knots, constant beyond.

    Raises:
        InvalidInput: at construction, when the knots break one of these rules.

    Source: Vovk, Petej, Fedorova, "Large-scale probabilistic predictors with and without guarantees of validity",
    NeurIPS 2015.

    >>> calibrator = VennAbersCalibrator((0.0, 1.0), (0.1, 0.6), (0.2, 0.9), 0.5, 10, 10)
    >>> calibrator.probability([1.0]), calibrator.width([1.0])  # 0.9 / (1 - 0.6 + 0.9)
    (array([0.69230769]), array([0.3]))
    """

    kind: ClassVar[str] = "venn-abers"
    scores: Knots
    lower: Knots
    upper: Knots
    prevalence: float
    n_positives: int
    n_negatives: int

    def __post_init__(self) -> None:
        check_prevalence(self.prevalence)
        check_knots(self.scores, self.lower)
        check_knots(self.scores, self.upper)
        if any(low > high for low, high in zip(self.lower, self.upper, strict=True)):
            raise InvalidInput("a calibrator's lower probability must not exceed the upper one")
        if self.lower[-1] >= 1 or self.upper[0] <= 0:
            raise InvalidInput("a calibrator's lower probability must stay below 1 and its upper one above 0")

    def interval(self, scores: ArrayLike) -> tuple[Probabilities, Probabilities]:
        """Return the two probabilities of scores [n], lower and upper: [n] float64 each. Raises InvalidInput on NaN."""
        values = numbers(scores)
        return interpolate(values, self.scores, self.lower), interpolate(values, self.scores, self.upper)

    def width(self, scores: ArrayLike) -> Probabilities:
        """Return the distance of the two probabilities: [n] float64. Raises InvalidInput on NaN."""
        lower, upper = self.interval(scores)
        return upper - lower

    def probability(self, scores: ArrayLike) -> Probabilities:
        """Return the two probabilities merged as log loss asks, upper / (1 - lower + upper) at the knots: [n] float64.

        Raises InvalidInput on NaN.
        """
        lower, upper = np.array(self.lower), np.array(self.upper)
        merged = np.maximum.accumulate(upper / (1 - lower + upper))  # rises by itself but for rounding
        return interpolate(numbers(scores), self.scores, tuple(merged.tolist()))

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON types from which `from_json` makes an equal calibrator."""
        return document_of(self)

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> VennAbersCalibrator:
        """Undo `to_json`. Raises InvalidInput on another kind, a missing field or values that are no calibrator."""
        return cls(**fields_of(cls.kind, document, knots=("scores", "lower", "upper")))
