"""From labelled images of classes that were never trained on to one threshold for a stated error target.

Decides which score is used and what an operating point records; leaves the statistics to `consistency/`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from retrieval.consistency import (
    Certificate,
    certify,
    choose_threshold_for_far,
    consistency_report,
    operating_curves,
    recall_at_k,
)
from retrieval.consistency.calibration_choice import fit_best_calibrator
from retrieval.contract.bundle import BundleDigest
from retrieval.contract.operating_point import OperatingPoint, ScoreComparison
from retrieval.contract.score import Score
from retrieval.errors import InvalidInput, NotEnoughEvidence

COHORT_K = 20  # of the pilots; smaller is noisier, larger blurs what is crowded


@dataclass(frozen=True, slots=True, kw_only=True)
class CalibrationTarget:
    """What the threshold must achieve.

    `far`: pooled pairwise false accept rate; `prevalence`: share of matches that probabilities assume; the certificate
    states a FAR of at most `certified_far` for a new class with probability `1 - certified_delta`.
    """

    far: float = 1e-2
    prevalence: float = 0.01
    confidence: float = 0.95
    certified_far: float = 0.1
    certified_delta: float = 0.05

    def __post_init__(self) -> None:
        for name in ("far", "prevalence", "confidence", "certified_far", "certified_delta"):
            if not 0 < (value := getattr(self, name)) < 1:
                raise InvalidInput(f"{name}: expected a number between 0 and 1, found {value}")


@dataclass(frozen=True, slots=True, eq=False)
class LabelledEmbeddings:
    """Embeddings [n, d] float32, unit rows; n labels; the digest of the images and labels they come from."""

    embeddings: NDArray[np.float32]
    labels: Sequence[str]
    data_digest: str


def calibrate(
    data: LabelledEmbeddings,
    *,
    bundle: BundleDigest,
    scores: Sequence[Score],
    target: CalibrationTarget,
    rng: np.random.Generator,
    created_at: str,
) -> OperatingPoint:
    """Measure every score on the data and choose a threshold for the best.

    The best is the one that accepts most true pairs at the target; classes are then treated more alike as well, which
    `compared` shows. Raises NotEnoughEvidence, InvalidEmbeddings.
    """
    compared = {score.digest: compare(data, score, target, rng) for score in scores}
    best = max(scores, key=lambda score: compared[score.digest].tar)
    queries, gallery = best.query_vectors(data.embeddings), best.gallery_vectors(data.embeddings)
    choice = choose_threshold_for_far(
        queries, data.labels, gallery_vectors=gallery, target_far=target.far, confidence=target.confidence
    )
    calibrator = fit_best_calibrator(
        queries, data.labels, gallery_vectors=gallery, prevalence=target.prevalence, rng=rng
    )
    certificate, refusal = _certificate(queries, gallery, data.labels, target)
    return OperatingPoint(
        bundle_digest=bundle,
        score_digest=best.digest,
        score_kind=best.kind,
        choice=choice,
        certificate=certificate,
        certificate_refusal=refusal,
        calibrator=calibrator,
        compared=tuple(compared.values()),
        data_digest=data.data_digest,
        created_at=created_at,
    )


def compare(
    data: LabelledEmbeddings, score: Score, target: CalibrationTarget, rng: np.random.Generator
) -> ScoreComparison:
    """What a score achieves on labelled embeddings."""
    queries, gallery = score.query_vectors(data.embeddings), score.gallery_vectors(data.embeddings)
    choice = choose_threshold_for_far(queries, data.labels, gallery_vectors=gallery, target_far=target.far)
    consistency = consistency_report(queries, data.labels, gallery_vectors=gallery, axis="log_far", rng=rng)
    return ScoreComparison(
        score_digest=score.digest,
        kind=score.kind,
        k=score.k,
        tar=choice.tar,
        recall_at_1=recall_at_k(queries, data.labels, gallery_vectors=gallery)[1],
        opis=consistency.value,
        opis_floor=consistency.floor,
        opis_debiased=consistency.debiased,
    )


def _certificate(
    queries: NDArray[np.float32], gallery: NDArray[np.float32], labels: Sequence[str], target: CalibrationTarget
) -> tuple[Certificate | None, str]:
    """The certificate, or why there is none: a threshold for the target is of use without one."""
    try:
        curves = operating_curves(queries, labels, gallery_vectors=gallery)
        return certify(curves, alpha=target.certified_far, delta=target.certified_delta), ""
    except NotEnoughEvidence as error:
        return None, str(error)
