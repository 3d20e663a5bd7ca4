"""Estimate error rates of classes, of groups and of pairs of groups, with their variance over images and classes."""

from __future__ import annotations

from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from retrieval.consistency.intervals import effective_numbers
from retrieval.consistency.pairs.batches import accepted_pairs
from retrieval.consistency.pairs.tally import PairTally
from retrieval.consistency.pairs.vectors import LabelledVectors
from retrieval.consistency.subgroups.clustered import (
    RateEstimates,
    Values,
    class_covariance,
    corrected_residuals,
    dyadic_covariance,
    dyadic_variances,
)
from retrieval.consistency.subgroups.counts import ClassPairCounts, Counts, GroupCounts

FrrPairs: TypeAlias = Literal["within", "touching"]

_CHUNK = 1 << 20  # numbers held at once


def class_estimates(vectors: LabelledVectors, threshold: float) -> tuple[RateEstimates, RateEstimates]:
    """Estimate the false accept and the false reject rates of all classes, T each.

    Negatives of a class have exactly one end in it. Memory: n counts, and one for each pair of classes with a false
    accept.
    """
    n_images_in_all, n_classes = len(vectors.codes), len(vectors.classes)
    false_accepts, true_accepts = np.zeros(n_images_in_all), np.zeros(n_images_in_all)
    tally = PairTally()
    for batch in accepted_pairs(vectors, threshold):
        match = batch.matches
        for rows in (batch.first_rows, batch.second_rows):
            true_accepts += np.bincount(rows[match], minlength=n_images_in_all)
            false_accepts += np.bincount(rows[~match], minlength=n_images_in_all)
        tally.add(batch.first[~match] * n_classes + batch.second[~match])
    return (_false_accept_rates(vectors, false_accepts, *tally.counts()), _false_reject_rates(vectors, true_accepts))


def _false_accept_rates(
    vectors: LabelledVectors, accepts: Values, class_pairs: NDArray[np.int64], counts: NDArray[np.int64]
) -> RateEstimates:
    """Estimate from the false accepts of each image [n], and of each pair of classes (first * T + second) [e]."""
    n = vectors.n_images.astype(np.float64)
    n_classes, total = len(n), n.sum()
    pairs = n * (total - n)
    errors = np.bincount(vectors.codes, accepts, n_classes).astype(np.float64)
    rates = errors / np.maximum(pairs, 1)
    # Variance over the class's own images: each meets total - n_i others.
    residuals = accepts - (rates * (total - n))[vectors.codes]
    over_images = np.bincount(vectors.codes, residuals**2, n_classes) * n / np.maximum(n - 1, 1)
    # Variance over other classes j: sum_j (a_ij - rate_i n_i n_j)^2, and most a_ij are 0.
    first, second = class_pairs // n_classes, class_pairs % n_classes
    squares, mixed = np.zeros(n_classes), np.zeros(n_classes)
    for own, other in ((first, second), (second, first)):
        squares += np.bincount(own, counts.astype(np.float64) ** 2, n_classes)
        mixed += np.bincount(own, counts * n[other], n_classes)
    expected = rates * n
    over_classes = squares - 2 * expected * mixed + expected**2 * ((n**2).sum() - n**2)
    over_classes *= (n_classes - 1) / max(n_classes - 2, 1)
    variances = (over_images + np.maximum(over_classes, 0)) / np.maximum(pairs, 1) ** 2
    return RateEstimates(
        errors=errors,
        pairs=pairs,
        variances=variances,
        # With one image only the classes that it meets vary.
        n_clusters=np.where(n > 1, np.minimum(n, n_classes - 1), n_classes - 1).astype(np.float64),
    )


def _false_reject_rates(vectors: LabelledVectors, accepts: Values) -> RateEstimates:
    """Estimate from the true accepts of each image [n]."""
    n = vectors.n_images.astype(np.float64)
    pairs = n * (n - 1) / 2
    rejects = (n - 1)[vectors.codes] - accepts
    errors = np.bincount(vectors.codes, rejects, len(n)) / 2
    rates = errors / np.maximum(pairs, 1)
    residuals = rejects - (rates * (n - 1))[vectors.codes]
    over_images = np.bincount(vectors.codes, residuals**2, len(n)) * n / np.maximum(n - 1, 1)
    single_pairs = pairs * rates * (1 - rates)
    variances = np.maximum(over_images - single_pairs, single_pairs) / np.maximum(pairs, 1) ** 2
    return RateEstimates(errors=errors, pairs=pairs, variances=variances, n_clusters=n)


