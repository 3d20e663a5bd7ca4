"""How often a stranger, a query whose class the catalogue does not hold, is accepted with an item: its FAR.

A member and a stranger meet the same items of other classes. The two rates differ if a calibration splits the images of
a class, because a catalogue holds all of them, and a class of more images is pulled together more.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from retrieval.consistency.arguments import checked
from retrieval.consistency.curves import count_accepted
from retrieval.consistency.intervals import Interval, check_confidence
from retrieval.consistency.pairs.vectors import LabelledVectors
from retrieval.consistency.thresholds.rate_variances import far_variances, log_interval, predicted_interval
from retrieval.errors import InvalidInput


@dataclass(frozen=True, slots=True, kw_only=True)
class StrangerRate:
    """The FAR of strangers at a threshold, over the pairs of a query and an item of another class.

    The interval has the stated confidence and is about the population of the classes. Without a false accept it reaches
    from 0 to the FAR of 3 independent pairs of units (of classes, or of families if they are named), for 95 %.
    """

    far: float
    interval: Interval
    n_classes: int
    n_images: int
    confidence: float
    class_variance: float  # of log FAR, as in `ThresholdChoice`
    pair_variance: float
    far_units: float

    @checked
    def predicted(self, n_new_classes: int) -> Interval:
        """Predict the FAR of strangers among n_new_classes other classes, with the stated confidence.

        Raises:
            InvalidInput: fewer than two new classes.
        """
        if n_new_classes < 2:
            raise InvalidInput(f"the FAR of strangers needs at least 2 new classes, found {n_new_classes}")
        if self.far == 0:
            fewer = min(1.0, n_new_classes / self.n_classes)
            return Interval(0.0, _rule_of_three(fewer * self.far_units, self.confidence))
        ratio = self.n_classes / n_new_classes
        old = self.class_variance + self.pair_variance
        new = self.class_variance * ratio + self.pair_variance * ratio**2
        return predicted_interval(self.far, (old, new), self.far_units, self.confidence)

    def exceeds(self, target_far: float) -> bool:
        """Return whether the rate is above the target by more than chance explains."""
        return self.interval.low > target_far

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON types from which `from_json` makes an equal value."""
        return asdict(self)

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> StrangerRate:
        """Undo `to_json`. Raises InvalidInput: a missing, surplus or malformed field."""
        try:
            return cls(**{**document, "interval": Interval(**document["interval"])})
        except (KeyError, TypeError) as error:
            raise InvalidInput(f"the document of a rate of strangers is incomplete or malformed: {error!r}") from error


@checked
def stranger_rate(vectors: LabelledVectors, threshold: float, *, confidence: float = 0.95) -> StrangerRate:
    """Return the FAR of strangers at a threshold.

    vectors: see `pairs.rounds.strangers`; families of classes are the units if they are named, else groups of
    look-alike classes widen the interval, see `find_look_alikes`.

    Raises:
        InvalidInput: a threshold that is not finite, or confidence outside (0, 1).

    >>> from retrieval.consistency.pairs.rounds import strangers
    >>> rows = np.array([[1, 0], [0.8, 0.6], [0, 1]], dtype=np.float32)
    >>> round(stranger_rate(strangers(rows, rows, ["a", "a", "b"]), 0.5).far, 3)  # 0.8 . 0 + 0.6 . 1, twice of 4
    0.5
    """
    check_confidence(confidence)
    if not np.isfinite(threshold):
        raise InvalidInput(f"threshold must be finite, found {threshold}")
    curves = count_accepted(vectors, np.array([threshold]))
    far, n_classes = float(curves.pooled_far[0]), len(vectors.classes)
    if far == 0:
        n_units = float(vectors.n_families or n_classes)
        variances, interval = (0.0, 0.0, n_units), Interval(0.0, _rule_of_three(n_units, confidence))
    else:
        variances = far_variances(vectors, curves)
        interval = log_interval(far, variances[0] + variances[1], variances[2], confidence)
    return StrangerRate(
        far=far,
        interval=interval,
        n_classes=n_classes,
        n_images=len(vectors.codes),
        confidence=confidence,
        class_variance=variances[0],
        pair_variance=variances[1],
        far_units=variances[2],
    )


def _rule_of_three(n_units: float, confidence: float) -> float:
    """Return the FAR that no false accept leaves possible, if each pair of units stands or falls as a whole.

    Source: Hanley, Lippman-Hand, "If nothing goes wrong, is everything all right?", JAMA 249 (1983); 3 is for 95 %.
    """
    n_pairs = n_units * (n_units - 1) / 2
    return min(-math.log(1 - confidence) / max(n_pairs, 1.0), 1.0)
