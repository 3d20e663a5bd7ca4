"""Does a cohort belong to the catalogue it is to serve? Told from densities, without labels.

Decides whether a cohort is of another kind than the catalogue, and how well it knows the catalogue's crowded places.
What the cohort score does, and which cohort is best, is left to the score itself.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import mannwhitneyu, spearmanr

from retrieval.consistency.intervals import Interval, normal_quantile
from retrieval.consistency.pairs.pairs import Vectors, labelled_vectors
from retrieval.errors import InvalidEmbeddings, InvalidInput, NotEnoughEvidence

Reals = NDArray[np.float64]

_MIN_UNITS = 10  # independent pictures or groups on either side of the test
_TILE = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class CohortFit:
    """How a cohort and a catalogue go together.

    p_value: of the hypothesis that both are drawn alike; crowding: probability that a cohort picture lies in a more
    crowded place of the cohort than a catalogue picture does, 0.5 where they are alike, near 1 where the catalogue lies
    elsewhere; agreement: rank correlation over the catalogue of the density in the cohort with that in the catalogue
    itself. n_cohort, n_catalogue: independent pictures or groups compared.
    """

    p_value: float
    crowding: float
    crowding_interval: Interval
    agreement: float
    agreement_interval: Interval
    n_cohort: int
    n_catalogue: int
    confidence: float

    def fits(self, alpha: float = 0.01) -> bool:
        """Whether nothing speaks against the cohort; one that fits is turned down with probability alpha.

        Raises:
            InvalidInput: alpha outside (0, 1).
        """
        if not 0 < alpha < 1:
            raise InvalidInput(f"alpha is the probability of a false alarm and lies in (0, 1), found {alpha}")
        return self.p_value > alpha

    def __str__(self) -> str:
        return (
            f"the cohort {'fits' if self.fits() else 'does not fit'} the catalogue: p {self.p_value:.2g}, a cohort "
            f"picture is in a more crowded place with probability {self.crowding:.3f} ({self.crowding_interval}), "
            f"densities agree with rank correlation {self.agreement:.2f} ({self.agreement_interval}); "
            f"{self.n_cohort} against {self.n_catalogue}"
        )


def cohort_fit(
    cohort: Vectors,
    catalogue: Vectors,
    *,
    k: int,
    rng: np.random.Generator,
    cohort_groups: Sequence[str] | None = None,
    catalogue_groups: Sequence[str] | None = None,
    skip: int = 0,
    confidence: float = 0.95,
) -> CohortFit:
    """Return whether a cohort fits a catalogue, from unit rows: [m, d] and [n, d] float32; a sample will do.

    Density: mean of the k largest similarities. One half of the cohort, drawn at random, is what both the other half
    and the catalogue are compared with (k halved as well): given it, the densities of the two are alike where cohort
    and catalogue are drawn alike, and the Mann-Whitney test of them keeps its level. (A cohort's leave-one-out
    densities do not: a picture's own class is in the cohort, that of a catalogue picture need not be.)

    cohort_groups, catalogue_groups: m and n names of what belongs together (class, product, series); a group stays in
    one half and counts once, by its mean. None takes pictures as independent: then give one picture of each thing.
    skip: nearest catalogue pictures left out of the agreement's density within the catalogue, the picture itself apart:
    about as many as a picture has of its own class. rng: draws the half. Cost: n * (m + n) products; memory: one tile.

    The test finds a catalogue that lies elsewhere, not every harmful cohort: look at the agreement too. On emoji, brand
    logos, food photographs and Fashion-MNIST (`tests/bench/cohort_fit.py`) the cohort score raised TAR at FAR 1e-3
    where the agreement was above 0.5 and lowered it where it was below.

    Raises:
        NotEnoughEvidence: fewer than 10 groups in half the cohort or in the catalogue, or no more than k pictures.
        InvalidInput: k below 1, skip below 0, confidence outside (0, 1).
        InvalidEmbeddings: rows that are not finite, not unit, or of other dimensions.

    Source: Mann, Whitney, "On a test of whether one of two random variables is stochastically larger than the other",
    Annals of Mathematical Statistics 18 (1947); interval of crowding: DeLong, DeLong, Clarke-Pearson, "Comparing the
    areas under two or more correlated receiver operating characteristic curves", Biometrics 44 (1988); of a rank
    correlation: Bonett, Wright, "Sample size requirements for estimating Pearson, Kendall and Spearman correlations",
    Psychometrika 65 (2000).

    >>> turn = lambda degrees: np.array([np.cos(degrees), np.sin(degrees)], dtype=np.float32).T
    >>> rng = np.random.default_rng(0)
    >>> cohort, near, far = turn(rng.normal(0, 0.3, 99)), turn(rng.normal(0, 0.3, 99)), turn(rng.normal(3, 0.3, 99))
    >>> cohort_fit(cohort, near, k=5, rng=rng).fits(), cohort_fit(cohort, far, k=5, rng=rng).fits()
    (True, False)
    """
    if k < 1 or skip < 0:
        raise InvalidInput(f"expected k of at least 1 and skip of at least 0, found {k} and {skip}")
    z = normal_quantile(confidence)
    cohort_codes, catalogue_codes = _codes(cohort, cohort_groups), _codes(catalogue, catalogue_groups)
    if cohort.shape[1] != catalogue.shape[1]:
        raise InvalidEmbeddings(
            f"expected unit rows of one dimension, found {cohort.shape[1]} in the cohort and {catalogue.shape[1]} in "
            "the catalogue; embed both with one model"
        )
    _check_size(cohort_codes, catalogue_codes, k, skip)
    half = _half_of(cohort_codes, rng)
    k_half = max(1, round(k / 2))
    of_cohort = _group_means(_densities(cohort[~half], cohort[half], k_half), cohort_codes[~half])
    of_catalogue = _group_means(_densities(catalogue, cohort[half], k_half), catalogue_codes)
    crowding, variance = _crowding(of_cohort, of_catalogue)
    spread = z * math.sqrt(variance)
    agreement = _rank_correlation(_densities(catalogue, cohort, k), _densities(catalogue, catalogue, k, skip=skip + 1))
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


def _codes(vectors: Vectors, groups: Sequence[str] | None) -> NDArray[np.int64]:
    """Return the number of each row's group, after checking the rows: [n] int64."""
    names = [f"{row:09d}" for row in range(len(vectors))] if groups is None else groups
    checked = labelled_vectors(vectors, names)
    codes = np.empty(len(vectors), dtype=np.int64)
    codes[checked.order] = checked.codes
    return codes


def _half_of(codes: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.bool_]:
    """Return which rows belong to a random half of the groups: [n] bool."""
    n_groups = int(codes.max()) + 1
    chosen = np.zeros(n_groups, dtype=np.bool_)
    chosen[rng.permutation(n_groups)[: n_groups // 2]] = True
    return chosen[codes]


def _rank_correlation(first: Reals, second: Reals) -> float:
    if np.ptp(first) == 0 or np.ptp(second) == 0:
        raise NotEnoughEvidence("all catalogue pictures have the same density; give pictures that differ")
    return float(spearmanr(first, second).statistic)


def _check_size(cohort: NDArray[np.int64], catalogue: NDArray[np.int64], k: int, skip: int) -> None:
    n_cohort, n_catalogue = int(cohort.max()) + 1, int(catalogue.max()) + 1
    if n_cohort < 2 * _MIN_UNITS or n_catalogue < _MIN_UNITS or len(cohort) < 4 * k or len(catalogue) <= k + skip:
        raise NotEnoughEvidence(
            f"expected at least {2 * _MIN_UNITS} groups and {4 * k} pictures in the cohort, {_MIN_UNITS} groups and "
            f"more than {k + skip} pictures in the catalogue, found {n_cohort} and {len(cohort)}, {n_catalogue} and "
            f"{len(catalogue)}; give more, or a smaller k"
        )


def _densities(pictures: Vectors, among: Vectors, k: int, skip: int = 0) -> Reals:
    """Return the mean of the k largest similarities after the `skip` largest: [n] float64."""
    k, found = min(k, len(among) - skip), []
    for start in range(0, len(pictures), _TILE):
        similarities = pictures[start : start + _TILE] @ among.T
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
