"""Accepted pairs -> error rates of single classes, with their variance over images and over the classes they meet."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from retrieval.consistency.pairs.pairs import LabelledVectors, accepted_pairs
from retrieval.consistency.pairs.tally import PairTally
from retrieval.consistency.subgroups.clustered import RateEstimates, Values


def class_estimates(vectors: LabelledVectors, threshold: float, *, tile: int) -> tuple[RateEstimates, RateEstimates]:
    """Return the false accept and the false reject rates of all classes, T each; covariances are diagonal.

    Negatives of a class have exactly one end in it. Memory: n counts, and one for each pair of classes with a false
    accept.
    """
    n_images_in_all, n_classes = len(vectors.codes), len(vectors.classes)
    false_accepts, true_accepts = np.zeros(n_images_in_all), np.zeros(n_images_in_all)
    tally = PairTally()
    for batch in accepted_pairs(vectors, threshold, tile=tile):
        match = batch.matches
        for rows in (batch.first_rows, batch.second_rows):
            true_accepts += np.bincount(rows[match], minlength=n_images_in_all)
            false_accepts += np.bincount(rows[~match], minlength=n_images_in_all)
        tally.add(batch.first[~match] * n_classes + batch.second[~match])
    return (
        _false_accept_rates(vectors, false_accepts, *tally.counts()),
        _false_reject_rates(vectors, true_accepts),
    )


def _false_accept_rates(
    vectors: LabelledVectors, accepts: Values, class_pairs: NDArray[np.int64], counts: NDArray[np.int64]
) -> RateEstimates:
    """accepts: [n], false accepts of each image; class_pairs, counts: [e], first * T + second and false accepts."""
    n = vectors.n_images.astype(np.float64)
    n_classes, total = len(n), n.sum()
    pairs = n * (total - n)
    errors = np.bincount(vectors.codes, accepts, n_classes).astype(np.float64)
    rates = errors / np.maximum(pairs, 1)
    # Over own images: each meets total - n_i others.
    residuals = accepts - (rates * (total - n))[vectors.codes]
    over_images = np.bincount(vectors.codes, residuals**2, n_classes) * n / np.maximum(n - 1, 1)
    # Over other classes j: sum_j (a_ij - rate_i n_i n_j)^2, of which most a_ij are 0.
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
        # A class of one image says nothing of its other images; the classes it meets are all there is.
        n_clusters=np.where(n > 1, np.minimum(n, n_classes - 1), n_classes - 1).astype(np.int64),
    )


def _false_reject_rates(vectors: LabelledVectors, accepts: Values) -> RateEstimates:
    """accepts: [n], true accepts of each image."""
    n = vectors.n_images.astype(np.float64)
    pairs = n * (n - 1) / 2
    rejects = (n - 1)[vectors.codes] - accepts
    errors = np.bincount(vectors.codes, rejects, len(n)) / 2
    rates = errors / np.maximum(pairs, 1)
    residuals = rejects - (rates * (n - 1))[vectors.codes]
    over_images = np.bincount(vectors.codes, residuals**2, len(n)) * n / np.maximum(n - 1, 1)
    single_pairs = pairs * rates * (1 - rates)
    variances = np.maximum(over_images - single_pairs, single_pairs) / np.maximum(pairs, 1) ** 2
    return RateEstimates(errors=errors, pairs=pairs, variances=variances, n_clusters=n.astype(np.int64))
