"""The choice of the class terms of a catalogue score, on classes that take no further part in calibration.

A score that is chosen on the classes that judge it looks better there than on others. So some classes choose how far
items are pulled to their class and how much of the score that a class expects is subtracted, and the others judge: they
choose the threshold, its intervals and its certificates.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from retrieval.consistency import Target
from retrieval.contract.class_terms import ClassTerms, class_codes
from retrieval.contract.score import Score
from retrieval.contract.searches import best_catalogue_score, with_lone_offset
from retrieval.contract.typical_class import fit_typical_class
from retrieval.engine.labelled_embeddings import LabelledEmbeddings

# Of the classes that choose: more would take classes away from the intervals and certificates of those that judge.
_SHARE, _MOST, _LEAST = 1 / 3, 200, 20
_DEFAULT_PULL = 0.7  # if the classes are too few to choose: the best without an offset on emoji and icons
_LOOSE_FAR = 0.01  # for a target that is not a FAR
_SEED = 0


@dataclass(frozen=True, slots=True, eq=False)
class ClassChoice:
    """The classes that judge, the scores that they compare, and how many other classes chose the class terms."""

    judging: LabelledEmbeddings
    scores: tuple[Score, ...]
    n_choosing: int


def with_catalog_scores(data: LabelledEmbeddings, scores: Sequence[Score], target: Target) -> ClassChoice:
    """Return the scores with the best catalogue score over the cosine and the best one over the cohort scores.

    data: in rounds. A third of the classes of two images or more (or of their families), at most 200, chooses, and the
    others judge. If fewer than 20 such classes would choose or judge, none chooses: the pull is 0.7, without an offset.
    """
    cosines = [score for score in scores if score.cohort is None]
    cohorts = [score for score in scores if score.cohort is not None]
    kinds = [bases for bases in (cosines, cohorts) if bases]
    choosing, judging = _split(data)
    far = target.far or _LOOSE_FAR
    if min(_n_usable(choosing), _n_usable(judging)) < _LEAST:
        default = [_not_chosen(bases[-1], data, far) for bases in kinds]
        return ClassChoice(data, (*scores, *default), 0)
    added = [
        best_catalogue_score(bases, choosing.embeddings, choosing.labels, far=far, scored=choosing.scored)
        for bases in kinds
    ]
    return ClassChoice(judging, (*scores, *added), len(set(choosing.labels)))


def _not_chosen(base: Score, data: LabelledEmbeddings, far: float) -> Score:
    """Return the catalogue score with the default pull; what is typical of a class is fitted to all of the data."""
    codes = class_codes(data.labels)[1]
    typical = fit_typical_class(base.rows(data.embeddings), codes, base.density(data.embeddings))
    score = replace(base, classes=ClassTerms(pull=_DEFAULT_PULL, typical=typical))
    return with_lone_offset(score, codes, far=far, scored=data.scored)


def _n_usable(data: LabelledEmbeddings) -> int:
    """Return the number of classes of two images or more."""
    return sum(count > 1 for count in Counter(data.labels).values())


def _split(data: LabelledEmbeddings) -> tuple[LabelledEmbeddings, LabelledEmbeddings]:
    """Return the images of the classes that choose, and those of the others; families stay together.

    The only image of a class is among the others.
    """
    counts = Counter(data.labels)
    units = [
        family or f"class {label}"
        for label, family in zip(data.labels, data.families or [""] * len(data.labels), strict=True)
    ]
    names = sorted({unit for label, unit in zip(data.labels, units, strict=True) if counts[label] > 1})
    drawn = np.random.default_rng(_SEED).permutation(len(names))[: min(round(_SHARE * len(names)), _MOST)]
    chosen = {names[number] for number in drawn}
    chooses = np.array(
        [unit in chosen and counts[label] > 1 for label, unit in zip(data.labels, units, strict=True)], dtype=np.bool_
    )
    return data.subset(np.flatnonzero(chooses)), data.subset(np.flatnonzero(~chooses))
