"""OPIS without sampling noise: the share of each class, and a bound if the classes have too few images.

`noise` measures the noise; `measure` and `comparison` turn the shares into a value with an interval.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from retrieval.consistency.curves import OperatingCurves, Rates
from retrieval.consistency.opis.noise import TarNoise
from retrieval.consistency.opis.utility import Band, rates_at_nodes, utility, utility_slopes

# "pairs": estimated from pairs without a common image, or in rounds from several queries of a class; "bound": only
# bounded, fewer than 10 classes have four images.
DebiasedMethod: TypeAlias = Literal["pairs", "bound"]

# A variance over fewer classes is not reported.
MIN_CLASSES = 10
_NEGLIGIBLE = 1e-12
# Factor on the true variance, to differentiate the pull.
_STEP = 1.05


@dataclass(frozen=True, slots=True, eq=False)
class DebiasedShares:
    """What each of k classes adds to the debiased OPIS."""

    shares: Rates  # [k], their weighted mean is the estimate or its upper bound
    weights: Rates  # [k], sum 1
    rows: NDArray[np.int64]  # [k], which of the classes with positives
    method: DebiasedMethod

    @property
    def mean(self) -> float:
        """The debiased OPIS, or with method "bound" the largest value that the data allow."""
        return float(self.weights @ self.shares)


def debiased_shares(
    curves: OperatingCurves, noise: TarNoise, band: Band, *, weights: Rates, c: float
) -> DebiasedShares | None:
    """Return each class's share of OPIS without sampling noise; None with fewer than 10 classes that count.

    Classes with four images count; if these are fewer than 10, all classes. weights: [T'], of classes with positives;
    noise: at the nodes of the band.
    """
    counted = noise.measurable & (weights > 0)
    method: DebiasedMethod = "pairs"
    if np.count_nonzero(counted) < MIN_CLASSES:
        counted, method = weights > 0, "bound"
    if np.count_nonzero(counted) < MIN_CLASSES:
        return None
    rows = np.flatnonzero(counted)
    tar, far = rates_at_nodes(curves, band)
    kept = weights[rows] / weights[rows].sum()
    shares = _shares(tar[rows], far[rows], noise.variance[rows], noise.relative[rows], kept, c)
    return DebiasedShares(band.mean(shares), kept, rows, method)


def _shares(tar: Rates, far: Rates, noise: Rates, relative_noise: Rates, weights: Rates, c: float) -> Rates:
    """Return shares of the variance of utility over classes at each node, [k, p].

    noise: [k, p], variance of TAR; relative_noise: [k], proportional to its expectation given the size of the class.

    To first order the deviation of a utility is g . (TAR - mean, TRR - mean); noise can be subtracted from its square
    exactly: `linear`. For the curvature, classes are pulled to the mean until they vary as much as the true ones must;
    the variance of their utilities over that of their linear parts is the factor `bend`, 1 if classes are alike. With
    many images there is no noise and no pull: then a share is the squared deviation of the utility itself.
    The mean of the shares is bend times the mean of linear. The rest has mean 0: it is the effect of a class on bend,
    by its own utility and by moving the pull, so that the spread of the shares is that of the estimate.
    """
    tar_mean, far_mean = weights @ tar, weights @ far
    slopes = utility_slopes(tar_mean, far_mean, c)
    apart = tar - tar_mean
    own = (1 - weights)[:, None] * noise  # a class takes its share of its own noise away with the mean
    square, mean_noise = apart**2 - own, np.maximum(weights @ noise, 0)
    linear = (slopes[0] * apart + slopes[1] * (far_mean - far)) ** 2 - slopes[0] ** 2 * own
    true_variance = np.maximum(weights @ square, 0)
    expected_noise = np.multiply.outer(relative_noise, mean_noise / (weights @ relative_noise))

    def pulled(variance: Rates) -> tuple[Rates, Rates, Rates]:
        total = variance + expected_noise
        pull = np.sqrt(np.divide(variance, total, out=np.ones_like(total), where=total > 0))
        return _bend(tar_mean + pull * apart, far, slopes, weights, c)

    bend, bent, straight = pulled(true_variance)
    known = (true_variance > _NEGLIGIBLE) & (mean_noise > _NEGLIGIBLE)
    by_pull = np.where(known, (pulled(true_variance * _STEP)[0] - bend) / np.log(_STEP), 0) * (weights @ linear)
    moved = square / np.where(known, true_variance, 1) - noise / np.where(known, mean_noise, 1)
    return np.asarray(bent + bend * (linear - straight) + by_pull * (moved - weights @ moved), dtype=np.float64)


def _bend(tar: Rates, far: Rates, slopes: tuple[Rates, Rates], weights: Rates, c: float) -> tuple[Rates, Rates, Rates]:
    """Return the variance of utility over that of its linear part, [p], and the squared deviations of both, [k, p]."""
    utilities, straight = utility(tar, far, c), slopes[0] * tar - slopes[1] * far
    bent, straight = ((values - weights @ values) ** 2 for values in (utilities, straight))
    bend = np.ones_like(slopes[0])
    np.divide(weights @ bent, weights @ straight, out=bend, where=weights @ straight > _NEGLIGIBLE)
    return bend, bent, straight
