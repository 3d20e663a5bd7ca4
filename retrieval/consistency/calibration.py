"""Similarity -> probability that a pair is a match, at a stated prevalence; and how far it can be trusted."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from retrieval.consistency.pairs import Vectors, labelled_vectors, scored_pairs
from retrieval.errors import InvalidInput, NotEnoughEvidence

MAX_KNOTS = 256


@dataclass(frozen=True, slots=True)
class IsotonicCalibrator:
    """A non-decreasing, piecewise linear map from score to match probability.

    scores: at most 256 ascending knots; probabilities: at the knots, non-decreasing, strictly between 0 and 1;
    prevalence: share of matches among the pairs the probability is about; n_positives, n_negatives: pairs fitted on.

    Raises:
        InvalidInput: at construction, when the knots break one of these rules.
    """

    scores: tuple[float, ...]
    probabilities: tuple[float, ...]
    prevalence: float
    n_positives: int
    n_negatives: int

    def __post_init__(self) -> None:
        x, p = np.array(self.scores, dtype=np.float64), np.array(self.probabilities, dtype=np.float64)
        ordered = (
            x.shape == p.shape and 0 < len(x) <= MAX_KNOTS and bool((np.diff(x) > 0).all() and (np.diff(p) >= 0).all())
        )
        if not ordered or not np.isfinite(x).all() or not ((p > 0) & (p < 1)).all():
            raise InvalidInput(
                f"a calibrator needs 1 to {MAX_KNOTS} ascending finite scores with non-decreasing probabilities "
                f"strictly between 0 and 1, found {len(x)} scores and {len(p)} probabilities that are not"
            )

    def probability(self, scores: ArrayLike) -> NDArray[np.float64]:
        """Return the match probability of scores [n]: [n] float64; beyond the end knots, that of the end knot.

        Raises:
            InvalidInput: NaN among the scores.
        """
        values = np.asarray(scores, dtype=np.float64)
        if np.isnan(values).any():
            raise InvalidInput("scores must be numbers, found NaN")
        return np.asarray(np.interp(values, self.scores, self.probabilities), dtype=np.float64)

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON types from which `from_json` makes an equal calibrator."""
        return {
            "kind": "isotonic",
            "scores": list(self.scores),
            "probabilities": list(self.probabilities),
            "prevalence": self.prevalence,
            "n_positives": self.n_positives,
            "n_negatives": self.n_negatives,
        }

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> IsotonicCalibrator:
        """Undo `to_json`.

        Raises:
            InvalidInput: another kind, a missing field or values that are no calibrator.
        """
        if document.get("kind") != "isotonic":
            raise InvalidInput(f"expected a calibrator of kind 'isotonic', found {document.get('kind')!r}")
        try:
            return cls(
                scores=tuple(float(value) for value in document["scores"]),
                probabilities=tuple(float(value) for value in document["probabilities"]),
                prevalence=float(document["prevalence"]),
                n_positives=int(document["n_positives"]),
                n_negatives=int(document["n_negatives"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise InvalidInput(f"the calibrator's document is incomplete or malformed: {error!r}") from error


def fit_isotonic(
    query_vectors: Vectors,
    labels: Sequence[str],
    *,
    gallery_vectors: Vectors | None = None,
    prevalence: float,
    rng: np.random.Generator,
    max_pairs: int = 2_000_000,
    tile: int = 1024,
) -> IsotonicCalibrator:
    """Return a calibrator fitted on the pairs of labelled vectors.

    All pairs are used up to max_pairs of each kind; beyond, an independent random draw of about that many.

    Raises:
        NotEnoughEvidence: no positive pair, fewer than two classes, or nothing drawn.
        InvalidInput: prevalence outside (0, 1) or max_pairs below 1.
        InvalidEmbeddings: see `labelled_vectors`.
    """
    if max_pairs < 1:
        raise InvalidInput(f"max_pairs must be at least 1, found {max_pairs}")
    vectors = labelled_vectors(query_vectors, labels, gallery_vectors)
    share_positive = min(1.0, max_pairs / max(vectors.n_positives, 1))
    share_negative = min(1.0, max_pairs / vectors.n_negatives)
    scores, matches = [], []
    for batch in scored_pairs(vectors, tile=tile):
        drawn = rng.random(len(batch.scores)) < np.where(batch.matches, share_positive, share_negative)
        scores.append(batch.scores[drawn])
        matches.append(batch.matches[drawn])
    return fit_isotonic_scores(np.concatenate(scores), np.concatenate(matches), prevalence=prevalence)


def fit_isotonic_scores(
    scores: NDArray[np.float32], matches: NDArray[np.bool_], *, prevalence: float
) -> IsotonicCalibrator:
    """Return a calibrator fitted on scores [n] and whether each pair matches [n].

    Positives are weighted to the stated prevalence. One match at the lowest and one non-match at the highest score are
    added, Laplace's rule at both ends: no probability reaches 0 or 1 and few pairs claim little.

    Raises:
        NotEnoughEvidence: no positive or no negative pair.
        InvalidInput: prevalence outside (0, 1).

    Source: Zadrozny, Elkan, "Transforming classifier scores into accurate multiclass probability estimates", KDD 2002.
    """
    from sklearn.isotonic import IsotonicRegression  # takes a second to import; who only applies a calibrator need not

    if not 0 < prevalence < 1:
        raise InvalidInput(f"prevalence is the share of matches and lies in (0, 1), found {prevalence}")
    n_positives = int(np.count_nonzero(matches))
    n_negatives = len(matches) - n_positives
    if n_positives == 0 or n_negatives == 0:
        raise NotEnoughEvidence(
            f"calibration needs pairs of both kinds, found {n_positives} matches, {n_negatives} others"
        )
    x = np.concatenate([scores, [scores.min(), scores.max()]]).astype(np.float64)
    y = np.concatenate([matches, [True, False]])
    weights = np.where(y, prevalence / (n_positives + 1), (1 - prevalence) / (n_negatives + 1))
    # Weights near 1 keep scikit-learn's comparisons of neighbouring blocks far from rounding.
    fitted = IsotonicRegression(out_of_bounds="clip").fit(x, y.astype(np.float64), sample_weight=weights * len(y))
    knots_x, knots_y = _thin(fitted.X_thresholds_, fitted.y_thresholds_)
    return IsotonicCalibrator(tuple(knots_x.tolist()), tuple(knots_y.tolist()), prevalence, n_positives, n_negatives)


def _thin(x: NDArray[np.float64], y: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Keep at most 256 knots, evenly spaced among those there are: they are dense where the map rises."""
    kept = np.unique(np.linspace(0, len(x) - 1, MAX_KNOTS).round().astype(np.int64))
    return x[kept].astype(np.float64), y[kept].astype(np.float64)


@dataclass(frozen=True, slots=True, eq=False)
class Reliability:
    """Forecast against outcome, in bins of equal width on [0, 1].

    edges: [b + 1] float64; mean_probability, match_rate: [b] float64, 0 in empty bins; weight: [b] float64, share of
    the total weight; brier: weighted mean squared error; ece: weighted mean gap between probability and rate over bins.
    """

    edges: NDArray[np.float64]
    mean_probability: NDArray[np.float64]
    match_rate: NDArray[np.float64]
    weight: NDArray[np.float64]
    brier: float
    ece: float


def reliability(
    probabilities: NDArray[np.float64],
    matches: NDArray[np.bool_],
    *,
    weights: NDArray[np.float64] | None = None,
    n_bins: int = 10,
) -> Reliability:
    """Return reliability bins, Brier score and expected calibration error of forecasts [n] and outcomes [n].

    weights [n] restore the prevalence where pairs were drawn at another one; omitted, all count the same.

    Raises:
        InvalidInput: no forecast, lengths that differ, values outside [0, 1], or weights that are negative or all zero.

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
    forecast = np.bincount(bins, share * probabilities, n_bins)
    outcome = np.bincount(bins, share * matches, n_bins)
    scale = np.where(weight > 0, weight, 1)
    return Reliability(
        edges=np.linspace(0, 1, n_bins + 1),
        mean_probability=forecast / scale,
        match_rate=outcome / scale,
        weight=weight,
        brier=math.fsum(share * (probabilities - matches) ** 2),
        ece=float(np.abs(forecast - outcome).sum()),
    )
