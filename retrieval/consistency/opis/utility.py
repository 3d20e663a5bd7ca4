"""The utility of a class at a threshold, and the band of thresholds over which utilities are compared.

`measure`, `noise` and `debiased` summarise the band.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

import numpy as np
from numpy.typing import NDArray

from retrieval.consistency.curves import OperatingCurves, Rates
from retrieval.errors import InvalidInput, NotEnoughEvidence

Axis: TypeAlias = Literal["distance", "log_far"]

# With fewer false accepts at far_low, single pairs decide that end of the band.
_MIN_FALSE_ACCEPTS = 10
# Bounds the memory of intermediate arrays: 8 MiB each with 1,000 nodes.
_BLOCK_CLASSES = 1024


@dataclass(frozen=True, slots=True, eq=False)
class Band:
    """The p thresholds over which OPIS integrates."""

    nodes: Rates  # [p], thresholds, ascending
    positions: Rates  # [p], the nodes on the chosen axis, monotone
    pooled_far: Rates  # [p], at the nodes

    @property
    def weights(self) -> Rates:
        """Weights of the nodes by the trapezoid rule on the axis, sum 1: [p] float64."""
        widths = np.abs(np.diff(self.positions))
        return np.asarray((np.append(widths, 0) + np.append(0, widths)) / (2 * widths.sum()), dtype=np.float64)

    def mean(self, values: Rates) -> Rates:
        """Return the mean over the band of values [..., p]: [...] float64."""
        return np.asarray(values @ self.weights, dtype=np.float64)

    def thinned(self, n_nodes: int) -> Band:
        """Return the band with at most n_nodes of its nodes, both ends kept, for what varies smoothly."""
        kept = np.unique(np.linspace(0, len(self.nodes) - 1, n_nodes).round().astype(np.int64))
        return Band(self.nodes[kept], self.positions[kept], self.pooled_far[kept])


def find_band(
    curves: OperatingCurves, *, far_low: float, far_high: float, axis: Axis, distance_range: tuple[float, float] | None
) -> Band:
    """Return the band between two pooled FARs, or between two distances if distance_range is given.

    Its ends are interpolated between thresholds of the curves; inside, it uses all of them.

    Raises:
        InvalidInput: impossible limits, scores that do not fit the axis, or thresholds that do not cover the band.
        NotEnoughEvidence: fewer than 10 false accepts expected at far_low, or the pooled FAR does not change.
    """
    if axis not in get_args(Axis):
        raise InvalidInput(f"axis must be one of {get_args(Axis)}, found {axis!r}")
    if not curves.cosine and (axis == "distance" or distance_range is not None):
        raise InvalidInput("a distance exists only for cosine scores of unit vectors; use axis='log_far' with two FARs")
    if distance_range is None:
        low, high = _far_limits(curves, far_low, far_high)
    else:
        low, high = threshold_limits(distance_range)
    thresholds = curves.thresholds
    if len(thresholds) < 2 or thresholds[0] > low or thresholds[-1] < high:
        raise InvalidInput(
            f"the band reaches from threshold {low:.6g} to {high:.6g}, the curves hold {len(thresholds)} thresholds "
            f"from {thresholds[0]:.6g} to {thresholds[-1]:.6g}; compute them on threshold_grid for these limits"
        )
    nodes = np.concatenate([[low], thresholds[(thresholds > low) & (thresholds < high)], [high]])
    pooled_far = np.interp(nodes, thresholds, curves.pooled_far)
    if axis == "log_far" and pooled_far[-1] <= 0:
        raise NotEnoughEvidence("no false accept at the strict end of the band; its logarithm does not exist; widen it")
    positions = np.sqrt(np.maximum(2 - 2 * nodes, 0)) if axis == "distance" else np.log(pooled_far)
    if positions[0] == positions[-1]:
        raise NotEnoughEvidence("the band has no width: nearly all negative pairs share one score")
    return Band(nodes, positions, pooled_far)


def threshold_limits(distance_range: tuple[float, float]) -> tuple[float, float]:
    """Return the (lowest, highest) cosine threshold of a range of distances (d_min, d_max).

    Raises:
        InvalidInput: not 0 <= d_min < d_max <= 2.
    """
    nearest, farthest = distance_range
    if not 0 <= nearest < farthest <= 2:
        raise InvalidInput(f"expected 0 <= d_min < d_max <= 2, found {distance_range}")
    return 1 - farthest**2 / 2, 1 - nearest**2 / 2


def _far_limits(curves: OperatingCurves, far_low: float, far_high: float) -> tuple[float, float]:
    if not 0 < far_low < far_high < 1:
        raise InvalidInput(f"expected 0 < far_low < far_high < 1, found {far_low} and {far_high}")
    expected = far_low * curves.n_negative_pairs
    if expected < _MIN_FALSE_ACCEPTS:
        raise NotEnoughEvidence(
            f"at least {_MIN_FALSE_ACCEPTS} false accepts are needed at FAR {far_low:g}, {curves.n_negative_pairs} "
            f"negative pairs give {expected:.3g}; add images or raise far_low"
        )
    falling = curves.pooled_far
    if falling[0] < far_high or falling[-1] > far_low:
        raise InvalidInput(
            f"the curves cover pooled FAR {falling[-1]:.3g} to {falling[0]:.3g}, expected {far_low:g} to "
            f"{far_high:g}; compute them on threshold_grid for these limits"
        )
    low, high = np.interp([far_high, far_low], falling[::-1], curves.thresholds[::-1])
    return float(low), float(high)


def utility(tar: Rates, far: Rates, c: float) -> Rates:
    """Return the F-measure of TAR and TRR = 1 - FAR, same shape; c > 1 weighs TAR more; 0 if both are 0.

    Raises:
        InvalidInput: c is not positive.
    """
    if not c > 0:
        raise InvalidInput(f"c must be positive, found {c}")
    trr = 1 - far
    numerator, denominator = (1 + c * c) * trr * tar, c * c * trr + tar
    return np.divide(numerator, denominator, out=np.zeros_like(denominator), where=denominator > 0)


def utility_slopes(tar: Rates, far: Rates, c: float) -> tuple[Rates, Rates]:
    """Return the derivatives of `utility` by TAR and by TRR = 1 - FAR, same shape; 0 if both rates are 0."""
    trr = 1 - far
    scale = np.divide(1 + c * c, (c * c * trr + tar) ** 2, out=np.zeros_like(tar), where=c * c * trr + tar > 0)
    return np.asarray(scale * c * c * trr**2, dtype=np.float64), np.asarray(scale * tar**2, dtype=np.float64)


def class_utilities(curves: OperatingCurves, band: Band, c: float) -> Rates:
    """Return the utility of each class with positives at the nodes of the band: [T', p] float64."""
    rows = np.flatnonzero(curves.with_positives)
    found = np.empty((len(rows), len(band.nodes)))
    for start in range(0, len(rows), _BLOCK_CLASSES):
        block = slice(start, start + _BLOCK_CLASSES)
        found[block] = utility(*_rates(curves, rows[block], band), c)
    return found


def rates_at_nodes(curves: OperatingCurves, band: Band) -> tuple[Rates, Rates]:
    """Return TAR and FAR of each class with positives at the nodes of the band: two [T', p] float64."""
    return _rates(curves, np.flatnonzero(curves.with_positives), band)


def _rates(curves: OperatingCurves, rows: NDArray[np.int64], band: Band) -> tuple[Rates, Rates]:
    first, last = np.searchsorted(curves.thresholds, band.nodes[[0, -1]])
    columns = slice(max(int(first) - 1, 0), int(last) + 1)  # of the band, and a neighbour on either side
    thresholds = curves.thresholds[columns]
    tar = at_nodes(curves.positives_accepted[rows, columns], thresholds, band.nodes)
    far = at_nodes(curves.negatives_accepted[rows, columns], thresholds, band.nodes)
    tar /= curves.positives[rows, None]
    far /= np.maximum(curves.negatives[rows, None], 1)
    return tar, far


def at_nodes(values: NDArray[np.int64] | Rates, thresholds: Rates, nodes: Rates) -> Rates:
    """Return values [..., m] of ascending thresholds [m >= 2], interpolated linearly at nodes inside: [..., p]."""
    left = np.clip(np.searchsorted(thresholds, nodes, side="right") - 1, 0, len(thresholds) - 2)
    share = (nodes - thresholds[left]) / (thresholds[left + 1] - thresholds[left])
    found = values[..., left].astype(np.float64)
    between = np.flatnonzero(share > 0)  # of a band, the two ends
    found[..., between] += share[between] * (values[..., left[between] + 1] - found[..., between])
    return found
