"""Fit a calibrator on scores [n] float32 and whether each pair matches [n] bool, at a stated prevalence.

Drawing the pairs and comparing the kinds on held-out classes is in `choice`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, log_expit, logit

from retrieval.consistency.arguments import checked
from retrieval.consistency.calibration.kinds import (
    MAX_KNOTS,
    BetaCalibrator,
    Calibrator,
    IsotonicCalibrator,
    PlattCalibrator,
    Probabilities,
    VennAbersCalibrator,
    beta_features,
    check_prevalence,
)
from retrieval.errors import InvalidInput, NotEnoughEvidence

Reals = NDArray[np.float64]

# Parametric fits put more pairs than this into as many bins, far narrower than any bend of the curve.
_MAX_ROWS = 1 << 15


@checked
def fit_scores(scores: NDArray[np.float32], matches: NDArray[np.bool_], *, kind: str, prevalence: float) -> Calibrator:
    """Fit a calibrator of one kind on scores [n] and whether each pair matches [n].

    Pairs are weighted to the stated prevalence. One match is added at the lowest score and one non-match at the
    highest (Laplace's rule at both ends): so no fit diverges if the two kinds of pairs are separable, and a fit on few
    pairs stays cautious. Venn-Abers adds its own pair at every score instead.

    Raises:
        NotEnoughEvidence: no positive or no negative pair.
        InvalidInput: unknown kind, prevalence outside (0, 1), or lengths that differ.

    >>> scores = np.array([0, 0, 0, 1, 1, 1], dtype=np.float32)
    >>> for kind in ("platt", "beta", "isotonic", "venn-abers"):  # three others at 0, three matches at 1, and the added
    ...     print(kind, fit_scores(scores, scores > 0, kind=kind, prevalence=0.5).probability([0.0, 1.0]).round(3))
    platt [0.25 0.75]
    beta [0.25 0.75]
    isotonic [0.25 0.75]
    venn-abers [0.2 0.8]
    """
    if kind not in _FITS:
        raise InvalidInput(f"kind: expected one of {', '.join(_FITS)}, found {kind!r}")
    return _FITS[kind](scores, matches, prevalence)


def _fit_isotonic(scores: NDArray[np.float32], matches: NDArray[np.bool_], prevalence: float) -> IsotonicCalibrator:
    """Fit an isotonic calibrator.

    Source: Zadrozny, Elkan, "Transforming classifier scores into accurate multiclass probability estimates", KDD 2002.
    """
    # Takes a second to import, and applying a calibrator does not need it.
    from sklearn.isotonic import IsotonicRegression

    x, y, weights, n_positives, n_negatives = _with_ends(scores, matches, prevalence)
    # Weights near 1 keep scikit-learn's comparisons of neighbouring blocks far from rounding.
    fitted = IsotonicRegression(out_of_bounds="clip").fit(x, y.astype(np.float64), sample_weight=weights * len(y))
    knots_x, knots_y = _thin(fitted.X_thresholds_, fitted.y_thresholds_)
    return IsotonicCalibrator(tuple(knots_x.tolist()), tuple(knots_y.tolist()), prevalence, n_positives, n_negatives)


def _fit_platt(scores: NDArray[np.float32], matches: NDArray[np.bool_], prevalence: float) -> PlattCalibrator:
    """Minimise the weighted log loss."""
    x, y, weights, n_positives, n_negatives = _with_ends(scores, matches, prevalence)
    x, y, weights = _binned(x, y, weights)
    (slope,), intercept = _logistic(x[:, None], y, weights)
    return PlattCalibrator(slope, intercept, prevalence, n_positives, n_negatives)


def _fit_beta(scores: NDArray[np.float32], matches: NDArray[np.bool_], prevalence: float) -> BetaCalibrator:
    """Minimise the weighted log loss, after Platt scaling of the scores at even odds."""
    x, y, weights, n_positives, n_negatives = _with_ends(scores, matches, prevalence)
    x, y, weights = _binned(x, y, weights)
    even = weights * np.where(y, 0.5 / prevalence, 0.5 / (1 - prevalence))
    (scale,), offset = _logistic(x[:, None], y, even)
    (a, b), c = _logistic(np.column_stack(beta_features(scale * x + offset)), y, weights)
    return BetaCalibrator(scale, offset, a, b, c, prevalence, n_positives, n_negatives)


def _fit_venn_abers(scores: NDArray[np.float32], matches: NDArray[np.bool_], prevalence: float) -> VennAbersCalibrator:
    """Fit an inductive Venn-Abers predictor; the scores are rounded to at most 256 levels."""
    from scipy.optimize import isotonic_regression  # slow to import, and rarely needed

    n_positives, n_negatives = _count(scores, matches, prevalence)
    levels, per_positive, per_negative = _levels(scores, matches)
    # A new pair weighs what one calibration pair of its kind weighs, so that it can replace any of them.
    one_positive, one_negative = prevalence / (n_positives + 1), (1 - prevalence) / (n_negatives + 1)
    of_matches = per_positive * one_positive
    total = of_matches + per_negative * one_negative
    lower, upper = np.empty(len(levels)), np.empty(len(levels))
    for level in range(len(levels)):
        for bound, one, match in ((lower, one_negative, 0.0), (upper, one_positive, one_positive)):
            weight, share = total.copy(), of_matches.copy()
            weight[level] += one
            share[level] += match
            bound[level] = isotonic_regression(share / weight, weights=weight).x[level]
    # Both rise with the score by theory; rounding may break that by the last digit.
    lower, upper = np.maximum.accumulate(np.clip(lower, 0, 1)), np.maximum.accumulate(np.clip(upper, 0, 1))
    return VennAbersCalibrator(
        tuple(levels.tolist()),
        tuple(np.minimum(lower, upper).tolist()),
        tuple(upper.tolist()),
        prevalence,
        n_positives,
        n_negatives,
    )


def _count(scores: NDArray[np.float32], matches: NDArray[np.bool_], prevalence: float) -> tuple[int, int]:
    """Check the pairs and return how many match and how many do not."""
    check_prevalence(prevalence)
    if len(scores) != len(matches) or not np.isfinite(scores).all():
        raise InvalidInput(
            f"expected finite scores, as many as matches, found {len(scores)} scores, "
            f"{np.count_nonzero(~np.isfinite(scores))} of them not finite, and {len(matches)} matches"
        )
    n_positives = int(np.count_nonzero(matches))
    n_negatives = len(matches) - n_positives
    if n_positives == 0 or n_negatives == 0:
        raise NotEnoughEvidence(
            f"calibration needs pairs of both kinds, found {n_positives} matches, {n_negatives} others"
        )
    return n_positives, n_negatives


def _with_ends(
    scores: NDArray[np.float32], matches: NDArray[np.bool_], prevalence: float
) -> tuple[Reals, NDArray[np.bool_], Reals, int, int]:
    """Return scores, matches and weights with Laplace's two pairs added, and the numbers of pairs without them."""
    n_positives, n_negatives = _count(scores, matches, prevalence)
    x = np.concatenate([scores, [scores.min(), scores.max()]]).astype(np.float64)
    y = np.concatenate([matches, [True, False]])
    weights = np.where(y, prevalence / (n_positives + 1), (1 - prevalence) / (n_negatives + 1))
    return x, y, weights, n_positives, n_negatives


def _binned(x: Reals, y: NDArray[np.bool_], weights: Reals) -> tuple[Reals, NDArray[np.bool_], Reals]:
    """Return many pairs as few: mean score and total weight of each kind in narrow bins; few pairs as they are."""
    low, high = float(x.min()), float(x.max())
    if len(x) <= _MAX_ROWS or low == high:
        return x, y, weights
    bins = np.minimum(((x - low) / (high - low) * _MAX_ROWS).astype(np.int64), _MAX_ROWS - 1) * 2 + y
    total = np.bincount(bins, weights, 2 * _MAX_ROWS)
    filled = np.flatnonzero(total)
    means = np.bincount(bins, weights * x, 2 * _MAX_ROWS)[filled] / total[filled]
    return means, np.equal(filled % 2, 1), total[filled].astype(np.float64)


def _logistic(features: Reals, y: NDArray[np.bool_], weights: Reals) -> tuple[list[float], float]:
    """Return the coefficients of at least 0 and the intercept that minimise the weighted log loss; features: [n, k].

    scikit-learn's logistic regression has no bounds, and its solvers fail at extreme prevalences.
    """
    from scipy.optimize import minimize  # slow to import, and rarely needed

    centre, spread = features.mean(axis=0), features.std(axis=0)
    unit = (features - centre) / np.where(spread > 0, spread, 1)
    sign, share = np.where(y, 1.0, -1.0), weights / weights.sum()
    log_odds = float(logit(share[y].sum()))

    def loss(parameters: Reals) -> tuple[float, Reals]:
        margin = sign * (unit @ parameters[:-1] + parameters[-1])
        slope = -sign * share * expit(-margin)
        return float(-(share * log_expit(margin)).sum()), np.append(slope @ unit, slope.sum())

    n_features = features.shape[1]
    # The loss of rare matches is small, so the tolerance is relative to their share.
    gradient = 1e-7 * float(expit(-abs(log_odds)))
    found: Reals = minimize(
        loss,
        np.append(np.zeros(n_features), log_odds),
        jac=True,
        method="L-BFGS-B",
        bounds=[(0.0, None)] * n_features + [(None, None)],
        options={"ftol": 0.0, "gtol": gradient, "maxiter": 500, "maxls": 50},
    ).x
    coefficients = found[:-1] / np.where(spread > 0, spread, 1)
    return coefficients.tolist(), float(found[-1] - coefficients @ centre)


def _levels(
    scores: NDArray[np.float32], matches: NDArray[np.bool_]
) -> tuple[Probabilities, Probabilities, Probabilities]:
    """Return at most 256 ascending scores, and how many matches and how many others are rounded to each.

    Levels are ranks of either kind, dense at both of its ends, where the probability changes.
    """
    chosen = []
    for kind in (np.sort(scores[matches]), np.sort(scores[~matches])):
        ranks = np.unique(np.geomspace(1, len(kind), MAX_KNOTS // 4).round().astype(np.int64)) - 1
        chosen += [kind[ranks], kind[len(kind) - 1 - ranks]]
    levels = np.unique(np.concatenate(chosen)).astype(np.float64)
    middles = (levels[1:] + levels[:-1]) / 2
    nearest = np.searchsorted(middles, scores)
    return (
        levels,
        np.bincount(nearest[matches], minlength=len(levels)).astype(np.float64),
        np.bincount(nearest[~matches], minlength=len(levels)).astype(np.float64),
    )


def _thin(x: Reals, y: Reals) -> tuple[Reals, Reals]:
    """Keep at most 256 knots, evenly spaced by number: they are dense where the map rises."""
    kept = np.unique(np.linspace(0, len(x) - 1, MAX_KNOTS).round().astype(np.int64))
    return x[kept].astype(np.float64), y[kept].astype(np.float64)


_FITS: Mapping[str, Callable[[NDArray[np.float32], NDArray[np.bool_], float], Calibrator]] = MappingProxyType(
    {"platt": _fit_platt, "beta": _fit_beta, "isotonic": _fit_isotonic, "venn-abers": _fit_venn_abers}
)
