"""Measure how reliable forecast probabilities are: reliability bins, ECE, Brier score and log loss."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from retrieval.consistency.arguments import checked
from retrieval.errors import InvalidInput

_Bins: TypeAlias = NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class Reliability:
    """Forecast against outcome, in b bins of equal width on [0, 1], each [b] float64."""

    edges: NDArray[np.float64]  # [b + 1]
    mean_probability: NDArray[np.float64]  # 0 in empty bins
    match_rate: NDArray[np.float64]  # 0 in empty bins
    weight: NDArray[np.float64]  # share of the total weight
    brier: float  # weighted mean squared error
    ece: float  # weighted mean gap between probability and match rate over bins
    log_loss: float  # weighted mean of -log(probability given to what happened), infinite if that was 0


@checked
def reliability(
    probabilities: NDArray[np.float64],
    matches: NDArray[np.bool_],
    *,
    weights: NDArray[np.float64] | None = None,
    n_bins: int = 10,
) -> Reliability:
    """Return reliability bins, Brier score, expected calibration error and log loss of forecasts [n] and outcomes [n].

    weights [n] restore the prevalence if pairs were drawn at another one; without them, all pairs count the same.

    Raises:
        InvalidInput: no forecast, lengths that differ, values outside [0, 1], or weights that are negative or all zero.

    Source: Brier, "Verification of forecasts expressed in terms of probability", Monthly Weather Review 78 (1950);
    Naeini, Cooper, Hauskrecht, "Obtaining well calibrated probabilities using Bayesian binning", AAAI 2015 (ECE).

    >>> reliability(np.array([0.2, 0.8]), np.array([False, True])).brier
    0.04
    """
    if weights is None:
        weights = np.ones(len(probabilities))
    if len(probabilities) == 0 or not len(probabilities) == len(matches) == len(weights) or n_bins < 1:
        raise InvalidInput(
            f"expected as many probabilities as matches and weights, at least one, and n_bins >= 1, found "
            f"{len(probabilities)}, {len(matches)}, {len(weights)} and {n_bins}"
        )
    if not ((probabilities >= 0) & (probabilities <= 1)).all() or not (weights >= 0).all() or weights.sum() == 0:
        raise InvalidInput("probabilities must lie in [0, 1]; weights must not be negative, nor all zero")
    share = weights / weights.sum()
    bins = np.minimum((probabilities * n_bins).astype(np.int64), n_bins - 1)
    weight = np.bincount(bins, share, n_bins).astype(np.float64)
    forecast = np.bincount(bins, share * probabilities, n_bins).astype(np.float64)
    outcome = np.bincount(bins, share * matches, n_bins).astype(np.float64)
    given = np.where(matches, probabilities, 1 - probabilities)
    counted = share > 0
    with np.errstate(divide="ignore"):  # an outcome of forecast probability 0 costs infinity
        losses = -np.log(given[counted])
    brier, log_loss = math.fsum(share * (probabilities - matches) ** 2), float((share[counted] * losses).sum())
    return _of_bins(weight, forecast, outcome, brier, log_loss)


def mean_reliability(parts: Sequence[Reliability]) -> Reliability:
    """Merge the reliability of parts with the same bins; each part has the same total weight.

    Brier score and log loss are the means of those of the parts. ECE is computed again, because gaps of opposite signs
    in different parts cancel.
    """
    weight = np.mean([part.weight for part in parts], axis=0)
    forecast = np.mean([part.weight * part.mean_probability for part in parts], axis=0)
    outcome = np.mean([part.weight * part.match_rate for part in parts], axis=0)
    brier, log_loss = (float(np.mean([getattr(part, name) for part in parts])) for name in ("brier", "log_loss"))
    return _of_bins(weight, forecast, outcome, brier, log_loss)


def _of_bins(weight: _Bins, forecast: _Bins, outcome: _Bins, brier: float, log_loss: float) -> Reliability:
    """Return the report of bins: weight, and weighted sums of forecasts and outcomes, [b] each."""
    scale = np.where(weight > 0, weight, 1)
    return Reliability(
        edges=np.linspace(0, 1, len(weight) + 1),
        mean_probability=forecast / scale,
        match_rate=outcome / scale,
        weight=weight,
        brier=brier,
        ece=float(np.abs(forecast - outcome).sum()),
        log_loss=log_loss,
    )
