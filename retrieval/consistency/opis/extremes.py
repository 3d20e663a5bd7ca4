"""eps-OPIS: the gap between the worst and the best classes, and the gap that chance alone would make.

`utility` makes the band and the utilities; `measure` adds the interval.
"""

from __future__ import annotations

import numpy as np

from retrieval.consistency.curves import Rates
from retrieval.consistency.opis.noise import SharedCurve
from retrieval.consistency.opis.utility import Band, utility

# Classes simulated under the null in total: then the floor of eps-OPIS is within a few per cent.
_SIMULATED_CLASSES = 10_000
_MAX_REPLICATES = 50


def extreme_gap(utilities: Rates, band: Band, weights: Rates, eps: float) -> Rates:
    """Return eps-OPIS for each row of class weights [..., T'], sum 1: [...] float64. utilities: [T', p].

    Classes are ranked once, by mean utility over the band. The worst and the best are those that fill the weight of
    max(1, floor(eps % of T')) average classes at each end, the last one in part.
    """
    n_classes = len(utilities)
    share = max(1, int(n_classes * eps / 100)) / n_classes
    ranks = np.argsort(band.mean(utilities), kind="stable")
    ranked = utilities[ranks]
    worst = _first(weights[..., ranks], share) @ ranked
    best = _first(weights[..., ranks[::-1]], share) @ ranked[::-1]
    return band.mean((worst - best) ** 2)


def _first(weights: Rates, share: float) -> Rates:
    """Return the leading weights up to a sum of share, scaled to sum 1."""
    kept = np.diff(np.minimum(weights.cumsum(axis=-1), share), axis=-1, prepend=0.0)
    return np.asarray(kept / share, dtype=np.float64)


def extreme_gap_floor(null: SharedCurve, eps: float, rng: np.random.Generator) -> float:
    """Return the eps-OPIS expected under the null, by simulation of whole curves."""
    n_classes = len(null.n_independent)
    falling = np.minimum.accumulate(null.mean_tar)
    # Shares of positives lost before the first node, between neighbouring nodes, and kept at the last one.
    lost_between = np.maximum(-np.diff(falling, prepend=1.0, append=0.0), 0)
    n_replicates = int(np.clip(_SIMULATED_CLASSES // n_classes, 2, _MAX_REPLICATES))
    total = 0.0
    for _ in range(n_replicates):
        trials = np.maximum(np.floor(null.n_independent + rng.random(n_classes)), 1).astype(np.int64)
        lost = rng.multinomial(trials, lost_between / lost_between.sum())[:, :-1].cumsum(axis=1)
        utilities = utility(1 - lost / trials[:, None], null.band.pooled_far, null.c)
        total += float(extreme_gap(utilities, null.band, null.weights, eps))
    return total / n_replicates
