"""The images of a run as they are compared under one score: pair by pair, or as searches of a labelled gallery.

Decides which images are queries and items, and on which classes a score is fitted. `figures.py` measures.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np

from retrieval.consistency import Division, LabelledVectors, divide, labelled, strangers
from retrieval.contract.score import Score
from retrieval.contract.searches import best_catalogue_score, search_rounds
from training.embeddings import Embedded
from training.experiment.scores import ScoreConfig, fit_score, score_without_labels

Compare: TypeAlias = Literal["pairs", "searches"]

N_ROUNDS = 5
_SEED = 0


@dataclass(frozen=True, slots=True, eq=False)
class Compared:
    """The labelled vectors of a run whose inner products are the score.

    test, calibration: the parts; strangers: queries of the test part whose class is absent, None in pairs.
    """

    test: LabelledVectors
    calibration: LabelledVectors
    strangers: LabelledVectors | None


def in_pairs(parts: Mapping[str, Embedded], config: ScoreConfig, *, far_target: float) -> Compared:
    """Fit the score on the part `config.fitted_on` and compare every image of a part with all others.

    Raises NotEnoughEvidence if there are too few images for the score, or a part holds no two classes.
    """
    fitted_on = parts[config.fitted_on]
    fitted = fit_score(config, fitted_on.embeddings, fitted_on.labels.tolist(), far_target=far_target)

    def vectors(part: Embedded) -> LabelledVectors:
        query, gallery = fitted(part.embeddings)
        return labelled(query, part.labels.tolist(), gallery=gallery)

    return Compared(vectors(parts["test"]), vectors(parts["calibration"]), None)


def in_searches(parts: Mapping[str, Embedded], config: ScoreConfig, *, far_target: float) -> Compared:
    """Fit the score and divide the images of each part into queries and items, five times, equally for every score.

    A cohort is made of the part `config.fitted_on`; the class terms are chosen and fitted on the part "cohort". Raises
    as `in_pairs`.
    """
    score = fit(parts, config, far_target)
    test = parts["test"]
    labels = test.labels.tolist()
    gallery = score.gallery(test.embeddings, labels).vectors
    return Compared(
        _rounds(score, test),
        _rounds(score, parts["calibration"]),
        strangers(score.query_vectors(test.embeddings), gallery, labels),
    )


def fit(parts: Mapping[str, Embedded], config: ScoreConfig, far_target: float) -> Score:
    """Return the score; the parts calibration and test take no part in it. Raises as `in_searches`."""
    base = score_without_labels(config, parts[config.fitted_on].embeddings)
    if config.kind != "catalogue":
        return base
    choosing = parts["cohort"]
    return best_catalogue_score(
        [base],
        choosing.embeddings,
        choosing.labels.tolist(),
        far=far_target,
        scored=lambda score: _rounds(score, choosing),
    )


def _rounds(score: Score, part: Embedded) -> LabelledVectors:
    return search_rounds(score, part.embeddings, part.labels.tolist(), _divisions(part))


def _divisions(part: Embedded) -> list[Division]:
    return divide(part.labels.tolist(), N_ROUNDS, rng=np.random.default_rng(_SEED))
