"""Calibration: the better score wins, the threshold keeps its target, and its id can be had again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from retrieval.consistency.thresholds.targets import Target, parse_target
from retrieval.contract.bundle import BundleDigest
from retrieval.contract.canonical import json_bytes
from retrieval.contract.manifest import Item
from retrieval.contract.operating_point import OperatingPoint
from retrieval.contract.score import Score
from retrieval.engine.score_choice import LabelledEmbeddings, candidate_scores, check_cohort, measure_score
from retrieval.errors import InvalidEmbeddings, InvalidInput, NotEnoughEvidence
from retrieval.flows.calibrate import CalibrationTarget, calibrate, compare_with_active
from tests.stores import CREATED_AT


def normalised(rows: NDArray[np.float64]) -> NDArray[np.float32]:
    unit: NDArray[np.float32] = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
    return unit


def crowded(n_classes: int = 60, n_images: int = 5, *, seed: int = 0) -> LabelledEmbeddings:
    """Half of the classes crowd around one place, the others have room: one cosine threshold fits both badly."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(n_classes, 24))
    centres[: n_classes // 2] += 6 * np.random.default_rng(99).normal(size=24)
    rows = centres.repeat(n_images, axis=0)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    rows += rng.normal(scale=0.05, size=rows.shape)
    labels = [f"class {code}" for code in range(n_classes) for _ in range(n_images)]
    return LabelledEmbeddings(normalised(rows), labels, "crowded")


def isolated(n_classes: int = 60, n_images: int = 5, *, seed: int = 0) -> LabelledEmbeddings:
    """Classes far apart from each other, all alike."""
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(n_classes, 24)).repeat(n_images, axis=0) + rng.normal(size=(n_classes * n_images, 24))
    return LabelledEmbeddings(normalised(rows), [f"{code}" for code in range(n_classes) for _ in range(n_images)], "i")


def cohort_of_strangers(k: int = 10) -> Score:
    """A cohort from the same two places, of classes that are not calibrated on."""
    return Score(cohort=crowded(200, 1, seed=1).embeddings, k=k)


def run(
    data: LabelledEmbeddings, scores: Sequence[Score], *, seed: int = 0, target: CalibrationTarget | None = None
) -> OperatingPoint:
    return calibrate(
        data,
        bundle=BundleDigest("bundle"),
        scores=scores,
        target=target or CalibrationTarget(),
        rng=np.random.default_rng(seed),
        created_at=CREATED_AT,
    )


@pytest.fixture(scope="module")
def cosine() -> OperatingPoint:
    """The operating point of the cosine on the crowded classes."""
    return run(crowded(), [Score()])


