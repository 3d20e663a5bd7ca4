"""From labelled images of classes that were never trained on to one threshold for a stated error target.

Decides which score is used and what an operating point records; leaves the statistics to `consistency/`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from retrieval.consistency import (
    Certificate,
    LabelledVectors,
    MeanCertificate,
    OpisOptions,
    Target,
    ThresholdChoice,
    ThresholdComparison,
    certify,
    certify_mean,
    choose_threshold,
    compare_thresholds,
    consistency_report,
    fit_best_calibrator,
    fit_whitening,
    labelled,
    recall_at_k,
)
from retrieval.contract.bundle import BundleDigest
from retrieval.contract.manifest import Item
from retrieval.contract.operating_point import OperatingPoint, ScoreComparison
from retrieval.contract.score import Score, ScoreDigest, cohort_score
from retrieval.errors import InvalidInput, NotEnoughEvidence

DEFAULT_TARGET = Target("far", 1e-2)
COHORT_K = 20  # smaller is noisier, larger blurs what is crowded
# Embeddings as pretrained spread classes over broad places, which a wide and weak density meets; measured on emoji.
_BROAD, _BROAD_WEIGHT = 5, 0.3
# Two scores whose TARs differ by less are told apart by consistency: about one standard error at 200 classes.
_TAR_MARGIN = 0.02
# A catalogue's picture that is in the cohort too meets itself at 1, up to rounding.
_SAME = 0.9999


@dataclass(frozen=True, slots=True, kw_only=True)
class CalibrationTarget:
    """What the threshold must achieve.

    `prevalence`: share of matches that
    probabilities assume. Certificates state a FAR of at most `certified_far` for a new class with probability
    `1 - certified_delta`, and one of at most `certified_mean_far` on average; `certified_strict`: see `certify`.
    """

    target: Target = DEFAULT_TARGET
    prevalence: float = 0.01
    confidence: float = 0.95
    certified_far: float = 0.1
    certified_delta: float = 0.05
    certified_mean_far: float = 0.05
    certified_strict: bool = True

    def __post_init__(self) -> None:
        for name in ("prevalence", "confidence", "certified_far", "certified_delta", "certified_mean_far"):
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

    The best treats classes most alike, by OPIS over log FAR, among the scores that accept about as many true pairs at
    the target as any (within 0.02) and no fewer than the cosine, where it is tried. For an FRR the score with fewest
    false accepts wins, for F-beta and utility the largest. `compared` shows all of them.
    Raises NotEnoughEvidence, InvalidEmbeddings.
    """
    measured = {score.digest: _measure(data, score, target, rng) for score in scores}
    choices = {digest: choice for digest, (choice, _) in measured.items()}
    compared = {digest: comparison for digest, (_, comparison) in measured.items()}
    best = _best(scores, choices, compared)
    vectors = _labelled(data, best)
    calibrator = fit_best_calibrator(vectors, prevalence=target.prevalence, rng=rng)
    certificate, refusal = _certificate(vectors, target)
    mean_certificate, mean_refusal = _mean_certificate(vectors, target)
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
        compared=tuple(compared.values()),
        data_digest=data.data_digest,
        created_at=created_at,
    )


def check_cohort(calibration: Sequence[Item], cohort: Sequence[Item]) -> None:
    """Raises InvalidInput where the cohort holds pictures or classes that are calibrated on.

    Their densities would be higher than those of classes that the cohort does not hold, and the threshold too low for
    these: on emoji their FAR was 1.3 to 1.7 times the target.
    """
    uris, labels = {item.uri for item in calibration}, {item.label for item in calibration}
    shared = [item for item in cohort if item.uri in uris or (item.label and item.label in labels)]
    if shared:
        raise InvalidInput(
            f"expected a cohort of other classes than those calibrated on, found {len(shared)} of its {len(cohort)} "
            f"images among them, the first is {shared[0].id!r} of class {shared[0].label!r}: leave them out"
        )


