"""The options of OPIS, as one value, and what they mean for given curves; `measure` computes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from retrieval.consistency.arguments import check_fields
from retrieval.consistency.curves import OperatingCurves, Rates
from retrieval.consistency.opis.utility import Axis, Band, find_band
from retrieval.consistency.opis.weighting import Weighting, weigh_classes


@dataclass(frozen=True, slots=True, kw_only=True)
class OpisOptions:
    """The options of OPIS; impossible values are refused when they are used."""

    # The band holds the thresholds at which the pooled FAR lies between these two.
    far_low: float = 1e-2
    far_high: float = 1e-1
    # "distance" integrates over d = sqrt(2 - 2 s), as in the paper, and needs cosine scores; "log_far" integrates over
    # the logarithm of the pooled FAR, so that scores and models can be compared.
    axis: Axis = "distance"
    distance_range: tuple[float, float] | None = None  # (d_min, d_max), replaces the two FARs as the ends of the band
    c: float = 1.0  # weight of TAR against TRR in the utility; above 1, TAR counts more
    eps: float = 10.0  # percentage of the classes that eps-OPIS takes at either end, in (0, 50]
    # Of the classes in every mean over classes: "equal" as in the paper, "images" in proportion to their images, or a
    # weight for each class by name.
    weighting: Weighting = "equal"
    n_bootstrap: int = 1000  # replicates of the bootstrap over classes
    confidence: float = 0.95

    def __post_init__(self) -> None:
        check_fields(self)

    def band_of(self, curves: OperatingCurves) -> Band:
        """Return where to integrate, see `find_band`."""
        limits = {"far_low": self.far_low, "far_high": self.far_high}
        return find_band(curves, **limits, axis=self.axis, distance_range=self.distance_range)

    def weights_of(self, curves: OperatingCurves) -> Rates:
        """Return the weight of each class with positives, sum 1: [T'] float64."""
        rows = np.flatnonzero(curves.with_positives)
        return weigh_classes(self.weighting, tuple(curves.classes[row] for row in rows), curves.n_images[rows])
