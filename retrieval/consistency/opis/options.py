"""What is asked of OPIS, carried as one value, and what it means for given curves.

How the answer is computed is left to `opis`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from retrieval.consistency.curves.curves import OperatingCurves, Rates
from retrieval.consistency.opis.utility import Axis, Band, find_band
from retrieval.consistency.opis.weighting import Weighting, weigh_classes


@dataclass(frozen=True, slots=True, kw_only=True)
class OpisOptions:
    """What is asked; see `opis` for each."""

    far_low: float
    far_high: float
    axis: Axis
    distance_range: tuple[float, float] | None
    c: float
    eps: float
    weighting: Weighting
    n_bootstrap: int
    confidence: float

    def band_of(self, curves: OperatingCurves) -> Band:
        """Return where to integrate, see `find_band`."""
        limits = {"far_low": self.far_low, "far_high": self.far_high}
        return find_band(curves, **limits, axis=self.axis, distance_range=self.distance_range)

    def weights_of(self, curves: OperatingCurves) -> Rates:
        """Return the weight of each class with positives, sum 1: [T'] float64."""
        rows = np.flatnonzero(curves.with_positives)
        return weigh_classes(self.weighting, tuple(curves.classes[row] for row in rows), curves.n_images[rows])