def false_accept_rates(counts: GroupCounts, cells: NDArray[np.int64]) -> tuple[RateEstimates, Values]:
    """Estimate the false accept rates of some cells, given by number [k], and their covariance [k, k]."""
    n = counts.n_images.astype(np.float64)
    g, h = counts.cells[cells].T
    half = np.where(g == h, 0.5, 1.0)  # inside a group each pair of images would be counted twice
    per_group = n.sum(axis=0)
    by_class = half * (n[:, g] * (per_group[h] - n[:, h]) + n[:, h] * (per_group[g] - n[:, g]))
    pairs = by_class.sum(axis=0) / 2
    accepted = _of_cells(counts.negatives_accepted, cells, len(counts.cells))
    accepted_by_class = accepted.by_class(len(n), len(cells)).astype(np.float64)
    errors = accepted_by_class.sum(axis=0) / 2
    rates = errors / np.maximum(pairs, 1)
    residuals = corrected_residuals(accepted_by_class, by_class, ends=2)
    by_pair = _residual_products(accepted, n, (g, h), half, rates)
    scale = np.maximum(np.outer(pairs, pairs), 1)
    estimates = RateEstimates(
        errors=errors,
        pairs=pairs,
        variances=dyadic_variances(residuals, np.diag(by_pair)) / np.diag(scale),
        n_clusters=effective_numbers(by_class),
    )
    return estimates, dyadic_covariance(residuals, by_pair) / scale


def false_reject_rates(counts: GroupCounts, frr_pairs: FrrPairs) -> tuple[RateEstimates, Values]:
    """Estimate the false reject rates of all groups and their covariance [G, G].

    The pairs are those of one class with both ends in the group ("within"), or at least one end ("touching").
    """
    rejected = counts.positives - counts.positives_accepted
    belongs = np.zeros((len(counts.cells), len(counts.groups)), dtype=np.int64)
    rows, (g, h) = np.arange(len(counts.cells)), counts.cells.T
    if frr_pairs == "within":
        rows, g, h = rows[g == h], g[g == h], h[g == h]
    belongs[rows, g] = belongs[rows, h] = 1
    errors_by_class, pairs_by_class = (part.astype(np.float64) @ belongs for part in (rejected, counts.positives))
    errors, pairs = errors_by_class.sum(axis=0), pairs_by_class.sum(axis=0)
    residuals = corrected_residuals(errors_by_class, pairs_by_class)
    covariance = class_covariance(residuals) / np.maximum(np.outer(pairs, pairs), 1)
    n_clusters = effective_numbers(pairs_by_class)
    return RateEstimates(errors=errors, pairs=pairs, variances=np.diag(covariance), n_clusters=n_clusters), covariance


def _of_cells(counts: ClassPairCounts, cells: NDArray[np.int64], n_cells: int) -> ClassPairCounts:
    """Return the counts of some cells, with new numbers for the cells."""
    number = np.full(n_cells, -1, dtype=np.int64)
    number[cells] = np.arange(len(cells))
    kept = np.flatnonzero(number[counts.cell] >= 0)
    return ClassPairCounts(counts.first[kept], counts.second[kept], number[counts.cell[kept]], counts.accepted[kept])


def _residual_products(
    accepted: ClassPairCounts, n: Values, groups: tuple[Counts, Counts], half: Values, rates: Values
) -> Values:
    """Return sum over pairs of classes of e_c * e_d, e = accepted - rate * pairs, for every two cells: [k, k].

    Most pairs of classes accept nothing and are summed by formula: their pairs are half * (n_ig n_jh + n_ih n_jg).
    """
    from scipy.sparse import csr_array  # slow to import, and rarely needed

    g, h = groups
    k = len(g)
    products = n.T @ n
    same_class = n[:, g] * n[:, h]
    pairs_pairs = np.outer(half, half) * (
        products[np.ix_(g, g)] * products[np.ix_(h, h)]
        + products[np.ix_(g, h)] * products[np.ix_(h, g)]
        - 2 * same_class.T @ same_class
    )
    accepted_pairs = np.zeros((k, k))
    step = max(1, _CHUNK // max(k, 1))
    for start in range(0, len(accepted.cell), step):
        part = slice(start, start + step)
        first, second = n[accepted.first[part]], n[accepted.second[part]]
        pairs = half * (first[:, g] * second[:, h] + first[:, h] * second[:, g])
        np.add.at(accepted_pairs, accepted.cell[part], accepted.accepted[part, None] * pairs)
    dyads = np.unique(accepted.first * len(n) + accepted.second, return_inverse=True)[1]
    counts = csr_array(
        (accepted.accepted.astype(np.float64), (dyads, accepted.cell)), shape=(int(dyads.max(initial=-1)) + 1, k)
    )
    accepted_accepted: Values = (counts.T @ counts).toarray()
    mixed = accepted_pairs * rates
    return accepted_accepted - mixed - mixed.T + np.outer(rates, rates) * pairs_pairs
