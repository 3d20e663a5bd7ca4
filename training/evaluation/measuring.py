"""Computes an evaluation from embeddings. The arithmetic of every figure is in `retrieval.consistency`.

Decides which figures are measured, and when there are too few images for one of them.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retrieval.consistency import (
    Axis,
    IdentificationRates,
    Interval,
    LabelledVectors,
    OpisOptions,
    OpisResult,
    consistency_around,
    consistency_report,
    cross_fitted_rates,
    identification_rates,
    labelled,
    largest_gallery,
    map_at_r,
    operating_curves,
    recall_at_k,
    thresholds_at_far,
    warnings_at,
)
from retrieval.consistency.classes import number_classes
from retrieval.errors import InvalidInput, NotEnoughEvidence
from training.evaluation.results import Consistency, Evaluation, OtherClasses, RateAtFar
from training.limits import HALF_A_DECADE, MIN_FALSE_ACCEPTS, PAPER_BAND

FARS = (1e-1, 1e-2, 1e-3, 1e-4)
GALLERY_SIZES = (30, 100, 300, 1_000, 3_000, 10_000)
_SEED = 0  # fixed, so that equal data give equal intervals


def require_evidence(labels: Sequence[str], *, far_target: float = 1e-2) -> None:
    """Raise the errors of `evaluate` from the labels alone: before hours of training, not after them.

    Raises NotEnoughEvidence if there are too few images or classes, InvalidInput if an image has no label.
    """
    if n_unlabelled := sum(not label for label in labels):
        raise InvalidInput(
            f"every image to evaluate on needs a label, {n_unlabelled} of {len(labels)} have none: label them, or "
            "remove them"
        )
    counts = np.bincount(number_classes(labels)[1])
    if len(counts) < 2 or counts.max(initial=0) < 2:
        raise NotEnoughEvidence(
            f"an evaluation needs two classes and two images of a class, found {len(labels)} images of {len(counts)} "
            "classes: add labelled images"
        )
    n_negatives = (int(counts.sum()) ** 2 - int((counts**2).sum())) // 2
    lowest = min(far_target, PAPER_BAND[0])
    if lowest * n_negatives < MIN_FALSE_ACCEPTS:
        raise NotEnoughEvidence(
            f"measuring a FAR of {lowest:g} takes {MIN_FALSE_ACCEPTS} false accepts, {n_negatives} pairs of images of "
            f"different classes give {lowest * n_negatives:.3g}: add images or classes"
            + (", or raise the FAR target" if far_target < PAPER_BAND[0] else "")
        )
    if int((counts >= 2).sum()) < 2:
        raise NotEnoughEvidence("OPIS compares classes with two images or more, found one: add images per class")


def evaluate(
    embeddings: NDArray[np.float32],
    labels: Sequence[str],
    *,
    far_target: float = 1e-2,
    families: Sequence[str] | None = None,
    n_unreadable: int = 0,
    in_full: bool = True,
) -> Evaluation:
    """Evaluate embeddings [n, d] float32, unit rows, with their n labels. Cost: n * n * d, a few tens of times.

    families: the unit in which classes are drawn together, of each image; halves of the classes are then of families.

    in_full: also measure the figures with a default in Evaluation, ranks excepted; without it the evaluation takes
    about a fifth of the time. Raises as `require_evidence`, and InvalidEmbeddings if rows are not of unit length.
    """
    require_evidence(labels, far_target=far_target)
    vectors = labelled(embeddings, labels, families=families)
    (threshold,) = thresholds_at_far(vectors, [far_target])
    curves = operating_curves(vectors, thresholds=[threshold])
    paper = _opis(vectors, PAPER_BAND, "distance")
    recall = recall_at_k(vectors, k=(1, 2, 4, 8))
    missing: dict[str, str] = {}
    if paper.debiased is None:
        missing["opis_debiased"] = "debiased OPIS needs 10 classes of 4 images or more"
    extended = _in_full(vectors, far_target, paper, missing) if in_full else {}
    return Evaluation(
        n_images=len(labels),
        n_classes=len(curves.classes),
        n_single=int((curves.n_images == 1).sum()),
        n_unreadable=n_unreadable,
        r_at_1=recall[1],
        r_at_2=recall[2],
        r_at_4=recall[4],
        r_at_8=recall[8],
        map_at_r=map_at_r(vectors),
        far_target=far_target,
        threshold=float(threshold),
        tar=float(curves.pooled_tar[0]),
        opis=paper.value,
        opis_floor=paper.floor,
        opis_debiased=paper.debiased,
        missing=missing,
        warnings=warnings_at(vectors, curves) if in_full else (),
        **extended,
    )


def _in_full(vectors: LabelledVectors, far_target: float, paper: OpisResult, missing: dict[str, str]) -> dict[str, Any]:
    other_classes = _other_classes(vectors, far_target, missing)
    return {
        "consistency": _consistency(vectors, far_target, paper, missing),
        "tar_at_far": _tar_at_far(vectors, missing),
        "other_classes": other_classes,
        "identification": _identification(vectors, far_target, missing) if other_classes else (),
    }


def _consistency(
    vectors: LabelledVectors, far_target: float, paper: OpisResult, missing: dict[str, str]
) -> tuple[Consistency, ...]:
    found = [paper, _opis(vectors, PAPER_BAND, "log_far")]
    around = (far_target / HALF_A_DECADE, min(far_target * HALF_A_DECADE, 0.5))
    try:
        found.append(_opis(vectors, around, "log_far"))
    except NotEnoughEvidence as error:
        missing["consistency around far_target"] = str(error)
    try:
        found.append(consistency_around(vectors, far_target, rng=np.random.default_rng(_SEED)))
    except (NotEnoughEvidence, InvalidInput) as error:  # InvalidInput: a target above 0.5 has no decade above it
        missing["consistency a decade around far_target"] = str(error)
    return tuple(
        Consistency(
            axis=result.axis,
            far_low=result.far_low,
            far_high=result.far_high,
            opis=result.value,
            floor=result.floor,
            interval=result.interval,
            debiased=result.debiased,
            debiased_interval=result.debiased_interval,
            eps_opis=result.eps_opis,
            eps_floor=result.eps_floor,
            eps_interval=result.eps_interval,
        )
        for result in found
    )


def _opis(vectors: LabelledVectors, band: tuple[float, float], axis: Axis) -> OpisResult:
    options = OpisOptions(far_low=band[0], far_high=band[1], axis=axis)
    return consistency_report(vectors, options, rng=np.random.default_rng(_SEED))


def _tar_at_far(vectors: LabelledVectors, missing: dict[str, str]) -> tuple[RateAtFar, ...]:
    n_negatives = vectors.n_negatives
    measurable = [far for far in FARS if far * n_negatives >= MIN_FALSE_ACCEPTS]
    for far in FARS[len(measurable) :]:
        missing[f"tar at far {far:g}"] = (
            f"{n_negatives} negative pairs give fewer than {MIN_FALSE_ACCEPTS} false accepts"
        )
    if not measurable:
        return ()
    thresholds = thresholds_at_far(vectors, measurable)
    curves = operating_curves(vectors, thresholds=thresholds)
    return tuple(
        RateAtFar(far=far, threshold=float(threshold), tar=float(curves.at(threshold).pooled_tar[0]))
        for far, threshold in zip(measurable, thresholds, strict=True)
    )


def _other_classes(vectors: LabelledVectors, far_target: float, missing: dict[str, str]) -> OtherClasses | None:
    try:
        rates = cross_fitted_rates(vectors, target_far=far_target, rng=np.random.default_rng(_SEED))
    except NotEnoughEvidence as error:
        missing["other_classes"] = missing["identification"] = str(error)
        return None
    return OtherClasses(
        far=rates.far,
        tar=rates.tar,
        far_range=Interval(float(rates.fars.min()), float(rates.fars.max())),
        worst_tar=rates.worst_tar,
        worst_far=rates.worst_far,
        n_splits=len(rates.fars) // 2,
    )


def _identification(
    vectors: LabelledVectors, far_target: float, missing: dict[str, str]
) -> tuple[IdentificationRates, ...]:
    largest = largest_gallery(vectors)
    sizes = [size for size in GALLERY_SIZES if size <= largest]
    if not sizes:
        missing["identification"] = f"half of the classes fill a gallery of {largest} images, at least 30 are needed"
        return ()
    try:
        rng = np.random.default_rng(_SEED)
        found = identification_rates(vectors, sizes, target_far=far_target, rng=rng)
    except NotEnoughEvidence as error:
        missing["identification"] = str(error)
        return ()
    return tuple(found)
