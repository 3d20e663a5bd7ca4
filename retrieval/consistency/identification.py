"""Searches of a whole gallery at one threshold: how often a stranger gets an answer, how often a member gets none.

Rates over pairs do not show this: the more images a gallery holds, the more chances a stranger has. This module draws
galleries and searches from labelled images and fixes the threshold on other classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from retrieval.consistency.arguments import checked
from retrieval.consistency.intervals import Interval, percentile_interval
from retrieval.consistency.pairs.products import scores_of
from retrieval.consistency.pairs.vectors import LabelledVectors, check_one_set
from retrieval.consistency.thresholds.cross_fitted import split_classes, threshold_of_half
from retrieval.errors import InvalidInput, NotEnoughEvidence

Scores = NDArray[np.float32]

MIN_STRANGER_CLASSES = 10
_MIN_ERRORS = 5  # strangers with an answer, in the gallery that fixes a threshold


@dataclass(frozen=True, slots=True, kw_only=True)
class OperatingRates:
    """Open-set rates at one kind of threshold: means over repetitions, and the range of their central 95 %.

    The ranges show how much the draws of classes, galleries and searches from these images differ; other images would
    differ more.
    """

    fpir: float  # share of the searches without a mate (an image of the same class) in the gallery that get an answer
    fnir: float  # share of the searches with mates in the gallery that find none of them
    fpir_range: Interval
    fnir_range: Interval


@dataclass(frozen=True, slots=True, kw_only=True)
class IdentificationRates:
    """Open-set identification in galleries of one size."""

    gallery_size: int
    target_far: float
    target_fpir: float
    n_mated: float  # mean number of searches with a mate in a repetition
    n_strangers: float  # and without
    at_far: OperatingRates  # at the threshold for the pair FAR target_far
    at_fpir: OperatingRates | None  # at that for target_fpir in a gallery of this size; None with too few strangers
    n_repeats: int


@dataclass(frozen=True, slots=True, eq=False)
class Searches:
    """The best score of each search. mated: [m] float32, with a mate; strangers: [k] float32, with any image."""

    mated: Scores
    strangers: Scores

    def rates(self, threshold: float) -> tuple[float, float]:
        """Return FPIR and FNIR at a threshold."""
        return float(np.mean(self.strangers >= threshold)), float(np.mean(self.mated < threshold))


@checked
def identification_rates(
    vectors: LabelledVectors,
    gallery_sizes: Sequence[int],
    *,
    target_far: float,
    target_fpir: float = 0.1,
    n_repeats: int = 10,
    rng: np.random.Generator,
) -> list[IdentificationRates]:
    """Return FPIR and FNIR for each gallery size (number of images), at thresholds fixed on other classes.

    Each repetition splits the classes into random halves. The first half fixes the thresholds: that of the pair FAR,
    and that at which the share target_fpir of the strangers to a gallery drawn from it gets an answer. Classes of the
    second half enter its gallery in random order, with all their images, until it is full. Each gallery image that has
    a mate there searches the other ones; all images of the remaining classes are strangers. Every image at or above the
    threshold is an answer, of any rank.

    Cost: n_repeats times a product of n^2 / 8 and, for each size, of the searches with the gallery.

    Raises:
        NotEnoughEvidence: a size above `largest_gallery`, or too few false accepts for target_far in half of the
            classes, or no class with two images in a gallery.
        InvalidInput: a size or n_repeats below 1, or a target outside (0, 1); or vectors of two sets, or with excluded
            pairs.

    Source: ISO/IEC 19795-1:2021; Grother, Ngan, Hanaoka, "Face Recognition Vendor Test (FRVT) Part 2: Identification",
    NIST IR 8271 (2019), section 3: FPIR(N, T) and FNIR(N, R, T) with all ranks R, all images of a person enrolled.
    """
    if n_repeats < 1 or min(gallery_sizes, default=0) < 1 or not (0 < target_far < 1 and 0 < target_fpir < 1):
        raise InvalidInput(
            f"expected gallery_sizes and n_repeats of at least 1 and targets in (0, 1), found {list(gallery_sizes)}, "
            f"{n_repeats}, {target_far} and {target_fpir}"
        )
    check_one_set(vectors, all_pairs=True)
    if max(gallery_sizes) > (largest := largest_gallery(vectors)):
        raise NotEnoughEvidence(
            f"half of the {len(vectors.classes)} classes, {MIN_STRANGER_CLASSES} of them left for strangers, fill a "
            f"gallery of {largest} images at most, expected one of {max(gallery_sizes)}; add images or classes"
        )
    found: dict[int, list[tuple[Searches, float, float | None]]] = {size: [] for size in gallery_sizes}
    for _ in range(n_repeats):
        fixing, measured = split_classes(vectors, rng)
        threshold = threshold_of_half(fixing, target_far)
        for size in gallery_sizes:
            other = draw_searches(fixing, size, rng)
            searches = draw_searches(measured, size, rng)
            found[size].append((searches, threshold, threshold_at_fpir(other, target_fpir)))
    return [_summary(size, repetitions, target_far, target_fpir) for size, repetitions in found.items()]


@checked
def largest_gallery(vectors: LabelledVectors) -> int:
    """Return how many images every half of the classes can put into a gallery, 0 if there are too few classes."""
    counts = np.sort(vectors.n_images)
    n_enrolled = len(counts) // 2 - MIN_STRANGER_CLASSES
    return int(counts[: max(n_enrolled, 0)].sum())


def draw_searches(vectors: LabelledVectors, gallery_size: int, rng: np.random.Generator) -> Searches:
    """Return the best scores of the searches of one random gallery, see `identification_rates`."""
    n_images = vectors.n_images
    classes = rng.permutation(np.flatnonzero(n_images))
    taken = classes[: int(np.searchsorted(np.cumsum(n_images[classes]), gallery_size)) + 1]
    members = [rng.permutation(np.flatnonzero(vectors.codes == code)) for code in taken]
    gallery = np.concatenate(members)[:gallery_size]
    strangers = np.flatnonzero(~np.isin(vectors.codes, taken))
    enrolled = vectors.codes[gallery]
    scores = scores_of(vectors.query[gallery], vectors.gallery[gallery])
    scores[enrolled[:, None] != enrolled] = -np.inf
    np.fill_diagonal(scores, -np.inf)
    has_mate = np.bincount(enrolled)[enrolled] > 1
    if not has_mate.any():
        raise NotEnoughEvidence(f"no class has two images in a gallery of {gallery_size}: add images per class")
    return Searches(
        mated=scores.max(axis=1)[has_mate],
        strangers=scores_of(vectors.query[strangers], vectors.gallery[gallery]).max(axis=1),
    )


def threshold_at_fpir(searches: Searches, target_fpir: float) -> float | None:
    """Return the lowest threshold at which the share of strangers with an answer is at most the target.

    None if that share is fewer than 5 strangers.
    """
    allowed = int(np.floor(target_fpir * len(searches.strangers) * (1 + 1e-12)))
    if allowed < _MIN_ERRORS:
        return None
    rejected = np.sort(searches.strangers)[-allowed - 1]
    return float(np.nextafter(rejected, np.float32(np.inf)))


def _summary(
    size: int, repetitions: Sequence[tuple[Searches, float, float | None]], target_far: float, target_fpir: float
) -> IdentificationRates:
    """Return the means over repetitions: (searches, threshold for the FAR, threshold for the FPIR)."""
    at_fpir = [searches.rates(threshold) for searches, _, threshold in repetitions if threshold is not None]
    return IdentificationRates(
        gallery_size=size,
        target_far=target_far,
        target_fpir=target_fpir,
        n_mated=float(np.mean([len(searches.mated) for searches, _, _ in repetitions])),
        n_strangers=float(np.mean([len(searches.strangers) for searches, _, _ in repetitions])),
        at_far=_over_repetitions([searches.rates(threshold) for searches, threshold, _ in repetitions]),
        at_fpir=_over_repetitions(at_fpir) if len(at_fpir) == len(repetitions) else None,
        n_repeats=len(repetitions),
    )


def _over_repetitions(rates: Sequence[tuple[float, float]]) -> OperatingRates:
    fpir, fnir = np.array(rates, dtype=np.float64).T
    return OperatingRates(
        fpir=float(fpir.mean()),
        fnir=float(fnir.mean()),
        fpir_range=percentile_interval(fpir, 0.95),
        fnir_range=percentile_interval(fnir, 0.95),
    )
