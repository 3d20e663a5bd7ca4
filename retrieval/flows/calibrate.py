"""From labelled images of classes that were never trained on to one threshold for a stated error target.

Decides which score is used and what an operating point records; leaves the statistics to `consistency/`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from retrieval.consistency import consistency_report, fit_isotonic, recall_at_k
from retrieval.consistency.certificate import Certificate, MeanCertificate, certify, certify_mean
from retrieval.consistency.comparison import ThresholdComparison, compare_thresholds
from retrieval.consistency.targets import Target
from retrieval.consistency.thresholds import ThresholdChoice, choose_threshold
from retrieval.contract.bundle import BundleDigest
from retrieval.contract.operating_point import OperatingPoint, ScoreComparison
from retrieval.contract.score import Score
from retrieval.errors import InvalidInput, NotEnoughEvidence

COHORT_K = 20  # of the pilots; smaller is noisier, larger blurs what is crowded


@dataclass(frozen=True, slots=True, kw_only=True)
class CalibrationTarget:
    """What the threshold must achieve.

    `far`: pooled pairwise false accept rate, or in its place any `target`; `prevalence`: share of matches that
    probabilities assume. Certificates state a FAR of at most `certified_far` for a new class with probability
    `1 - certified_delta`, and one of at most `certified_mean_far` on average; `certified_strict`: see `certify`.
    """

    far: float = 1e-2
    target: Target | None = None
    prevalence: float = 0.01
    confidence: float = 0.95
    certified_far: float = 0.1
    certified_delta: float = 0.05
    certified_mean_far: float = 0.05
    certified_strict: bool = True

    def __post_init__(self) -> None:
        for name in ("far", "prevalence", "confidence", "certified_far", "certified_delta", "certified_mean_far"):
            if not 0 < (value := getattr(self, name)) < 1:
                raise InvalidInput(f"{name}: expected a number between 0 and 1, found {value}")

    @property
    def wanted(self) -> Target:
        """The target of the threshold."""
        return self.target or Target("far", self.far)


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

    The best accepts most true pairs at the target (for an FRR fewest others; for F-beta and utility, the largest wins);
    classes are then treated more alike as well, which `compared` shows. Raises NotEnoughEvidence, InvalidEmbeddings.
    """
    choices = {score.digest: _choose(data, score, target) for score in scores}
    compared = tuple(_comparison(data, score, choices[score.digest], rng) for score in scores)
    best = max(scores, key=lambda score: _merit(choices[score.digest]))
    queries, gallery = best.query_vectors(data.embeddings), best.gallery_vectors(data.embeddings)
    calibrator = fit_isotonic(queries, data.labels, gallery_vectors=gallery, prevalence=target.prevalence, rng=rng)
    certificate, refusal = _certificate(queries, gallery, data.labels, target)
    mean_certificate, mean_refusal = _mean_certificate(queries, gallery, data.labels, target)
    return OperatingPoint(
        bundle_digest=bundle,
        score_digest=best.digest,
        score_kind=best.kind,
        choice=choices[best.digest],
        certificate=certificate,
        certificate_refusal=refusal,
        mean_certificate=mean_certificate,
        mean_certificate_refusal=mean_refusal,
        calibrator=calibrator,
        compared=compared,
        data_digest=data.data_digest,
        created_at=created_at,
    )


def compare(
    data: LabelledEmbeddings, score: Score, target: CalibrationTarget, rng: np.random.Generator
) -> ScoreComparison:
    """What a score achieves on labelled embeddings."""
    return _comparison(data, score, _choose(data, score, target), rng)


def compare_with_active(
    data: LabelledEmbeddings, score: Score, proposed: OperatingPoint, active: OperatingPoint
) -> ThresholdComparison | None:
    """Which decisions on the data would change; None where the active operating point is of another score."""
    if proposed.score_digest != active.score_digest:
        return None
    return compare_thresholds(
        score.query_vectors(data.embeddings),
        data.labels,
        gallery_vectors=score.gallery_vectors(data.embeddings),
        active=active.threshold,
        proposed=proposed.threshold,
    )


def _choose(data: LabelledEmbeddings, score: Score, target: CalibrationTarget) -> ThresholdChoice:
    return choose_threshold(
        score.query_vectors(data.embeddings),
        data.labels,
        gallery_vectors=score.gallery_vectors(data.embeddings),
        target=target.wanted,
        confidence=target.confidence,
    )


def _merit(choice: ThresholdChoice) -> float:
    """What is larger for a better score at the same target."""
    return {"lowest": choice.tar, "highest": -choice.far, "best": choice.achieved}[choice.target.choice]


def _comparison(
    data: LabelledEmbeddings, score: Score, choice: ThresholdChoice, rng: np.random.Generator
) -> ScoreComparison:
    queries, gallery = score.query_vectors(data.embeddings), score.gallery_vectors(data.embeddings)
    consistency = consistency_report(queries, data.labels, gallery_vectors=gallery, axis="log_far", rng=rng)
    return ScoreComparison(
        score_digest=score.digest,
        kind=score.kind,
        k=score.k,
        achieved=choice.achieved,
        far=choice.far,
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
        found = certify(
            queries,
            labels,
            gallery_vectors=gallery,
            alpha=target.certified_far,
            delta=target.certified_delta,
            strict=target.certified_strict,
        )
    except NotEnoughEvidence as error:
        return None, str(error)
    return found, ""


def _mean_certificate(
    queries: NDArray[np.float32], gallery: NDArray[np.float32], labels: Sequence[str], target: CalibrationTarget
) -> tuple[MeanCertificate | None, str]:
    """The certificate of the mean, or why there is none."""
    alpha, strict = target.certified_mean_far, target.certified_strict
    try:
        return certify_mean(queries, labels, gallery_vectors=gallery, alpha=alpha, strict=strict), ""
    except NotEnoughEvidence as error:
        return None, str(error)
