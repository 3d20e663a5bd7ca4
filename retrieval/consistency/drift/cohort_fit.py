"""Test, without labels, whether a cohort is of the same kind as the catalogue that it is to serve.

The test compares densities. What the cohort score does is in `normalisation` and the contract's score.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from retrieval.consistency.arguments import checked
from retrieval.consistency.intervals import Interval, normal_quantile
from retrieval.consistency.pairs.tiles import slices
from retrieval.consistency.pairs.vectors import LabelledVectors, Vectors
from retrieval.errors import InvalidEmbeddings, InvalidInput, NotEnoughEvidence

Reals = NDArray[np.float64]

_MIN_UNITS = 10  # independent images or groups on either side of the test


@dataclass(frozen=True, slots=True, kw_only=True)
class CohortFit:
    """How well a cohort fits a catalogue; the intervals have the stated confidence."""

    p_value: float  # of the hypothesis that both are of one population
    # Probability that a cohort image lies in a denser place of the cohort than a catalogue image: 0.5 for one
    # population, near 1 if the catalogue lies elsewhere.
    crowding: float
    crowding_interval: Interval
    agreement: float  # rank correlation, over the catalogue, of the density in the cohort with that in the catalogue
    agreement_interval: Interval
    n_cohort: int  # independent images or groups compared
    n_catalogue: int
    confidence: float

    def fits(self, alpha: float = 0.01) -> bool:
        """Whether the cohort passes the test; a cohort that fits is rejected with probability alpha.

        Raises:
            InvalidInput: alpha outside (0, 1).
        """
        if not 0 < alpha < 1:
            raise InvalidInput(f"alpha is the probability of a false alarm and lies in (0, 1), found {alpha}")
        return self.p_value > alpha

    def __str__(self) -> str:
        return (
            f"the cohort {'fits' if self.fits() else 'does not fit'} the catalogue: p {self.p_value:.2g}, a cohort "
            f"image is in a more crowded place with probability {self.crowding:.3f} ({self.crowding_interval}), "
            f"densities agree with rank correlation {self.agreement:.2f} ({self.agreement_interval}); "
            f"{self.n_cohort} against {self.n_catalogue}"
        )


@checked
def cohort_fit(
    cohort: LabelledVectors,
    catalogue: LabelledVectors,
    *,
    k: int,
    rng: np.random.Generator,
    skip: int = 0,
    confidence: float = 0.95,
) -> CohortFit:
    """Return whether a cohort fits a catalogue; a sample of each is enough.

    cohort, catalogue: see `labelled`; the labels name what belongs together (class, product, series). A group counts
    once, by its mean. If all images are independent, give each its own label. skip: nearest catalogue images left out
    of the density within the catalogue, apart from the image itself: about as many as an image has of its own class.
    rng: draws the half. Cost: n * (m + n) products; memory: one tile.

    Density is the mean of the k largest similarities. A random half of the cohort is the reference for both the other
    half and the catalogue (with k halved): given it, the densities of the two have one distribution if cohort and
    catalogue are of one population, and the Mann-Whitney test keeps its level. Leave-one-out densities in the cohort
    would not: an image's own class is in the cohort, that of a catalogue image may not be.

    The test finds a catalogue that lies elsewhere, not every harmful cohort, so look at the agreement too. On emoji,
    brand logos, food photographs and Fashion-MNIST (`tests/bench/cohort_fit.py`) the cohort score raised TAR at FAR
    1e-3 if the agreement was above 0.5 and lowered it otherwise.

    Raises:
        NotEnoughEvidence: fewer than 10 groups in half the cohort or in the catalogue, or no more than k images.
        InvalidInput: k below 1, skip below 0, confidence outside (0, 1).
        InvalidEmbeddings: other dimensions, or vectors of another score than cosine.

    Source: Mann, Whitney, "On a test of whether one of two random variables is stochastically larger than the other",
    Annals of Mathematical Statistics 18 (1947); interval of crowding: DeLong, DeLong, Clarke-Pearson, "Comparing the
    areas under two or more correlated receiver operating characteristic curves", Biometrics 44 (1988); of a rank
    correlation: Bonett, Wright, "Sample size requirements for estimating Pearson, Kendall and Spearman correlations",
    Psychometrika 65 (2000).

    >>> turn = lambda degrees: np.array([np.cos(degrees), np.sin(degrees)], dtype=np.float32).T
    >>> rng = np.random.default_rng(0)
    >>> from retrieval.consistency import labelled
    >>> each = [f"{row:02d}" for row in range(99)]
    >>> cohort, near, far = (labelled(turn(rng.normal(place, 0.3, 99)), each) for place in (0, 0, 3))
    >>> cohort_fit(cohort, near, k=5, rng=rng).fits(), cohort_fit(cohort, far, k=5, rng=rng).fits()
    (True, False)
    """
    if k < 1 or skip < 0:
        raise InvalidInput(f"expected k of at least 1 and skip of at least 0, found {k} and {skip}")
    from scipy.stats import mannwhitneyu  # slow to import, and rarely needed

    z = normal_quantile(confidence)
    (cohort_rows, cohort_codes), (catalogue_rows, catalogue_codes) = _in_order(cohort), _in_order(catalogue)
    if cohort_rows.shape[1] != catalogue_rows.shape[1] or not (cohort.cosine and catalogue.cosine):
        raise InvalidEmbeddings(
            f"expected unit rows of one dimension, found {cohort_rows.shape[1]} in the cohort and "
            f"{catalogue_rows.shape[1]} in the catalogue; embed both with one model"
        )
    _check_size(cohort_codes, catalogue_codes, k, skip)
    half = _half_of(cohort_codes, rng)
    k_half = max(1, round(k / 2))
    reference = cohort_rows[half]
    of_cohort = _group_means(_densities(cohort_rows[~half], reference, k_half), cohort_codes[~half])
    of_catalogue = _group_means(_densities(catalogue_rows, reference, k_half), catalogue_codes)
    crowding, variance = _crowding(of_cohort, of_catalogue)
    spread = z * math.sqrt(variance)
    in_catalogue = _densities(catalogue_rows, catalogue_rows, k, skip=skip + 1)
    agreement = _rank_correlation(_densities(catalogue_rows, cohort_rows, k), in_catalogue)
    half_width = z * math.sqrt((1 + agreement**2 / 2) / (len(of_catalogue) - 3))
    centre = math.atanh(min(max(agreement, -1 + 1e-9), 1 - 1e-9))
    return CohortFit(
        p_value=float(mannwhitneyu(of_cohort, of_catalogue).pvalue),
        crowding=crowding,
        crowding_interval=Interval(max(crowding - spread, 0.0), min(crowding + spread, 1.0)),
        agreement=agreement,
        agreement_interval=Interval(math.tanh(centre - half_width), math.tanh(centre + half_width)),
        n_cohort=len(of_cohort),
        n_catalogue=len(of_catalogue),
        confidence=confidence,
    )


def _in_order(vectors: LabelledVectors) -> tuple[Vectors, NDArray[np.int64]]:
    """Return the rows in the caller's order, and the number of each row's group: [n, d] and [n] int64."""
    back = np.argsort(vectors.order)
    return vectors.query[back], vectors.codes[back]


def _half_of(codes: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.bool_]:
    """Return which rows belong to a random half of the groups: [n] bool."""
    n_groups = int(codes.max()) + 1
    chosen = np.zeros(n_groups, dtype=np.bool_)
    chosen[rng.permutation(n_groups)[: n_groups // 2]] = True
    return chosen[codes]


def _rank_correlation(first: Reals, second: Reals) -> float:
    if np.ptp(first) == 0 or np.ptp(second) == 0:
        raise NotEnoughEvidence("all catalogue images have the same density; give images that differ")
    from scipy.stats import spearmanr

    return float(spearmanr(first, second).statistic)


def _check_size(cohort: NDArray[np.int64], catalogue: NDArray[np.int64], k: int, skip: int) -> None:
    n_cohort, n_catalogue = int(cohort.max()) + 1, int(catalogue.max()) + 1
    if n_cohort < 2 * _MIN_UNITS or n_catalogue < _MIN_UNITS or len(cohort) < 4 * k or len(catalogue) <= k + skip:
        raise NotEnoughEvidence(
            f"expected at least {2 * _MIN_UNITS} groups and {4 * k} images in the cohort, {_MIN_UNITS} groups and "
            f"more than {k + skip} images in the catalogue, found {n_cohort} and {len(cohort)}, {n_catalogue} and "
            f"{len(catalogue)}; give more, or a smaller k"
        )


def _densities(images: Vectors, among: Vectors, k: int, skip: int = 0) -> Reals:
    """Return the mean of the k largest similarities after the `skip` largest: [n] float64."""
    k, found = min(k, len(among) - skip), []
    for rows in slices(0, len(images)):
        similarities = images[rows] @ among.T
        cut = len(among) - k - skip
        nearest = np.sort(np.partition(similarities, cut, axis=1)[:, cut:], axis=1)
        found.append(nearest[:, :k].mean(axis=1, dtype=np.float64))
    return np.concatenate(found)


def _group_means(values: Reals, codes: NDArray[np.int64]) -> Reals:
    counts = np.bincount(codes)
    return np.asarray((np.bincount(codes, values) / np.maximum(counts, 1))[counts > 0], dtype=np.float64)


def _crowding(of_cohort: Reals, of_catalogue: Reals) -> tuple[float, float]:
    """Return the probability that a value of the first is larger, ties counted half, and the estimate's variance."""
    placed = [
        (np.searchsorted(np.sort(other), own, "left") + np.searchsorted(np.sort(other), own, "right")) / 2 / len(other)
        for own, other in ((of_cohort, of_catalogue), (of_catalogue, of_cohort))
    ]
    return float(placed[0].mean()), float(sum(values.var(ddof=1) / len(values) for values in placed))
