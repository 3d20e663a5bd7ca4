"""Compare declared groups of images at one threshold: rates, differentials, tests and pairs across groups."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from retrieval.consistency.arguments import checked
from retrieval.consistency.intervals import Interval
from retrieval.consistency.pairs.vectors import LabelledVectors
from retrieval.consistency.subgroups.clustered import RateEstimates, Values
from retrieval.consistency.subgroups.counts import GroupCounts, count_groups
from retrieval.consistency.subgroups.differentials import (
    RateDifferential,
    compare_rates,
    fairness_discrepancy_rate,
    garbe,
    level_of,
)
from retrieval.consistency.subgroups.estimates import FrrPairs, false_accept_rates, false_reject_rates
from retrieval.consistency.subgroups.rates import GroupRates, rates_of_groups


@dataclass(frozen=True, slots=True, kw_only=True)
class CrossRate:
    """False accept rate of pairs with one end in either of two groups; far: None without such pairs."""

    first: str
    second: str
    negatives: int
    far: float | None
    far_interval: Interval


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupComparison:
    """Groups of images at one threshold."""

    groups: tuple[GroupRates, ...]  # all groups, by name
    far: RateDifferential | None  # over the groups that are not small; None if fewer than two of them have such pairs
    frr: RateDifferential | None
    garbe: float | None  # of both rates, weight 1/2 each
    fdr: float | None
    frr_pairs: FrrPairs  # which pairs of one class count for a group, see `rates_of_groups`
    left_out: tuple[str, ...]  # names of the small groups
    across: tuple[CrossRate, ...]  # pairs across two groups; empty with more than 32 groups
    confidence: float
    level: float  # significance level of the tests, over all groups of one rate


@checked
def compare_groups(
    vectors: LabelledVectors,
    groups: Sequence[str],
    threshold: float,
    *,
    rng: np.random.Generator,
    confidence: float = 0.95,
    small_below: int = 20,
    frr_pairs: FrrPairs | None = None,
) -> GroupComparison:
    """Return rates, differentials and tests of the groups of one attribute; groups: n strings, one per image.

    Groups with fewer than small_below images or 10 classes are left out of differentials and tests: chance alone would
    make them the worst. Without frr_pairs it is "within" if a group contains two images of a class, else "touching".
    The tests have level 1 - confidence, corrected over the groups of one rate; each attribute is a family of its own.

    Raises:
        InvalidInput: threshold is not finite, confidence outside (0, 1), two sets of images or excluded pairs.
        InvalidEmbeddings: groups of another length.
    """
    counts = count_groups(vectors, groups, threshold)
    if frr_pairs is None:
        frr_pairs = "within" if counts.positives[:, counts.within].any() else "touching"
    table = rates_of_groups(counts, small_below=small_below, confidence=confidence, frr_pairs=frr_pairs)
    large = np.array([not rates.small for rates in table])

    def differential(estimates: RateEstimates, covariance: Values) -> RateDifferential | None:
        kept = np.flatnonzero(large & (estimates.pairs > 0))
        if len(kept) < 2:
            return None
        return compare_rates(
            [table[row].name for row in kept.tolist()],
            estimates.at(kept),
            covariance[np.ix_(kept, kept)],
            confidence=confidence,
            rng=rng,
        )

    far = differential(*false_accept_rates(counts, counts.within))
    frr = differential(*false_reject_rates(counts, frr_pairs))
    return GroupComparison(
        groups=tuple(table),
        far=far,
        frr=frr,
        garbe=garbe(far.gini, frr.gini) if far and frr else None,
        fdr=fairness_discrepancy_rate(far.max_difference, frr.max_difference) if far and frr else None,
        frr_pairs=frr_pairs,
        left_out=tuple(rates.name for rates in table if rates.small),
        across=_across(counts, confidence),
        confidence=confidence,
        level=level_of(confidence),
    )


def _across(counts: GroupCounts, confidence: float) -> tuple[CrossRate, ...]:
    cells = np.flatnonzero(counts.cells[:, 0] != counts.cells[:, 1])
    estimates, _ = false_accept_rates(counts, cells)
    intervals = estimates.intervals(confidence)
    return tuple(
        CrossRate(
            first=counts.groups[first],
            second=counts.groups[second],
            negatives=int(estimates.pairs[row]),
            far=float(estimates.rates[row]) if estimates.pairs[row] else None,
            far_interval=intervals[row],
        )
        for row, (first, second) in enumerate(counts.cells[cells].tolist())
    )
