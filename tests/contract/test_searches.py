"""Rounds of searches under a score, and the choice of class terms, against their definitions."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from retrieval.consistency import Division, LabelledVectors, consistency_around, divide
from retrieval.contract.class_terms import ClassTerms, candidate_terms, class_codes
from retrieval.contract.score import Score, cohort_score
from retrieval.contract.searches import best_catalogue_score, search_rounds
from retrieval.contract.typical_class import TypicalClass
from tests.consistency.conftest import draw_family

TYPICAL = TypicalClass(within=0.4, between=0.0, variance=0.05, density=0.3)
OFFSET = ClassTerms(pull=0.7, offset_weight=0.5, typical=TYPICAL)


@pytest.fixture(scope="module")
def images() -> tuple[np.ndarray, list[str]]:
    return draw_family(np.random.default_rng(3), n_classes=12, n_images=6, spread=0.9)


def scores_of(vectors: LabelledVectors, number: int) -> np.ndarray:
    one = vectors.one_round(number)
    return one.query @ one.gallery.T


def test_a_round_by_hand() -> None:
    """Two items at (1, 0) and (0, 1) share a mean, so a query along the first is 1 / sqrt 2 from either."""
    rows = np.array([[1, 0], [1, 0], [0, 1], [-1, 0]], dtype=np.float32)
    division = Division(np.array([0]), np.array([1, 2, 3]))
    vectors = search_rounds(Score(classes=ClassTerms(pull=1.0)), rows, ["a", "a", "a", "b"], [division])
    assert scores_of(vectors, 0) == pytest.approx(np.array([[0.5**0.5, 0.5**0.5, -1.0]]))


@pytest.mark.parametrize("over_cohort", [False, True])
def test_scores_have_the_offsets_and_ranks_do_not(images: tuple[np.ndarray, list[str]], over_cohort: bool) -> None:
    rows, labels = images
    base = cohort_score(rows[::3], k=4, ignore_above=0.999) if over_cohort else Score()
    score = replace(base, classes=OFFSET)
    divisions = divide(labels, 3, rng=np.random.default_rng(0))
    scores, ranks = (search_rounds(score, rows, labels, divisions, ranked=ranked) for ranked in (False, True))
    for number, division in enumerate(divisions):
        of_items = [labels[row] for row in division.items]
        gallery = score.gallery(rows[division.items], of_items)
        assert gallery.offsets.any()
        by_class = np.argsort(of_items, kind="stable")  # both sides of a round are sorted by class
        added = scores_of(ranks, number) - scores_of(scores, number)
        assert added == pytest.approx(np.broadcast_to(gallery.offsets[by_class], added.shape), abs=1e-6)


def test_without_an_offset_results_are_ordered_by_the_score(images: tuple[np.ndarray, list[str]]) -> None:
    rows, labels = images
    divisions = divide(labels, 2, rng=np.random.default_rng(0))
    for score in (Score(), Score(classes=ClassTerms(pull=0.9))):
        scores, ranks = (search_rounds(score, rows, labels, divisions, ranked=ranked) for ranked in (False, True))
        assert np.array_equal(scores.gallery, ranks.gallery)


def test_the_choice_is_the_most_consistent_of_the_candidates_with_about_the_best_tar(
    images: tuple[np.ndarray, list[str]],
) -> None:
    """Measured again by other functions: TAR from sorted scores, OPIS from `consistency_around`."""
    rows, labels = images
    divisions = divide(labels, 2, rng=np.random.default_rng(0))

    def scored(score: Score) -> LabelledVectors:
        return search_rounds(score, rows, labels, divisions)

    found = best_catalogue_score([Score()], rows, labels, far=0.05, scored=scored)
    codes = class_codes(labels)[1]
    rated = []
    for terms in candidate_terms(rows, codes, density=Score().row_densities, weight=0.5):
        vectors = scored(Score(classes=terms))
        matches = np.concatenate([_matches(vectors, number).ravel() for number in (0, 1)])
        scores = np.concatenate([scores_of(vectors, number).ravel() for number in (0, 1)])
        threshold = np.sort(scores[~matches])[-int(0.05 * np.count_nonzero(~matches))]
        opis = consistency_around(vectors, 0.05, rng=np.random.default_rng(0))
        rated.append((np.mean(scores[matches] >= threshold), opis.debiased, terms))
    most = max(tar for tar, _, _ in rated)
    assert found.classes == min((one for one in rated if one[0] >= most - 0.02), key=lambda one: one[1])[2]


def _matches(vectors: LabelledVectors, number: int) -> np.ndarray:
    one = vectors.one_round(number)
    return one.codes[:, None] == one.gallery_codes
