"""A score in searches of a labelled gallery: the rounds of searches, and the choice of the class terms there.

A catalogue score has no value for two images alone: an item is pulled towards the other items of its class. So queries
and items are divided, and the gallery of each round is made by itself. Callers decide which images take part.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from retrieval.consistency import (
    Division,
    LabelledVectors,
    SearchRound,
    consistency_around,
    in_rounds,
    operating_curves,
    recall_at_k,
    thresholds_at_far,
)
from retrieval.contract.class_terms import candidate_terms, class_codes
from retrieval.contract.score import Score

_MARGIN = 0.02  # of TAR, as calibration takes it between scores, and of R@1
_SHOWN_ERRORS = 40.0  # of all pairs; a round counts half of them
_LOOSEST_FAR = 0.4
_DIGITS = 6  # of what the order of the images changes by rounding
_SEED = 0


def search_rounds(
    score: Score,
    embeddings: NDArray[np.float32],
    labels: Sequence[str],
    divisions: Sequence[Division],
    *,
    families: Sequence[str] | None = None,
) -> LabelledVectors:
    """Return the rounds in which the queries of each division search its items.

    embeddings: [n, d] float32, unit rows; labels: n texts; families: see `labelled`. Raises as `in_rounds` and
    `Score.gallery`.
    """
    query = score.query_vectors(embeddings)
    rounds = []
    for division in divisions:
        items = division.items
        gallery = score.gallery(embeddings[items], [labels[row] for row in items])
        rounds.append(SearchRound(division, query[division.queries], gallery.vectors))
    return in_rounds(labels, rounds, families=families)


def best_catalogue_score(
    bases: Sequence[Score],
    embeddings: NDArray[np.float32],
    labels: Sequence[str],
    *,
    far: float,
    scored: Callable[[Score], LabelledVectors],
) -> Score:
    """Return the most consistent catalogue score over one of the bases, of those with about the best TAR.

    Every base gets the candidates of `candidate_terms`, fitted on the same images. A TAR is about the best if it is at
    most 0.02 lower. A candidate whose R@1 is more than 0.02 below that of the best base is left out, unless all are: a
    large offset evens out classes and can put the wrong one first. embeddings: [n, d] float32, unit rows, of the
    classes that choose; labels: n texts; far: at which TAR is measured, and OPIS a decade on either side; it is raised
    to the least FAR that these classes show, with 40 false accepts of all their pairs. scored: makes the rounds of
    these images under a score. Its `lone_offset` is that of `with_lone_offset`. Raises NotEnoughEvidence with too few
    classes or images.
    """
    codes = class_codes(labels)[1]
    far = _shown_far(codes, far)
    candidates = [
        replace(base, classes=terms)
        for base in bases
        for terms in candidate_terms(base.rows(embeddings), codes, density=base.row_densities, weight=base.weight)
    ]
    least_recall = max(recall_at_k(scored(base))[1] for base in bases) - _MARGIN
    rated = [_rated(score, scored(score), far) for score in candidates]
    kept = [one for one in rated if one.recall >= least_recall] or rated
    least_tar = max(one.tar for one in kept) - _MARGIN
    best = min((one for one in kept if one.tar >= least_tar), key=lambda one: one.opis)
    return with_lone_offset(best.score, codes, far=far, scored=scored)


def with_lone_offset(
    score: Score, codes: NDArray[np.int64], *, far: float, scored: Callable[[Score], LabelledVectors]
) -> Score:
    """Return a catalogue score that accepts an item without a class as often as the score without labels would.

    Its lone offset is the difference of the thresholds for a FAR, of the score without labels and of this one, or 0 if
    that is negative. codes: [n] int64, of the images that `scored` makes rounds of; far: see `best_catalogue_score`.
    """
    if score.classes is None:
        return score
    far = _shown_far(codes, far)
    without, pulled = (float(thresholds_at_far(scored(one), [far])[0]) for one in (replace(score, classes=None), score))
    return replace(score, classes=replace(score.classes, lone_offset=round(max(without - pulled, 0.0), _DIGITS)))


@dataclass(frozen=True, slots=True, eq=False)
class _Rated:
    """A score, its TAR and R@1, and OPIS around a FAR, without its noise if the classes show that."""

    score: Score
    tar: float
    recall: float
    opis: float


def _shown_far(codes: NDArray[np.int64], far: float) -> float:
    n = np.bincount(codes[codes >= 0])
    n_pairs = float(n.sum() ** 2 - (n**2).sum()) / 2
    return min(max(far, _SHOWN_ERRORS / max(n_pairs, 1.0)), _LOOSEST_FAR)


def _rated(score: Score, vectors: LabelledVectors, far: float) -> _Rated:
    curves = operating_curves(vectors, thresholds=thresholds_at_far(vectors, [far]))
    # Only the value is used; replicates make the intervals.
    found = consistency_around(vectors, far, rng=np.random.default_rng(_SEED), n_bootstrap=2)
    opis = found.value if found.debiased is None else found.debiased
    return _Rated(score, float(curves.pooled_tar[0]), recall_at_k(vectors)[1], opis)
