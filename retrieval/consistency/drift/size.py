"""Measure how far the scores of unlabelled queries moved from a reference, and how far chance alone moves them.

Whether there is drift is tested in `watch`, at any number of looks.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from retrieval.consistency.arguments import checked
from retrieval.consistency.drift.state import checked_scores
from retrieval.consistency.intervals import Interval, percentile_interval
from retrieval.errors import NotEnoughEvidence

Reals = NDArray[np.float64]
Counts = NDArray[np.int64]

_MIN_SCORES = 10
_N_DIVISIONS = 100  # of which only the median is used
_N_RESAMPLES = 400  # resolves the ends of a 95 % interval to about a percent of probability


@dataclass(frozen=True, slots=True, kw_only=True)
class DriftSize:
    """The difference between two samples of scores; ..._by_chance: the median if both come from one distribution."""

    median_shift: float  # median of the new scores less that of the reference
    median_shift_interval: Interval
    wasserstein: float  # the average move of a score that turns one distribution into the other
    wasserstein_interval: Interval
    wasserstein_by_chance: float
    ks: float  # largest difference between the shares of scores up to any value, 0 to 1
    ks_by_chance: float
    below: float  # the score at which `ks` is found
    interquartile_range: float  # of the reference, as a scale for the others
    n_reference: int
    n_scores: int
    confidence: float

    def __str__(self) -> str:
        return (
            f"median moved by {self.median_shift:+.4f} ({100 * self.confidence:g} % interval "
            f"{self.median_shift_interval}), scores by {self.wasserstein:.4f} on average ({self.wasserstein_interval}; "
            f"chance alone {self.wasserstein_by_chance:.4f}; interquartile range of the reference "
            f"{self.interquartile_range:.4f}), shares below {self.below:.4f} by {self.ks:.3f} (chance alone "
            f"{self.ks_by_chance:.3f}); {self.n_scores} scores against {self.n_reference}"
        )


@checked
def drift_size(reference: Reals, scores: Reals, *, rng: np.random.Generator, confidence: float = 0.95) -> DriftSize:
    """Return how far new scores [n] lie from reference scores [m], one per query, at least 10 of each.

    Intervals are percentiles over 400 bootstrap draws of both samples. The Wasserstein distance and the KS statistic
    are never 0, so each comes with its median over 100 random divisions of the pooled scores. Assumes independent
    queries and one look: the interval of the largest of many looks would be wrong. Memory: [400, m + n] counts.

    Raises:
        NotEnoughEvidence: fewer than 10 scores on either side.
        InvalidInput: not one-dimensional, NaN or infinity, or confidence outside (0, 1).

    Source: Ramdas, Trillos, Cuturi, "On Wasserstein two-sample testing and related families of nonparametric tests",
    Entropy 19 (2017).

    >>> size = drift_size(np.arange(100.0), np.arange(100.0) + 7, rng=np.random.default_rng(0))
    >>> size.median_shift, size.wasserstein, size.ks, size.below
    (7.0, 7.0, 0.07, 6.0)
    """
    old, new = _checked("reference", reference), _checked("scores", scores)
    m, n = len(old), len(new)
    values = np.unique(np.concatenate([old, new]))
    counts = np.stack([np.bincount(np.searchsorted(values, sample), minlength=len(values)) for sample in (old, new)])
    moved = _Differences.of(values, counts[0][None], counts[1][None])
    again = _Differences.of(
        values,
        rng.multinomial(m, counts[0] / m, size=_N_RESAMPLES),
        rng.multinomial(n, counts[1] / n, size=_N_RESAMPLES),
    )
    pooled = counts.sum(axis=0)
    divided = rng.multivariate_hypergeometric(pooled, m, size=_N_DIVISIONS, method="marginals")
    by_chance = _Differences.of(values, divided, pooled - divided)
    low, high = np.quantile(old, [0.25, 0.75])
    return DriftSize(
        median_shift=float(moved.median_shift[0]),
        median_shift_interval=percentile_interval(again.median_shift, confidence),
        wasserstein=float(moved.wasserstein[0]),
        wasserstein_interval=percentile_interval(again.wasserstein, confidence),
        wasserstein_by_chance=float(np.median(by_chance.wasserstein)),
        ks=float(moved.ks[0]),
        ks_by_chance=float(np.median(by_chance.ks)),
        below=float(moved.below[0]),
        interquartile_range=float(high - low),
        n_reference=m,
        n_scores=n,
        confidence=confidence,
    )


def _checked(name: str, scores: Reals) -> Reals:
    values = checked_scores(name, scores)
    if len(values) < _MIN_SCORES:
        raise NotEnoughEvidence(f"expected at least {_MIN_SCORES} {name}, found {len(values)}; wait for more queries")
    return values


@dataclass(frozen=True, slots=True, eq=False)
class _Differences:
    """Differences of b pairs of samples: [b] float64 each."""

    median_shift: Reals
    wasserstein: Reals
    ks: Reals
    below: Reals

    @classmethod
    def of(cls, values: Reals, first: Counts, second: Counts) -> _Differences:
        """values: [u], ascending; first, second: [b, u] int64, how often each value occurs in either sample."""
        below_first, below_second = first.cumsum(axis=1), second.cumsum(axis=1)
        m, n = int(below_first[0, -1]), int(below_second[0, -1])
        gaps = np.abs(n * below_first - m * below_second)  # whole numbers: equal gaps stay equal
        medians = [values[(2 * below >= size).argmax(axis=1)] for below, size in ((below_first, m), (below_second, n))]
        return cls(
            median_shift=medians[1] - medians[0],
            wasserstein=gaps[:, :-1] @ np.diff(values) / (m * n),
            ks=gaps.max(axis=1) / (m * n),
            below=values[gaps.argmax(axis=1)],
        )
