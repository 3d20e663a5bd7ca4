"""Estimate error rates of classes, of groups and of pairs of groups, with their variance over images and classes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from retrieval.consistency.intervals import effective_numbers
from retrieval.consistency.pairs.batches import accepted_pairs
from retrieval.consistency.pairs.tally import PairTally
from retrieval.consistency.pairs.vectors import Codes, LabelledVectors
from retrieval.consistency.subgroups.clustered import (
    RateEstimates,
    Values,
    class_covariance,
    corrected_residuals,
    dyadic_covariance,
    dyadic_variances,
)
from retrieval.consistency.subgroups.counts import ClassPairCounts, Counts, GroupCounts, class_pairs
from retrieval.consistency.subgroups.sizes import GroupSizes

FrrPairs: TypeAlias = Literal["within", "touching"]

_CHUNK = 1 << 20  # numbers held at once


def class_estimates(vectors: LabelledVectors, threshold: float) -> tuple[RateEstimates, RateEstimates]:
    """Estimate the false accept and the false reject rates of all classes, T each.

    Negatives of a class have exactly one end in it. Memory: n counts, and one for each pair of classes with a false
    accept.
    """
    n_classes = len(vectors.classes)
    of_query, of_item = (np.zeros((2, len(codes))) for codes in (vectors.codes, vectors.gallery_codes))
    tally = PairTally()
    for batch in accepted_pairs(vectors, threshold):
        match = batch.matches
        for kind, chosen in enumerate((~match, match)):
            of_query[kind] += np.bincount(batch.first_rows[chosen], minlength=of_query.shape[1])
            of_item[kind] += np.bincount(batch.second_rows[chosen], minlength=of_item.shape[1])
        tally.add(class_pairs(batch.first[~match], batch.second[~match], n_classes))
    images = _own_images(vectors, of_query, of_item)
    sides = (vectors.codes, of_query), (vectors.gallery_codes, of_item)
    accepts = np.stack([np.bincount(codes, counts[0], n_classes) for codes, counts in sides]).sum(axis=0)
    return _false_accept_rates(vectors, images, accepts, tally.counts()), _false_reject_rates(vectors, images)


@dataclass(frozen=True, slots=True, eq=False)
class _OwnImages:
    """The accepted and all pairs of each image: in one set those with an end in it, in rounds those as a query.

    The pull of a class makes its items alike, so that they do not show how much another draw of images would change
    them. As queries the images are independent, and an item of a class is not more different from another one.
    """

    codes: Codes  # [N]
    false_accepts: Values  # [N]
    negatives: Values  # [N]
    true_accepts: Values  # [N]
    positives: Values  # [N]

    def variances(self, errors: Values, pairs: Values, n_classes: int) -> tuple[Values, Values]:
        """Return for each class the variance of errors / pairs over its images, and how many they are: two [T].

        errors, pairs: [N]. An image that has more pairs counts more: the number is the effective one.
        """
        of_class = [np.bincount(self.codes, values, n_classes) for values in (errors, pairs, pairs**2)]
        total = np.maximum(of_class[1], 1)
        residuals = errors - (of_class[0] / total)[self.codes] * pairs
        squares = np.bincount(self.codes, residuals**2, n_classes)
        n = np.divide(of_class[1] ** 2, of_class[2], out=np.zeros(n_classes), where=of_class[2] > 0)
        several = np.divide(n, n - 1, out=np.zeros(n_classes), where=n > 1)
        return squares * several / total**2, n


def _own_images(vectors: LabelledVectors, of_query: Values, of_item: Values) -> _OwnImages:
    """Return the pairs of each image from the false and the true accepts of queries [2, n] and of items [2, g]."""
    sizes, codes = vectors.sizes, vectors.codes
    if vectors.one_set:
        n = sizes.items[codes]
        false_accepts, true_accepts = of_query + of_item
        return _OwnImages(codes, false_accepts, sizes.items.sum() - n, true_accepts, n - 1)
    n_images = int(vectors.n_images.sum())
    code_of = np.zeros(n_images, dtype=np.int64)
    code_of[vectors.gallery_order], code_of[vectors.order] = vectors.gallery_codes, codes

    def of_images(values: Values) -> Values:
        return np.bincount(vectors.order, values, n_images).astype(np.float64)

    items = sizes.items[codes]
    return _OwnImages(
        codes=code_of,
        false_accepts=of_images(of_query[0]),
        negatives=of_images(sizes.items.sum() - items),
        true_accepts=of_images(of_query[1]),
        positives=of_images(items),
    )


def _false_accept_rates(
    vectors: LabelledVectors, images: _OwnImages, accepts: Values, class_counts: tuple[Counts, Counts]
) -> RateEstimates:
    """Estimate from the false accepts of each class [T], and of each pair of classes: numbers and counts, two [e]."""
    n_classes, sizes, n = len(vectors.classes), vectors.sizes, vectors.n_images.astype(np.float64)
    pairs = vectors.negatives.astype(np.float64)
    rates = accepts / np.maximum(pairs, 1)
    over_images, n_clusters = images.variances(images.false_accepts, images.negatives, n_classes)
    # Variance over other classes j: sum_j (a_ij - rate_i pairs_ij)^2, and most a_ij are 0.
    first, second, counts = class_counts[0] // n_classes, class_counts[0] % n_classes, class_counts[1]
    between = sizes.between(first, second)
    squares, mixed = np.zeros(n_classes), np.zeros(n_classes)
    for own in (first, second):
        squares += np.bincount(own, counts.astype(np.float64) ** 2, n_classes)
        mixed += np.bincount(own, counts * between, n_classes)
    over_classes = squares - 2 * rates * mixed + rates**2 * sizes.squares()
    over_classes *= (n_classes - 1) / max(n_classes - 2, 1) / np.maximum(pairs, 1) ** 2
    # In rounds two images meet several times, which is no more evidence than once.
    repeats = pairs / np.maximum(n * (n.sum() - n), 1)
    single_pairs = repeats * rates * (1 - rates) / np.maximum(pairs, 1)
    return RateEstimates(
        errors=accepts,
        pairs=pairs,
        variances=np.maximum(over_images + np.maximum(over_classes, 0), single_pairs),
        # With one image only the classes that it meets vary.
        n_clusters=np.where(n > 1, np.minimum(n_clusters, n_classes - 1), n_classes - 1.0),
    )


def _false_reject_rates(vectors: LabelledVectors, images: _OwnImages) -> RateEstimates:
    """Estimate from the true accepts of each image; each of the two ends of a pair varies as much as the other."""
    n_classes, n = len(vectors.classes), vectors.n_images.astype(np.float64)
    ends = 2 if vectors.one_set else 1
    rejects = images.positives - images.true_accepts
    errors, pairs = (np.bincount(images.codes, values, n_classes) / ends for values in (rejects, images.positives))
    rates = errors / np.maximum(pairs, 1)
    of_one_end, n_clusters = images.variances(rejects, images.positives, n_classes)
    single_pairs = rates * (1 - rates) / np.maximum(n * (n - 1) / 2, 1)
    return RateEstimates(
        errors=errors,
        pairs=pairs,
        variances=np.maximum(4 * of_one_end - single_pairs, single_pairs),
        n_clusters=np.where(n > 1, n_clusters, n),
    )


def false_accept_rates(counts: GroupCounts, cells: NDArray[np.int64]) -> tuple[RateEstimates, Values]:
    """Estimate the false accept rates of some cells, given by number [k], and their covariance [k, k]."""
    sizes = counts.sizes.at(cells)
    by_class = sizes.across()
    pairs = by_class.sum(axis=0) / 2
    accepted = _of_cells(counts.negatives_accepted, cells, len(counts.cells))
    accepted_by_class = accepted.by_class(len(by_class), len(cells)).astype(np.float64)
    errors = accepted_by_class.sum(axis=0) / 2
    rates = errors / np.maximum(pairs, 1)
    residuals = corrected_residuals(accepted_by_class, by_class, ends=2)
    by_pair = _residual_products(accepted, sizes, rates)
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


def _residual_products(accepted: ClassPairCounts, sizes: GroupSizes, rates: Values) -> Values:
    """Return sum over pairs of classes of e_c * e_d, e = accepted - rate * pairs, for every two cells: [k, k].

    Most pairs of classes accept nothing and are summed by formula, see `GroupSizes.products`.
    """
    from scipy.sparse import csr_array  # slow to import, and rarely needed

    k, n_classes = len(sizes.cells), len(sizes.meetings[0][0])
    accepted_pairs = np.zeros((k, k))
    step = max(1, _CHUNK // max(k, 1))
    for start in range(0, len(accepted.cell), step):
        part = slice(start, start + step)
        pairs = sizes.between(accepted.first[part], accepted.second[part])
        np.add.at(accepted_pairs, accepted.cell[part], accepted.accepted[part, None] * pairs)
    dyads = np.unique(class_pairs(accepted.first, accepted.second, n_classes), return_inverse=True)[1]
    counts = csr_array(
        (accepted.accepted.astype(np.float64), (dyads, accepted.cell)), shape=(int(dyads.max(initial=-1)) + 1, k)
    )
    accepted_accepted: Values = (counts.T @ counts).toarray()
    mixed = accepted_pairs * rates
    return accepted_accepted - mixed - mixed.T + np.outer(rates, rates) * sizes.products()