def candidate_scores(
    cohort: NDArray[np.float32], labels: Sequence[str] = (), *, k: int = COHORT_K
) -> tuple[Score, ...]:
    """The scores worth trying with a cohort of unit rows [m, d]: cosine, narrow and broad density, both whitened too.

    labels: of all m or none; with two images a class or more the whitening learns from classes.
    Raises InvalidEmbeddings where the cohort has fewer than k rows.
    """
    settings = [(k, 0.5)]
    if (broad := _BROAD * k) <= len(cohort) // 2:
        settings.append((broad, _BROAD_WEIGHT))
    scores = [Score(), *(cohort_score(cohort, k=k, weight=weight, ignore_above=_SAME) for k, weight in settings)]
    try:
        whitening = fit_whitening(cohort, labels if 0 < 2 * len(set(labels)) <= len(cohort) else None)
    except NotEnoughEvidence:
        return tuple(scores)  # a handful of images: the plain cohort is all that they support
    whitened = [
        cohort_score(cohort, k=k, weight=weight, ignore_above=_SAME, whitening=whitening) for k, weight in settings
    ]
    return (*scores, *whitened)


def _best(
    scores: Sequence[Score],
    choices: Mapping[ScoreDigest, ThresholdChoice],
    compared: Mapping[ScoreDigest, ScoreComparison],
) -> Score:
    merits = {digest: _merit(choice) for digest, choice in choices.items()}
    most = max(merits.values())
    least = max((merits[score.digest] for score in scores if score.kind == "cosine"), default=-np.inf)
    margin = _TAR_MARGIN if choices[scores[0].digest].target.choice == "lowest" else 0.0
    eligible = [score for score in scores if merits[score.digest] >= max(most - margin, least)]
    return min(eligible, key=lambda score: compared[score.digest].opis)


def compare_with_active(
    data: LabelledEmbeddings, score: Score, proposed: OperatingPoint, active: OperatingPoint
) -> ThresholdComparison | None:
    """Which decisions on the data would change; None where the active operating point is of another score."""
    if proposed.score_digest != active.score_digest:
        return None
    return compare_thresholds(_labelled(data, score), active=active.threshold, proposed=proposed.threshold)


def _merit(choice: ThresholdChoice) -> float:
    """What is larger for a better score at the same target."""
    return {"lowest": choice.tar, "highest": -choice.far, "best": choice.achieved}[choice.target.choice]


def _measure(
    data: LabelledEmbeddings, score: Score, target: CalibrationTarget, rng: np.random.Generator
) -> tuple[ThresholdChoice, ScoreComparison]:
    """The threshold of a score, and what the score achieves at it."""
    vectors = _labelled(data, score)
    choice = choose_threshold(vectors, target=target.target, confidence=target.confidence)
    consistency = consistency_report(vectors, OpisOptions(axis="log_far"), rng=rng)
    comparison = ScoreComparison(
        score_digest=score.digest,
        kind=score.kind,
        k=score.k,
        achieved=choice.achieved,
        far=choice.far,
        tar=choice.tar,
        recall_at_1=recall_at_k(vectors)[1],
        opis=consistency.value,
        opis_floor=consistency.floor,
        opis_debiased=consistency.debiased,
    )
    return choice, comparison


def _labelled(data: LabelledEmbeddings, score: Score) -> LabelledVectors:
    queries, gallery = score.vectors(data.embeddings)
    return labelled(queries, data.labels, gallery=gallery)


def _certificate(vectors: LabelledVectors, target: CalibrationTarget) -> tuple[Certificate | None, str]:
    """The certificate, or why there is none: a threshold for the target is of use without one."""
    try:
        found = certify(
            vectors,
            alpha=target.certified_far,
            delta=target.certified_delta,
            strict=target.certified_strict,
        )
    except NotEnoughEvidence as error:
        return None, str(error)
    return found, ""


def _mean_certificate(vectors: LabelledVectors, target: CalibrationTarget) -> tuple[MeanCertificate | None, str]:
    """The certificate of the mean, or why there is none."""
    alpha, strict = target.certified_mean_far, target.certified_strict
    try:
        return certify_mean(vectors, alpha=alpha, strict=strict), ""
    except NotEnoughEvidence as error:
        return None, str(error)
