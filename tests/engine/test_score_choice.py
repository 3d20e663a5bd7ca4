"""Which scores a cohort supports, what is measured of each, and which one is the best."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from retrieval.consistency import Target, parse_target
from retrieval.contract.class_terms import ClassTerms
from retrieval.contract.manifest import Item
from retrieval.contract.score import Score
from retrieval.engine.score_choice import (
    MeasuredScore,
    best_score,
    candidate_scores,
    check_cohort,
    measure_score,
)
from retrieval.errors import InvalidEmbeddings, InvalidInput, NotEnoughEvidence
from tests.crowds import cohort_of_strangers, crowded, isolated


def test_candidates_depend_on_what_the_cohort_supports() -> None:
    """Classes where there are labels, no whitening from a handful, no broad density from few."""
    data = crowded(200, 3, seed=1)
    kinds = [(score.kind, score.k) for score in candidate_scores(data.embeddings, k=20)]
    assert kinds == [
        ("cosine", 0), ("cohort", 20), ("cohort", 100), ("whitened cohort", 20), ("whitened cohort", 100)
    ]  # fmt: skip
    with_labels = candidate_scores(data.embeddings, data.labels)
    assert with_labels[-1].digest != candidate_scores(data.embeddings)[-1].digest
    one_a_class = [f"{row}" for row in range(len(data.labels))]
    assert candidate_scores(data.embeddings, one_a_class)[-1].digest == candidate_scores(data.embeddings)[-1].digest
    assert [(score.kind, score.k) for score in candidate_scores(data.embeddings[:9], k=5)] == [
        ("cosine", 0), ("cohort", 5)
    ]  # fmt: skip
    with pytest.raises(InvalidEmbeddings, match="k = 20"):
        candidate_scores(data.embeddings[:9], k=20)


def test_a_cohort_of_calibrated_classes_is_refused() -> None:
    """By name of class or by the picture itself; unknown classes do not count as one."""

    def item(name: str, label: str) -> Item:
        return Item(id=name, uri=f"file:///{name}", label=label, attributes={})

    calibration = [item("1", "cup"), item("2", "")]
    check_cohort(calibration, [item("3", "tree"), item("4", "")])
    for shared in (item("5", "cup"), item("1", "")):
        with pytest.raises(InvalidInput, match="1 of its 2 images are of such classes"):
            check_cohort(calibration, [item("3", "tree"), shared])


def test_comparison_names_the_score() -> None:
    cohort = cohort_of_strangers(k=7)
    entry = measure_score(crowded(), cohort, Target("far", 0.01), 0.95, np.random.default_rng(0)).comparison
    assert (entry.kind, entry.k, entry.score_digest) == ("cohort", 7, cohort.digest)
    assert 0 < entry.recall_at_1 <= 1
    assert entry.opis_debiased is not None
    assert entry.opis >= entry.opis_floor >= 0


# the choice among measured scores


@pytest.fixture(scope="module")
def measured() -> MeasuredScore:
    """A real measurement, whose numbers the tests replace."""
    return measure_score(crowded(30, 3), Score(), Target("far", 0.01), 0.95, np.random.default_rng(0))


def achieving(
    entry: MeasuredScore, *, k: int, target: str = "far=0.01", opis: float = 0.1, **achieved: float
) -> MeasuredScore:
    """The same measurement with other achievements; k = 0 is the cosine."""
    score = cohort_of_strangers(k) if k else Score()
    choice = replace(entry.choice, target=parse_target(target), **achieved)
    return MeasuredScore(score, choice, replace(entry.comparison, k=k, opis=opis))


@pytest.mark.parametrize(
    ("tars", "opises", "best"),
    [
        ([0.50, 0.51, 0.515], [3, 2, 1], 2),
        ([0.50, 0.51, 0.515], [1, 2, 3], 0),
        ([0.50, 0.51, 0.525], [1, 2, 3], 1),
        ([0.50, 0.49, 0.485], [3, 2, 1], 0),
        ([0.10, 0.90, 0.5], [1, 3, 2], 1),
    ],
    ids=[
        "all within the margin",
        "cosine is most consistent",
        "cosine too far below",
        "never below cosine",
        "far above",
    ],
)
def test_the_most_consistent_of_the_good_ones(
    measured: MeasuredScore, tars: list[float], opises: list[float], best: int
) -> None:
    """Within 0.02 of the largest TAR and not below the cosine's; the order in which they are tried does not matter."""
    entries = [
        achieving(measured, k=k, tar=tar, opis=opis) for k, (tar, opis) in enumerate(zip(tars, opises, strict=True))
    ]
    assert best_score(entries) is entries[best]
    assert best_score(entries[::-1]) is entries[best]


def test_other_targets_take_the_largest_merit(measured: MeasuredScore) -> None:
    """For an FRR the fewest false accepts; for F-beta the largest value."""
    strict = [achieving(measured, k=1, target="frr=0.1", far=far, opis=far) for far in (0.2, 0.1, 0.3)]
    assert best_score(strict) is strict[1]
    balanced = [achieving(measured, k=1, target="f1@0.5", achieved=value, opis=value) for value in (0.2, 0.1, 0.3)]
    assert best_score(balanced) is balanced[2]


def test_a_score_that_accepts_strangers_too_often_is_not_eligible() -> None:
    """However good its other rates are; if all are such, there is no threshold for the target."""
    data = replace(isolated(60, 6), n_rounds=2)
    scores = (Score(), Score(classes=ClassTerms(pull=0.9)))
    plain, pulled = (
        measure_score(data, score, Target("far", 0.01), 0.95, np.random.default_rng(0)) for score in scores
    )
    assert best_score([plain, pulled]) is pulled
    assert pulled.strangers is not None
    assert pulled.comparison.stranger_far == pulled.strangers.far
    assert not pulled.comparison.refused
    refused = [replace(entry, comparison=replace(entry.comparison, refused=True)) for entry in (plain, pulled)]
    assert best_score([plain, refused[1]]) is plain
    with pytest.raises(NotEnoughEvidence, match="every score accepts queries whose class is absent"):
        best_score(refused)
