"""A threshold that bounds the FAR of an unseen class, with a stated probability and no assumption on scores."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from retrieval.consistency.curves import OperatingCurves
from retrieval.errors import InvalidInput, NotEnoughEvidence


@dataclass(frozen=True, slots=True)
class Certificate:
    """At `threshold`, a new class has FAR at most alpha with probability at least 1 - delta; from n_classes classes."""

    threshold: float
    alpha: float
    delta: float
    n_classes: int

    def __str__(self) -> str:
        return (
            f"at threshold {self.threshold:.4f} a new class has FAR <= {self.alpha:g} with probability >= "
            f"{1 - self.delta:g} (from {self.n_classes} classes)"
        )


def certify(curves: OperatingCurves, *, alpha: float, delta: float) -> Certificate:
    """Return the certificate of the lowest threshold of the curves that has one.

    Each class gives the smallest threshold at which its FAR is at most alpha; the ceil((n + 1)(1 - delta))-th smallest
    of the n holds for a class drawn like them. Class i's FAR is over its pairs with the other calibration classes, so
    the statement is about a new class among such classes, and averages over the draw of all of them. Thresholds between
    those of the curves are rounded up, which keeps it true.

    Raises:
        InvalidInput: alpha or delta outside (0, 1).
        NotEnoughEvidence: fewer than 1 / delta - 1 classes, or too many classes exceed alpha at the highest threshold
            of the curves.

    Source: split conformal prediction, Vovk, Gammerman, Shafer, "Algorithmic Learning in a Random World" (2005).
    """
    if not 0 < alpha < 1 or not 0 < delta < 1:
        raise InvalidInput(f"alpha and delta must lie strictly between 0 and 1, found {alpha} and {delta}")
    n = len(curves.classes)
    # The subtraction forgives products such as 20 * (1 - 0.05) that round just above a whole number.
    rank = math.ceil((n + 1) * (1 - delta) - 1e-9)
    if rank > n:
        raise NotEnoughEvidence(
            f"a certificate with delta {delta:g} needs at least {math.ceil(1 / delta - 1 - 1e-9)} classes, found {n}; "
            "add classes or raise delta"
        )
    holds = curves.far <= alpha
    first = np.where(holds.any(axis=1), holds.argmax(axis=1), len(curves.thresholds))
    column = int(np.sort(first)[rank - 1])
    if column == len(curves.thresholds):
        raise NotEnoughEvidence(
            f"{np.count_nonzero(first == column)} of {n} classes exceed FAR {alpha:g} even at the highest threshold "
            f"{curves.thresholds[-1]:.6g}; compute the curves up to higher thresholds or raise alpha"
        )
    return Certificate(float(curves.thresholds[column]), alpha, delta, n)
