"""Sampling noise in the TAR of a class, and the OPIS that it causes if all classes share one curve.

`debiased` subtracts the noise from OPIS; `query_noise` measures that of queries with a gallery. The noise of FAR is
left out everywhere: a class meets all other images, so on real embeddings of eight images a class it was at most a
hundredth of the noise of TAR.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from retrieval.consistency.curves import Rates
from retrieval.consistency.opis.utility import Band, utility
from retrieval.consistency.pairs.products import float32_at_least
from retrieval.consistency.pairs.vectors import LabelledVectors

# Two pairs without a common image; with fewer, noise of TAR and a class's own curve cannot be separated.
MIN_IMAGES_FOR_NOISE = 4
# The noise of larger classes is small: it is measured on this many of their images, evenly spaced.
_MAX_IMAGES = 500
# Bounds the memory of the similarities of a block of classes: 16 MiB.
_BLOCK_SCORES = 1 << 22
# Above, a normal law replaces the binomial one, because its third moment no longer matters.
_MAX_TRIALS = 64
_NORMAL_POINTS, _NORMAL_MASSES = np.polynomial.hermite_e.hermegauss(9)


@dataclass(frozen=True, slots=True, eq=False)
class PairAgreement:
    """How often pairs of a class are accepted together, for T' classes with positives at L levels.

    Given the class, single is unbiased for its TAR t, disjoint for t^2, and sharing for t^2 or more. This assumes that
    the images of a class are independent and identically distributed. If the same sources made every class, the effect
    of a source on all classes counts as noise too: with emoji of eight makers the remaining spread was 2 to 10 % too
    small.

    Source: Hoeffding, "A class of statistics with asymptotically normal distribution", Annals of Mathematical
    Statistics 19 (1948): U-statistics and their variance.
    """

    single: Rates  # [T', L], share of the pairs that are accepted
    sharing: Rates  # [T', L], share of the pairs of pairs with a common image of which both are; NaN below three images
    disjoint: Rates  # [T', L], the same without a common image; NaN below four images
    n_images: NDArray[np.int64]  # [T']

    @property
    def measurable(self) -> NDArray[np.bool_]:
        """Which classes have four images: [T'] bool."""
        return self.n_images >= MIN_IMAGES_FOR_NOISE


def measure_agreement(vectors: LabelledVectors, levels: Rates) -> PairAgreement:
    """Return how pairs inside the classes with positives are accepted at ascending levels [L].

    Cost: the pairs inside classes, of at most 500 images each; memory bounded.
    """
    limits = float32_at_least(levels)
    sizes = vectors.n_images
    starts = np.cumsum(sizes) - sizes
    rows = np.flatnonzero(sizes >= 2)
    used = np.minimum(sizes, _MAX_IMAGES)
    single, sharing, disjoint = (np.full((len(sizes), len(levels)), np.nan) for _ in range(3))
    for size in np.unique(used[rows]):
        for members in _blocks(rows[used[rows] == size], int(size)):
            picked = starts[members, None] + np.arange(size) * sizes[members, None] // size
            by_image = _accepted_by_image(vectors, picked, limits)
            single[members], sharing[members], disjoint[members] = _agreement(by_image, int(size))
    return PairAgreement(single[rows], sharing[rows], disjoint[rows], sizes[rows])


def _blocks(members: NDArray[np.int64], size: int) -> Iterator[NDArray[np.int64]]:
    step = max(1, _BLOCK_SCORES // size**2)
    for start in range(0, len(members), step):
        yield members[start : start + step]


def _accepted_by_image(
    vectors: LabelledVectors, picked: NDArray[np.int64], limits: NDArray[np.float32]
) -> NDArray[np.int64]:
    """Return the number of images of its class with which each image is accepted: [k, size] rows -> [k, size, L]."""
    k, size = picked.shape
    scores = vectors.query[picked] @ vectors.gallery[picked].transpose(0, 2, 1)
    scores[:, np.arange(size), np.arange(size)] = -np.inf
    reached = np.searchsorted(limits, scores, side="right")
    n_bins = len(limits) + 1
    image = np.arange(k * size).reshape(k, size, 1)
    histogram = np.bincount((image * n_bins + reached).ravel(), minlength=k * size * n_bins)
    return histogram.reshape(k, size, n_bins)[..., :0:-1].cumsum(axis=2)[..., ::-1]


def _agreement(by_image: NDArray[np.int64], size: int) -> tuple[Rates, Rates, Rates]:
    """Return single, sharing and disjoint, [k, L] each, of classes with `size` images."""
    n_pairs = size * (size - 1) // 2
    n_sharing = n_pairs * (size - 2)
    n_disjoint = n_pairs * (n_pairs - 1) // 2 - n_sharing
    accepted = by_image.sum(axis=1) // 2
    both_sharing = (by_image * (by_image - 1)).sum(axis=1) // 2
    both_disjoint = accepted * (accepted - 1) // 2 - both_sharing
    unknown = np.full(accepted.shape, np.nan)
    return (
        accepted / n_pairs,
        both_sharing / n_sharing if n_sharing else unknown,
        both_disjoint / n_disjoint if n_disjoint else unknown,
    )


@dataclass(frozen=True, slots=True, eq=False)
class TarNoise:
    """The sampling noise in the TAR of T' classes with positives, at L levels."""

    variance: Rates  # [T', L], of the measured TAR around the true one
    relative: Rates  # [T'], proportional to what is expected of a class of this size
    measurable: NDArray[np.bool_]  # [T'], whether the variance is without bias


def pair_noise(agreement: PairAgreement, weights: Rates) -> TarNoise:
    """Return the noise of classes inside one set of images; weights: [T'], of the classes."""
    n_images = agreement.n_images
    inflation = variance_inflation(n_images, pair_correlation(agreement, weights))
    return TarNoise(noise_of_tar(agreement), inflation / (n_images * (n_images - 1) / 2), agreement.measurable)


def noise_of_tar(agreement: PairAgreement) -> Rates:
    """Return the variance of each class's measured TAR around its true TAR: [T', L] float64.

    Unbiased from four images on. With three it is the least that the data allow, as if pairs that share an image were
    independent; with two it is 0: one pair that is accepted half of the time may belong to a class with TAR 1/2 or come
    from classes with TAR 0 and 1, which no number of such classes can separate.
    """
    single, sharing, n_images = agreement.single, agreement.sharing, agreement.n_images[:, None]
    square = np.where(agreement.measurable[:, None], agreement.disjoint, sharing)  # estimates the squared true TAR
    n_pairs = n_images * (n_images - 1) / 2
    variance = (single - square + 2 * (n_images - 2) * (sharing - square)) / n_pairs
    return np.where(n_images == 2, 0.0, variance)


def pair_correlation(agreement: PairAgreement, weights: Rates) -> float:
    """Return the correlation between the acceptance of two pairs of one class that share an image: 0 to 1/2.

    Measured against disjoint pairs, so that spread between classes does not count, in the classes with four images. If
    there are none, three images give the correlation that holds if all classes share one curve. 0 if there are neither,
    or if nothing varies.
    """
    for rows in (agreement.measurable, agreement.n_images == MIN_IMAGES_FOR_NOISE - 1):
        share = weights[rows]
        if share.sum() > 0:
            single, sharing = share @ agreement.single[rows], share @ agreement.sharing[rows]
            disjoint = share @ agreement.disjoint[rows]
            square = np.where(np.isnan(disjoint), single**2 / share.sum(), disjoint)
            alone = float((single - square).sum())
            return float(np.clip((sharing - square).sum() / alone, 0, 0.5)) if alone > 0 else 0.0
    return 0.0


def variance_inflation(n_images: NDArray[np.int64], correlation: float) -> Rates:
    """Return the variance of a class's TAR over that of as many independent pairs: [T'] float64."""
    return np.asarray(1 + 2 * (n_images - 2) * correlation, dtype=np.float64)


@dataclass(frozen=True, slots=True, eq=False)
class SharedCurve:
    """The null hypothesis that all classes share one curve.

    Every class has the mean TAR and the pooled FAR at the nodes of the band, and its measured TAR varies as a share of
    independent pairs.
    """

    band: Band
    mean_tar: Rates  # [p]
    n_independent: Rates  # [T'], so many pairs would vary as the pairs of the class do
    weights: Rates  # [T']
    c: float  # see `utility`


def independent_pairs(n_images: NDArray[np.int64], correlation: float) -> Rates:
    """Return the number of independent pairs that vary as the pairs of a class of n_images [k] do: [k] float64.

    correlation: see `pair_correlation`.
    """
    return np.asarray(n_images * (n_images - 1) / 2 / variance_inflation(n_images, correlation), dtype=np.float64)


def noise_floor(null: SharedCurve) -> float:
    """Return the OPIS expected under the null.

    Classes that differ in FAR or TAR add to OPIS, not to the floor: value - floor is what chance does not explain.
    """
    mean_tar = np.clip(null.mean_tar, 0, 1)  # a weighted mean of ones may round above 1
    numbers, which = np.unique(null.n_independent, return_inverse=True)
    pooled_far, weights = null.band.pooled_far, null.weights
    moments = (_utility_moments(n, mean_tar, pooled_far, null.c) for n in numbers)
    means, variances = zip(*moments, strict=True)
    mean, variance = np.stack(means)[which], np.stack(variances)[which]
    between = weights @ mean**2 - (weights @ mean) ** 2
    return max(float(null.band.mean(between + (weights * (1 - weights)) @ variance)), 0.0)


def _utility_moments(n_trials: float, tar: Rates, far: Rates, c: float) -> tuple[Rates, Rates]:
    """Return mean and variance of the utility of a class whose TAR is a share of n_trials: two [p] float64."""
    if n_trials > _MAX_TRIALS:
        spread = np.sqrt(tar * (1 - tar) / n_trials)
        drawn = np.clip(tar + np.multiply.outer(_NORMAL_POINTS, spread), 0, 1)
        masses = np.broadcast_to((_NORMAL_MASSES / _NORMAL_MASSES.sum())[:, None], drawn.shape)
        return _moments(masses, utility(drawn, far, c))
    from scipy.stats import binom  # takes half a second to import

    # Between two whole numbers, the mixture of both that has the variance of n_trials.
    whole = max(int(n_trials), 1)
    share = np.clip((1 / n_trials - 1 / (whole + 1)) * whole * (whole + 1), 0, 1)
    laws, shares_accepted = [], []
    for number, part in ((whole, share), (whole + 1, 1 - share)):
        accepted = np.arange(number + 1)[:, None]
        laws.append(part * binom.pmf(accepted, number, tar))
        shares_accepted.append(np.broadcast_to(accepted / number, laws[-1].shape))
    return _moments(np.concatenate(laws), utility(np.concatenate(shares_accepted), far, c))


def _moments(masses: Rates, values: Rates) -> tuple[Rates, Rates]:
    mean = (masses * values).sum(axis=0)
    return mean, (masses * (values - mean) ** 2).sum(axis=0)
