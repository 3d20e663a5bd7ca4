"""The choice of class terms: by other classes than those that judge, for the target, the better one."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from retrieval.consistency import Target
from retrieval.contract.class_terms import candidate_terms
from retrieval.contract.score import Score
from retrieval.engine.class_choice import with_catalog_scores
from retrieval.engine.labelled_embeddings import LabelledEmbeddings
from tests.crowds import cohort_of_strangers, crowded, isolated

TARGET = Target("far", 0.02)


@pytest.fixture(scope="module")
def data() -> LabelledEmbeddings:
    return replace(crowded(90, 4), n_rounds=2)


def test_classes_that_choose_do_not_judge(data: LabelledEmbeddings) -> None:
    """A third of the classes chooses; the scores without labels stay, one catalogue score over each kind is added."""
    scores = (Score(), cohort_of_strangers())
    choice = with_catalog_scores(data, scores, TARGET)
    judging = set(choice.judging.labels)
    assert choice.n_choosing == 30
    assert len(judging) == 60
    assert choice.scores[:2] == scores
    assert [score.kind for score in choice.scores[2:]] == ["catalogue cosine", "catalogue cohort"]
    other = [label not in judging for label in data.labels]
    terms = candidate_terms(
        data.embeddings[other],
        np.unique([data.labels[row] for row in np.flatnonzero(other)], return_inverse=True)[1].astype(np.int64),
        density=Score().row_densities,
        weight=0.5,
    )
    assert choice.scores[2].classes is not None
    assert replace(choice.scores[2].classes, lone_offset=0.0) in terms


def test_images_of_judging_classes_do_not_change_the_choice(data: LabelledEmbeddings) -> None:
    choice = with_catalog_scores(data, (Score(),), TARGET)
    judging = set(choice.judging.labels)
    rows = data.embeddings.copy()
    changed = np.array([label in judging for label in data.labels])
    rows[changed] = rows[changed][::-1]
    again = with_catalog_scores(replace(data, embeddings=rows), (Score(),), TARGET)
    assert again.scores == choice.scores


def test_families_choose_or_judge_as_a_whole(data: LabelledEmbeddings) -> None:
    family = [f"family {int(label.split()[1]) % 9}" for label in data.labels]
    choice = with_catalog_scores(replace(data, families=family), (Score(),), TARGET)
    assert len(set(choice.judging.families or ())) == 6
    assert choice.n_choosing == 30


def test_few_classes_all_judge_with_a_pull_that_nobody_chose() -> None:
    few = replace(isolated(40, 4), n_rounds=2)
    choice = with_catalog_scores(few, (Score(),), TARGET)
    assert (choice.n_choosing, choice.judging) == (0, few)
    plain, catalogue = choice.scores
    assert plain == Score()
    assert catalogue.classes is not None
    assert (catalogue.classes.pull, catalogue.classes.offset_weight) == (0.7, 0.0)
    assert catalogue.classes.typical is not None  # so that a wrong label is seen


def test_images_that_are_alone_neither_choose_nor_take_the_place_of_those_that_do(data: LabelledEmbeddings) -> None:
    alone = crowded(300, 1, seed=7)
    labels = [*data.labels, *(f"alone {number}" for number in range(300))]
    joined = replace(data, embeddings=np.concatenate([data.embeddings, alone.embeddings]), labels=labels)
    choice = with_catalog_scores(joined, (Score(),), TARGET)
    assert choice.n_choosing == 30
    assert sum(label.startswith("alone") for label in choice.judging.labels) == 300


def test_too_few_families_all_judge(data: LabelledEmbeddings) -> None:
    one = replace(data, families=["one"] * len(data.labels))
    assert with_catalog_scores(one, (Score(),), TARGET).n_choosing == 0


def test_a_target_that_the_choosing_classes_cannot_show_is_compared_where_they_can(data: LabelledEmbeddings) -> None:
    """30 classes of 4 images make 6,960 pairs of different classes, which show no FAR of 1e-5."""
    strict = with_catalog_scores(data, (Score(),), Target("far", 1e-5))
    assert strict.scores[-1].classes is not None
