"""Test whether the scores of unlabelled queries have drifted from a reference, at any number of looks.

The test needs counts only, so an audit keeps little state, and it is exact for scores of any distribution.
`size` measures how far the scores moved.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import gammaln

from retrieval.consistency.arguments import checked
from retrieval.consistency.drift.state import MEMORIES, DriftState, checked_scores, resolutions
from retrieval.errors import NotEnoughEvidence

Reals = NDArray[np.float64]

MIN_REFERENCE = 63  # 64 gaps: four for each of 16 bins
_MAX_BINS = 32
_MIN_GAPS = 4  # of a bin: its share of the reference is then known to within a half
_CONCENTRATION = 10.0  # of the bettors' first belief that nothing drifted, in scores
_IDLE = 0.5  # of the wealth dealt out is not bet: it waits for late drift
_SHARE = 0.02  # of the wealth is dealt out again after each look


@checked
def start_drift(reference: Reals, *, rng: np.random.Generator) -> DriftState:
    """Return the state before the first look, from reference scores: [m] float, m >= 63.

    One score per query, for instance the similarity to its nearest catalogue item. Queries must be independent, and of
    the same population, catalogue, model and score as at the looks. Ten photographs of one thing count as one query.
    A growing catalogue moves the scores too: then start again from a new reference.
    rng: orders equal scores; without ties on a bin's edge nothing is random.

    Raises:
        NotEnoughEvidence: fewer than 63 scores.
        InvalidInput: not one-dimensional, NaN or infinity.

    >>> state = start_drift(np.linspace(0, 1, 99), rng=np.random.default_rng(0))
    >>> state.n_reference, len(state.gaps), sum(state.gaps)  # 99 scores leave 100 gaps
    (99, 16, 100)
    """
    values = checked_scores("reference", reference)
    if len(values) < MIN_REFERENCE:
        raise NotEnoughEvidence(
            f"a reference needs at least {MIN_REFERENCE} scores, found {len(values)}; add queries from the time when "
            "the threshold was calibrated"
        )
    n_gaps = len(values) + 1
    n_bins = min(_MAX_BINS, 1 << int(math.log2(n_gaps // _MIN_GAPS)))
    upper = np.round(np.linspace(0, n_gaps, n_bins + 1)).astype(np.int64)
    random = rng.random(len(values))
    edges = np.lexsort((random, values))[upper[1:-1] - 1]
    prior = _prior_wealth(n_bins)
    return DriftState(
        edges=tuple(values[edges].tolist()),
        tie_breaks=tuple(random[edges].tolist()),
        gaps=tuple(np.diff(upper).tolist()),
        counts=(0,) * n_bins,
        memories=((0.0,) * n_bins,) * len(MEMORIES),
        log_wealth=tuple(np.log(prior).tolist()),
    )


@checked
def look_for_drift(state: DriftState, scores: Reals, *, rng: np.random.Generator) -> DriftState:
    """Return the state after one more look, at new scores [n] float; no scores leave the state unchanged.

    The evidence is a bet. Without drift, the place of a new score among the reference scores follows Polya's urn: the
    bin with `gaps` gaps and `counts` new scores is next with probability (gaps + counts) / (m + 1 + n), exactly and for
    any distribution, over the draw of reference and scores. Bettors who believe in other shares (at resolutions of 2 to
    32 bins; learnt from all, the last ten or the last two looks) multiply their wealth by the ratio of their
    probability of the look to the urn's. Some wealth waits and some is dealt out again at each look, for late drift.
    The total wealth, the e-value, is a martingale from 1: it ever reaches 1 / alpha with probability at most alpha
    (Ville), for any number and size of looks.

    Because new scores join the urn, the evidence from m reference scores is bounded: a shift from the first look on is
    found for certain only from about 9 / sqrt(m) standard deviations of the scores (in a third of the runs at 4.5);
    smaller shifts only after quiet looks, which extend the reference (`tests/bench/drift_detection.py`).

    Raises:
        InvalidInput: not one-dimensional, NaN or infinity.

    Source: the urn: Wilks, "Statistical prediction with special reference to the problem of tolerance limits", Annals
    of Mathematical Statistics 13 (1942); wealth dealt out again: Herbster, Warmuth, "Tracking the best expert", Machine
    Learning 32 (1998), Fixed Share; testing by betting on ranks: Vovk, Gammerman, Shafer, "Algorithmic Learning in a
    Random World" (2005), chapter 7.

    >>> rng = np.random.default_rng(0)
    >>> state = start_drift(rng.random(500), rng=rng)
    >>> look_for_drift(state, rng.random(100), rng=rng).drifted()
    False
    >>> look_for_drift(state, 0.7 * rng.random(100), rng=rng).drifted()
    True
    """
    values = checked_scores("scores", scores)
    if len(values) == 0:
        return state
    new = np.bincount(_bins_of(state, values, rng), minlength=len(state.gaps)).astype(np.float64)
    gaps, counts, memories = np.array(state.gaps), np.array(state.counts), np.array(state.memories)
    log_wealth = np.array(state.log_wealth) + _log_gains(new, gaps, counts, memories)
    log_e = float(np.logaddexp.reduce(log_wealth))
    dealt = np.logaddexp(log_wealth + math.log1p(-_SHARE), log_e + np.log(_SHARE * _prior_wealth(len(gaps))))
    faded = np.array(MEMORIES)[:, None] * (memories + new)
    return DriftState(
        edges=state.edges,
        tie_breaks=state.tie_breaks,
        gaps=state.gaps,
        counts=tuple((counts + new).astype(np.int64).tolist()),
        memories=tuple(tuple(row) for row in faded.tolist()),
        log_wealth=tuple(dealt.tolist()),
        n_looks=state.n_looks + 1,
        log_e=log_e,
        log_peak=max(state.log_peak, log_e),
    )


def _bins_of(state: DriftState, values: Reals, rng: np.random.Generator) -> NDArray[np.int64]:
    """Return how many edges lie below each score, equal ones ordered by their random numbers: [n] int64."""
    edges, tie_breaks = np.array(state.edges), np.array(state.tie_breaks)
    random = rng.random(len(values))
    below = np.searchsorted(edges, values, side="left")
    tied = np.flatnonzero(np.searchsorted(edges, values, side="right") > below)
    equal = (edges == values[tied, None]) & (tie_breaks < random[tied, None])
    below[tied] += np.count_nonzero(equal, axis=1)
    return below.astype(np.int64)


def _prior_wealth(n_bins: int) -> Reals:
    """Return the first wealth of each bettor, 1 in all; the idle one first."""
    n_bettors = len(MEMORIES) * len(resolutions(n_bins))
    return np.concatenate([[_IDLE], np.full(n_bettors, (1 - _IDLE) / n_bettors)])


def _log_gains(new: Reals, gaps: NDArray[np.int64], counts: NDArray[np.int64], memories: Reals) -> Reals:
    """Return the logarithm of the factor on each bettor's wealth; the idle one's, 0, first."""
    gains = [0.0]
    belief = _CONCENTRATION * gaps / gaps.sum() + memories
    for n_coarse in resolutions(len(gaps)):
        look = _merged(new, n_coarse)
        of_urn = _log_probability(look, _merged(gaps + counts, n_coarse))
        gains += [_log_probability(look, _merged(row, n_coarse)) - of_urn for row in belief]
    return np.array(gains)


def _merged(per_bin: NDArray[Any], n_coarse: int) -> Reals:
    return np.asarray(per_bin.reshape(n_coarse, -1).sum(axis=1), dtype=np.float64)


def _log_probability(counts: Reals, urn: Reals) -> float:
    """Return the logarithm of the probability that an urn gives to one order of these counts."""
    total, drawn = urn.sum(), counts.sum()
    return float(gammaln(total) - gammaln(total + drawn) + (gammaln(urn + counts) - gammaln(urn)).sum())