def pairs(data: LabelledEmbeddings, score: Score) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Score of every unordered pair and whether it is of one class: the slow reference."""
    products = score.query_vectors(data.embeddings) @ score.gallery_vectors(data.embeddings).T
    rows, columns = np.triu_indices(len(data.labels), 1)
    labels = np.array(data.labels)
    return products[rows, columns], labels[rows] == labels[columns]


@pytest.mark.parametrize("order", [1, -1])
def test_the_better_score_is_chosen(order: int) -> None:
    """Where classes crowd, the cohort accepts more true pairs at the same FAR; in whatever order they are tried."""
    cohort = cohort_of_strangers()
    point = run(crowded(), [Score(), cohort][::order])
    by_kind = {entry.kind: entry for entry in point.compared}
    assert by_kind["cohort"].tar > by_kind["cosine"].tar + 0.05
    assert (point.score_kind, point.score_digest) == ("cohort", cohort.digest)
    assert point.choice.tar == by_kind["cohort"].tar


def test_the_cosine_is_kept_where_the_cohort_does_not_help() -> None:
    """A cohort of another place only adds noise."""
    point = run(isolated(), [cohort_of_strangers(k=1), Score()])
    assert (point.score_kind, point.score_digest) == ("cosine", Score().digest)
    assert {entry.kind for entry in point.compared} == {"cosine", "cohort"}


def test_of_scores_that_accept_about_as_much_the_most_consistent_is_chosen() -> None:
    """And never one that accepts fewer true pairs than the cosine."""
    cohort = crowded(200, 3, seed=1)
    point = run(crowded(), candidate_scores(cohort.embeddings, cohort.labels))
    compared = {entry.score_digest: entry for entry in point.compared}
    chosen = compared[point.score_digest]
    (cosine,) = (entry for entry in point.compared if entry.kind == "cosine")
    most = max(entry.tar for entry in point.compared)
    assert chosen.tar >= max(cosine.tar, most - 0.02)
    assert chosen.opis == min(e.opis for e in point.compared if e.tar >= max(cosine.tar, most - 0.02))
    assert len(point.compared) == 5


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
        with pytest.raises(InvalidInput, match="found 1 of its 2 images among them"):
            check_cohort(calibration, [item("3", "tree"), shared])


@pytest.mark.parametrize(("far", "score"), [(1e-2, Score()), (1e-1, cohort_of_strangers())])
def test_the_threshold_keeps_its_target_and_no_lower_one_does(far: float, score: Score) -> None:
    """Counted pair by pair."""
    data = crowded()
    point = run(data, [score], target=CalibrationTarget(target=Target("far", far)))
    scores, same = pairs(data, score)
    accepted = scores >= np.float32(point.threshold)
    n_negatives = np.count_nonzero(~same)
    # float32 products of other tile sizes differ in the last digit: one pair may change sides
    assert np.count_nonzero(accepted & ~same) == pytest.approx(far * n_negatives, abs=1.01)
    assert point.choice.far == pytest.approx(accepted[~same].mean(), abs=1.5 / n_negatives)
    assert point.choice.tar == pytest.approx(accepted[same].mean(), abs=1.5 / np.count_nonzero(same))
    assert point.choice.far in point.choice.far_interval
    assert point.choice.far <= far


def test_probabilities_rise_with_the_score_and_follow_the_prevalence() -> None:
    data, grid = crowded(), np.linspace(-1, 1, 101)
    rare, common = (
        run(data, [Score()], target=CalibrationTarget(prevalence=prevalence)).calibrator.probability(grid)
        for prevalence in (0.001, 0.5)
    )
    assert (np.diff(rare) >= 0).all()
    assert (rare <= common).all()
    assert rare[0] < 0.001
    assert common[-1] > 0.9


def test_the_same_data_and_seed_give_the_same_operating_point(cosine: OperatingPoint) -> None:
    """Its id can be named in a report and found again; the time does not enter."""
    again = run(crowded(), [Score()])
    assert again == cosine
    assert replace(again, created_at="2030-01-01T00:00:00+00:00").id == cosine.id
    assert run(crowded(seed=5), [Score()]).id != cosine.id


def test_the_order_of_images_does_not_matter(cosine: OperatingPoint) -> None:
    data = crowded()
    order = np.random.default_rng(3).permutation(len(data.labels))
    shuffled = LabelledEmbeddings(data.embeddings[order], [data.labels[i] for i in order], data.data_digest)
    # one pair of 600 may change sides: products of other tiles differ in the last digit
    assert run(shuffled, [Score()]).choice.tar == pytest.approx(cosine.choice.tar, abs=2e-3)


def test_a_class_with_one_image_is_no_error() -> None:
    """It has no positive pair: it counts for FAR and is left out of TAR."""
    data = crowded()
    lonely = LabelledEmbeddings(
        np.concatenate([data.embeddings, isolated(1, 1, seed=8).embeddings]), [*data.labels, "alone"], "with one"
    )
    choice = run(lonely, [Score()]).choice
    assert (choice.n_classes, choice.n_classes_with_positives, choice.n_images) == (61, 60, 301)


def test_too_few_classes_are_refused() -> None:
    with pytest.raises(NotEnoughEvidence, match="20"):
        run(crowded(n_classes=10), [Score()])


def test_classes_of_one_image_are_no_evidence() -> None:
    with pytest.raises(NotEnoughEvidence):
        run(crowded(n_classes=60, n_images=1), [Score()])


def test_a_target_too_strict_for_the_data_is_refused() -> None:
    """With 45,000 pairs nobody can speak about one in a million."""
    with pytest.raises(NotEnoughEvidence):
        run(crowded(), [Score()], target=CalibrationTarget(target=Target("far", 1e-6)))


def test_a_certificate_that_the_data_cannot_support_is_refused_not_rounded(cosine: OperatingPoint) -> None:
    """The threshold stands without it, and the operating point says why there is none."""
    assert cosine.certificate is not None
    assert cosine.certificate_refusal == ""
    without = run(crowded(), [Score()], target=CalibrationTarget(certified_delta=0.001))
    assert without.certificate is None
    assert "at least 999 classes, found 60" in without.certificate_refusal
    assert without.threshold == cosine.threshold


def test_no_label_and_no_vector_are_refused() -> None:
    data = crowded()
    with pytest.raises(InvalidEmbeddings):
        run(replace(data, labels=data.labels[:-1]), [Score()])
    poisoned = data.embeddings.copy()
    poisoned[7, 0] = np.nan
    with pytest.raises(InvalidEmbeddings):
        run(replace(data, embeddings=poisoned), [Score()])


@pytest.mark.parametrize(
    "field", ["prevalence", "confidence", "certified_far", "certified_delta", "certified_mean_far"]
)
@pytest.mark.parametrize("value", [0.0, 1.0, -0.1, 2.0, float("nan")])
def test_targets_are_shares(field: str, value: float) -> None:
    with pytest.raises(InvalidInput, match=f"{field}: expected a number between 0 and 1"):
        replace(CalibrationTarget(), **{field: value})


def test_comparison_names_the_score() -> None:
    cohort = cohort_of_strangers(k=7)
    entry = measure_score(crowded(), cohort, Target("far", 0.01), 0.95, np.random.default_rng(0)).comparison
    assert (entry.kind, entry.k, entry.score_digest) == ("cohort", 7, cohort.digest)
    assert 0 < entry.recall_at_1 <= 1
    assert entry.opis_debiased is not None
    assert entry.opis >= entry.opis_floor >= 0


@pytest.mark.parametrize("text", ["class-far=0.02", "frr=0.2", "precision=0.2@0.01", "f1@0.2", "utility"])
def test_every_target_gives_an_operating_point(text: str) -> None:
    """It comes back from its document, and says what it is for."""
    target = parse_target(text)
    point = run(crowded(), [Score(), cohort_of_strangers()], target=CalibrationTarget(target=target))
    again = OperatingPoint.from_json(json_bytes(point.to_json()), "here")
    assert (again, again.id) == (point, point.id)
    assert again.choice.target == target
    chosen = {entry.score_digest: entry for entry in point.compared}[point.score_digest]
    merit = {"lowest": "tar", "highest": "far", "best": "achieved"}[target.choice]
    values = [getattr(entry, merit) for entry in point.compared]
    assert getattr(chosen, merit) == (min(values) if merit == "far" else max(values))


def test_both_certificates_and_their_refusals() -> None:
    point = run(crowded(), [Score()], target=CalibrationTarget(certified_far=0.2, certified_mean_far=0.001))
    assert point.certificate is not None
    assert point.certificate.strict
    assert point.mean_certificate is None
    assert "at least 1999 classes, found 60" in point.mean_certificate_refusal


def test_what_changes_against_the_active_operating_point() -> None:
    """Counted on the same pairs; between two scores there is nothing to count."""
    data, cohort = crowded(), cohort_of_strangers()
    loose = run(data, [Score()], target=CalibrationTarget(target=Target("far", 0.05)))
    strict = run(data, [Score()], target=CalibrationTarget(target=Target("far", 0.01)))
    changes = compare_with_active(data, Score(), strict, loose)
    assert changes is not None
    assert (changes.active_far, changes.proposed_far) == (loose.choice.far, strict.choice.far)
    scores, same = pairs(data, Score())
    flipped = (scores >= np.float32(loose.threshold)) & (scores < np.float32(strict.threshold))
    assert changes.n_changed == pytest.approx(np.count_nonzero(flipped), abs=2)  # float32 products of other tiles
    assert changes.n_improved == pytest.approx(np.count_nonzero(flipped & ~same), abs=2)
    other = run(data, [cohort], target=CalibrationTarget(target=Target("far", 0.05)))
    assert compare_with_active(data, Score(), strict, other) is None
