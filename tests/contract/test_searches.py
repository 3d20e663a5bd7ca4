"""Rounds of searches under a score, and the choice of class terms, against their definitions."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from retrieval.consistency import Division, LabelledVectors, consistency_around, divide, recall_at_k, thresholds_at_far
from retrieval.contract import searches
from retrieval.contract.class_terms import ClassTerms, candidate_terms, class_codes
from retrieval.contract.score import Score, cohort_score
from retrieval.contract.searches import best_catalogue_score, search_rounds, with_lone_offset
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


def test_the_products_are_the_scores_of_the_round(images: tuple[np.ndarray, list[str]]) -> None:
    """With the offsets, which the order of the results has too."""
    rows, labels = images
    score = replace(cohort_score(rows[::3], k=4, ignore_above=0.999), classes=OFFSET)
    divisions = divide(labels, 3, rng=np.random.default_rng(0))
    vectors = search_rounds(score, rows, labels, divisions)
    for number, division in enumerate(divisions):
        of_items, of_queries = ([labels[row] for row in side] for side in (division.items, division.queries))
        gallery = score.gallery(rows[division.items], of_items)
        assert gallery.offsets.any()
        expected = score.query_vectors(rows[division.queries]) @ gallery.vectors.T
        by_class = np.ix_(np.argsort(of_queries, kind="stable"), np.argsort(of_items, kind="stable"))
        assert scores_of(vectors, number) == pytest.approx(expected[by_class], abs=1e-6)


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
        if recall_at_k(vectors)[1] >= recall_at_k(scored(Score()))[1] - 0.02:
            rated.append((np.mean(scores[matches] >= threshold), opis.debiased, terms))
    most = max(tar for tar, _, _ in rated)
    assert found.classes is not None
    chosen = replace(found.classes, lone_offset=0.0)
    assert chosen == min((one for one in rated if one[0] >= most - 0.02), key=lambda one: one[1])[2]


def test_an_item_without_a_class_is_accepted_as_often_as_without_labels(images: tuple[np.ndarray, list[str]]) -> None:
    """At the threshold of pulled items; never more easily than they are."""
    rows, labels = images
    divisions = divide(labels, 2, rng=np.random.default_rng(0))

    def scored(score: Score) -> LabelledVectors:
        return search_rounds(score, rows, labels, divisions)

    plain, catalogue = Score(), with_lone_offset(Score(classes=OFFSET), class_codes(labels)[1], far=0.05, scored=scored)
    assert catalogue.classes is not None
    assert catalogue.classes.lone_offset > 0
    far = 0.05  # 72 images show it: 40 of their 2,376 pairs are fewer
    without, threshold = (float(thresholds_at_far(scored(one), [far])[0]) for one in (plain, Score(classes=OFFSET)))
    assert catalogue.classes.lone_offset == pytest.approx(without - threshold, abs=1e-5)
    alone = catalogue.gallery(rows, ["x", "x", *[""] * (len(rows) - 2)])
    accepted = catalogue.query_vectors(rows) @ alone.vectors[2:].T >= threshold
    expected = rows @ rows[2:].T >= without
    assert np.mean(accepted != expected) < 1e-3
    assert with_lone_offset(plain, class_codes(labels)[1], far=0.05, scored=scored) is plain


def test_no_candidate_is_chosen_that_puts_wrong_classes_first(
    images: tuple[np.ndarray, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An offset of four times the expected score orders results by their class, whatever the query is."""
    rows, labels = images
    divisions = divide(labels, 2, rng=np.random.default_rng(0))

    def scored(score: Score) -> LabelledVectors:
        return search_rounds(score, rows, labels, divisions)

    extreme, mild = replace(OFFSET, offset_weight=4.0), ClassTerms(pull=0.7)
    base, bad = (recall_at_k(scored(Score(classes=terms)))[1] for terms in (None, extreme))
    assert bad < base - 0.02
    for tried, chosen in (((extreme, mild), mild), ((extreme,), extreme)):
        monkeypatch.setattr(searches, "candidate_terms", lambda *_, tried=tried, **__: tried)
        found = best_catalogue_score([Score()], rows, labels, far=0.05, scored=scored).classes
        assert found is not None
        assert replace(found, lone_offset=0.0) == chosen


def _matches(vectors: LabelledVectors, number: int) -> np.ndarray:
    one = vectors.one_round(number)
    return one.codes[:, None] == one.gallery_codes
