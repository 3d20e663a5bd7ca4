"""The choice of the score: makes the candidates that a cohort supports, measures each, and chooses the best.

Every candidate is measured at the same target, on the same labelled embeddings. `retrieval.consistency` computes the
statistics.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from retrieval.consistency import (
    LabelledVectors,
    OpisOptions,
    StrangerRate,
    Target,
    ThresholdChoice,
    choose_threshold,
    consistency_around,
    consistency_report,
    fit_whitening,
    recall_at_k,
    stranger_rate,
)
from retrieval.contract.manifest import Item
from retrieval.contract.operating_point import OpisAroundTarget, ScoreComparison
from retrieval.contract.score import Score, cohort_score
from retrieval.engine.labelled_embeddings import LabelledEmbeddings
from retrieval.errors import InvalidInput, NotEnoughEvidence

COHORT_K = 20  # a smaller k gives noisier densities, a larger one blurs the differences between regions
# Pretrained embeddings spread classes over broad places: a broad density with a small weight fits them (emoji pilots).
_BROAD, _BROAD_WEIGHT = 5, 0.3
# Scores whose TARs differ by less are compared by consistency. It is about one standard error at 200 classes.
_TAR_MARGIN = 0.02
# A catalogue image that is also in the cohort has similarity 1 to itself, up to rounding.
_SAME = 0.9999
_SEED = 0


@dataclass(frozen=True, slots=True, eq=False)
class MeasuredScore:
    """A score, the threshold that reaches the target with it, and the rates at this threshold."""

    score: Score
    choice: ThresholdChoice
    comparison: ScoreComparison
    strangers: StrangerRate | None = None

    @property
    def merit(self) -> float:
        """A number that is larger for a better score at the same target."""
        choice = self.choice
        return {"lowest": choice.tar, "highest": -choice.far, "best": choice.achieved}[choice.target.choice]


def check_cohort(calibration: Sequence[Item], cohort: Sequence[Item]) -> None:
    """Raise InvalidInput if the cohort holds calibration images or calibration classes.

    Such classes have higher densities than other classes, so the threshold would be too low for the others: on emoji
    their FAR was 1.3 to 1.7 times the target.
    """
    uris, labels = {item.uri for item in calibration}, {item.label for item in calibration}
    shared = [item for item in cohort if item.uri in uris or (item.label and item.label in labels)]
    if shared:
        raise InvalidInput(
            f"expected a cohort without calibration classes, found that {len(shared)} of its {len(cohort)} "
            f"images are of such classes, the first is {shared[0].id!r} of class {shared[0].label!r}: leave them out"
        )


def candidate_scores(
    cohort: NDArray[np.float32], labels: Sequence[str] = (), *, k: int = COHORT_K
) -> tuple[Score, ...]:
    """Return the scores worth trying with a cohort of unit rows [m, d].

    They are the cosine, a narrow and a broad density, and both densities after whitening. labels: one for each row, or
    none; with two images a class or more, the whitening is fitted to the classes.
    Raises InvalidEmbeddings if the cohort has fewer than k rows.
    """
    settings = [(k, 0.5)]
    if (broad := _BROAD * k) <= len(cohort) // 2:
        settings.append((broad, _BROAD_WEIGHT))
    scores = [Score(), *(cohort_score(cohort, k=k, weight=weight, ignore_above=_SAME) for k, weight in settings)]
    try:
        whitening = fit_whitening(cohort, labels if 0 < 2 * len(set(labels)) <= len(cohort) else None)
    except NotEnoughEvidence:
        return tuple(scores)  # too few images to fit a whitening
    whitened = [
        cohort_score(cohort, k=k, weight=weight, ignore_above=_SAME, whitening=whitening) for k, weight in settings
    ]
    return (*scores, *whitened)


def measure_score(
    data: LabelledEmbeddings, score: Score, target: Target, confidence: float, rng: np.random.Generator
) -> MeasuredScore:
    """Choose the threshold of one score for the target, and measure the rates at it."""
    vectors = data.scored(score)
    choice = choose_threshold(vectors, target=target, confidence=confidence)
    strangers = None
    if data.n_rounds:
        strangers = stranger_rate(data.strangers(score), choice.threshold, confidence=confidence)
    around = _around_target(vectors, choice.target_far, confidence)
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
        around_target=around,
        stranger_far=None if strangers is None else strangers.far,
        refused=strangers is not None and strangers.exceeds(choice.target_far),
    )
    return MeasuredScore(score, choice, comparison, strangers)


def _around_target(vectors: LabelledVectors, far: float, confidence: float) -> OpisAroundTarget | None:
    """Return OPIS around a FAR, None if the data cannot show it; its random draws do not shift those of the caller."""
    try:
        found = consistency_around(vectors, far, rng=np.random.default_rng(_SEED), confidence=confidence)
    except (NotEnoughEvidence, InvalidInput):
        return None
    return OpisAroundTarget(
        far_low=found.far_low,
        far_high=found.far_high,
        opis=found.value,
        floor=found.floor,
        debiased=found.debiased,
    )


def best_score(measured: Sequence[MeasuredScore]) -> MeasuredScore:
    """Return the most consistent score among those that are about as good as the best at the target.

    Consistency is OPIS over log FAR; in rounds the debiased one if all scores have it, because a pulled class answers
    as one and is noisier. If the target limits the FAR, a score is eligible if its TAR is within 0.02 of the largest
    one and not below that of the cosine. For any other target only the largest merit is eligible. A score whose
    strangers exceed the target is not. Raises NotEnoughEvidence if that holds for every score.
    """
    tried, measured = measured, [entry for entry in measured if not entry.comparison.refused]
    if not measured:
        lowest = min(entry.comparison.stranger_far or 0.0 for entry in tried)
        raise NotEnoughEvidence(
            f"every score accepts queries whose class is absent more often than the target allows: expected a FAR of "
            f"{tried[0].choice.target_far:.3g}, found {lowest:.3g} or more; use a stricter target"
        )
    least = max((entry.merit for entry in measured if entry.score.kind == "cosine"), default=-np.inf)
    margin = _TAR_MARGIN if measured[0].choice.target.choice == "lowest" else 0.0
    limit = max(max(entry.merit for entry in measured) - margin, least)
    eligible = [entry for entry in measured if entry.merit >= limit]
    debiased = [entry.comparison.opis_debiased for entry in eligible]
    if measured[0].strangers is None or None in debiased:
        return min(eligible, key=lambda entry: entry.comparison.opis)
    return min(eligible, key=lambda entry: entry.comparison.opis_debiased or 0.0)
