"""How much of the spread between classes is sampling noise: the floor under OPIS, and the estimate free of noise.

The floor is simulated; the estimate deals the images of each class into two halves with independent noise.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from retrieval.consistency.curves import OperatingCurves, Rates, count_accepted
from retrieval.consistency.pairs import LabelledVectors
from retrieval.consistency.utility import Band, at_nodes, class_utilities, utility

# Both halves of a class need a positive pair.
MIN_IMAGES_TO_SPLIT = 4
# A covariance over fewer classes says nothing.
MIN_CLASSES_TO_SPLIT = 10
# The floor is a mean over classes already; its simulation error after this many is a few per cent.
_FLOOR_REPLICATES = 50
# One number for the whole band, from a few of its thresholds and the first images of large classes.
_CORRELATION_LEVELS = 9
_MAX_IMAGES_FOR_CORRELATION = 200


def noise_floor(
    curves: OperatingCurves, band: Band, *, c: float, pair_correlation: float, rng: np.random.Generator
) -> float:
    """Return the OPIS expected when all classes share the mean TAR and the pooled FAR curve.

    A class of n images is simulated with as many independent pairs as vary like its own: two pairs that share an image
    correlate by pair_correlation, which multiplies the variance of TAR by 1 + 2 (n - 2) pair_correlation.
    """
    n_images = curves.n_images[curves.with_positives]
    inflation = 1 + 2 * (n_images - 2) * pair_correlation
    trials = np.maximum(np.round(curves.positives[curves.with_positives] / inflation).astype(np.int64), 1)
    falling = at_nodes(curves.mean_tar, curves.thresholds, band.nodes)
    # Shares of positives lost before the first node, between neighbouring nodes, and kept at the last one.
    shares = np.maximum(-np.diff(falling, prepend=1.0, append=0.0), 0)
    total = 0.0
    for _ in range(_FLOOR_REPLICATES):
        lost = rng.multinomial(trials, shares / shares.sum())[:, :-1].cumsum(axis=1)
        utilities = utility(1 - lost / trials[:, None], band.pooled_far, c)
        total += float(band.mean(utilities.var(axis=0)))
    return total / _FLOOR_REPLICATES


def measure_pair_correlation(vectors: LabelledVectors, band: Band) -> float:
    """Return how two positive pairs of one class correlate in being accepted when they share an image: 0 to 1.

    Disjoint pairs of the class are the baseline, so that spread between classes does not count. 0 where no class has
    four images, or where nothing varies.
    """
    levels = np.quantile(band.nodes, np.linspace(0, 1, _CORRELATION_LEVELS))
    sharing, alone = np.zeros(len(levels)), np.zeros(len(levels))
    sizes = vectors.n_images
    for start, size in zip(np.cumsum(sizes) - sizes, np.minimum(sizes, _MAX_IMAGES_FOR_CORRELATION), strict=True):
        if size >= MIN_IMAGES_TO_SPLIT:
            rows = slice(start, start + size)
            scores = vectors.query[rows] @ vectors.gallery[rows].T
            np.fill_diagonal(scores, -np.inf)
            by_image = (scores >= levels[:, None, None]).sum(axis=2)
            joint, single, disjoint = _acceptance(by_image, int(size))
            sharing += joint - disjoint
            alone += single - disjoint
    return float(np.clip(sharing.sum() / alone.sum(), 0, 1)) if alone.sum() > 0 else 0.0


def _acceptance(by_image: NDArray[np.int64], size: int) -> tuple[Rates, Rates, Rates]:
    """Return the share accepted, [L] each, of twos of pairs that share an image, of pairs, of twos of disjoint pairs.

    by_image: [L, size], accepted pairs of each image.
    """
    n_pairs = size * (size - 1) / 2
    n_sharing = n_pairs * (size - 2)
    accepted = by_image.sum(axis=1) / 2
    sharing = (by_image * (by_image - 1)).sum(axis=1) / 2
    disjoint = accepted * (accepted - 1) / 2 - sharing
    return sharing / n_sharing, accepted / n_pairs, disjoint / (n_pairs * (n_pairs - 1) / 2 - n_sharing)


def debiased_shares(
    vectors: LabelledVectors, band: Band, *, c: float, n_splits: int, rng: np.random.Generator, tile: int
) -> Rates:
    """Return each class's share of the debiased OPIS, whose mean over classes is the estimate: [classes split] float64.

    Empty when fewer than 10 classes have four images.
    """
    splittable = vectors.n_images >= MIN_IMAGES_TO_SPLIT
    n_classes = int(np.count_nonzero(splittable))
    if n_classes < MIN_CLASSES_TO_SPLIT:
        return np.zeros(0)
    rows = np.flatnonzero(splittable[vectors.codes])
    total = np.zeros(n_classes)
    for _ in range(n_splits):
        in_first = _deal(vectors.codes[rows], rng)
        deviations = []
        for half in (rows[in_first], rows[~in_first]):
            utilities = class_utilities(count_accepted(vectors.subset(half), band.nodes, tile=tile), band, c)
            deviations.append(utilities - utilities.mean(axis=0))
        total += band.mean(deviations[0] * deviations[1])
    # The means are estimated from the same classes: the usual factor of an unbiased covariance.
    return total / n_splits * n_classes / (n_classes - 1)


def _deal(codes: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.bool_]:
    """Choose floor(n / 2) images of each class at random; codes ascend."""
    shuffled = np.lexsort((rng.random(len(codes)), codes))
    sizes = np.bincount(codes)
    starts = np.cumsum(sizes) - sizes
    place = np.arange(len(codes)) - starts[codes]
    chosen = np.zeros(len(codes), dtype=np.bool_)
    chosen[shuffled[place < sizes[codes] // 2]] = True
    return chosen
