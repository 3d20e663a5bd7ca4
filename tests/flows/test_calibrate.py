"""Calibration: the better score wins, the threshold keeps its target, and its id can be had again."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from retrieval.consistency import Target, parse_target
from retrieval.contract.bundle import Bundle, BundleDigest
from retrieval.contract.canonical import json_bytes
from retrieval.contract.operating_point import OperatingPoint
from retrieval.contract.score import Score
from retrieval.engine.encoder import Encoder
from retrieval.engine.labelled_embeddings import LabelledEmbeddings
from retrieval.engine.score_choice import candidate_scores
from retrieval.engine.store import Store
from retrieval.errors import (
    InvalidEmbeddings,
    InvalidInput,
    InvalidManifest,
    NotEnoughEvidence,
    TooManyFailures,
    UnknownBundle,
)
from retrieval.flows.calibrate import (
    Calibration,
    CalibrationRequest,
    CalibrationTarget,
    calibrate,
    compare_with_active,
    run_calibration,
)
from tests.crowds import cohort_of_strangers, crowded, isolated
from tests.pictures import write_class_folders
from tests.stores import CREATED_AT, embedder_of


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


@pytest.mark.slow
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


def test_families_widen_the_intervals_and_leave_the_threshold() -> None:
    data = crowded()
    families = [f"family {int(label.split()[1]) // 10}" for label in data.labels]
    alone, grouped = (run(replace(data, families=each), [Score()]).choice for each in (list(data.labels), families))
    assert alone.n_families == len(set(data.labels))
    assert (grouped.threshold, grouped.far, grouped.n_families) == (alone.threshold, alone.far, 6)
    widths = [choice.far_interval.high - choice.far_interval.low for choice in (alone, grouped)]
    assert widths[1] > 2 * widths[0]


@pytest.mark.slow
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


@pytest.mark.slow
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
    with pytest.raises(NotEnoughEvidence, match="at least 20 classes with 2 images or more, found 0"):
        run(crowded(n_classes=60, n_images=1), [Score()])


def test_a_target_too_strict_for_the_data_is_refused() -> None:
    """45,000 pairs cannot support a FAR of one in a million."""
    with pytest.raises(NotEnoughEvidence, match="needs at least 10000000 negative pairs, found 44250"):
        run(crowded(), [Score()], target=CalibrationTarget(target=Target("far", 1e-6)))


def test_a_certificate_that_the_data_cannot_support_is_refused_not_rounded(cosine: OperatingPoint) -> None:
    """The threshold is stored without it, and the operating point has the reason why there is none."""
    assert cosine.certificate is not None
    assert cosine.certificate_refusal == ""
    without = run(crowded(), [Score()], target=CalibrationTarget(certified_delta=0.001))
    assert without.certificate is None
    assert "at least 999 classes, found 60" in without.certificate_refusal
    assert without.threshold == cosine.threshold


def test_no_label_and_no_vector_are_refused() -> None:
    data = crowded()
    with pytest.raises(InvalidEmbeddings, match="found 299 labels for 300 rows"):
        run(replace(data, labels=data.labels[:-1]), [Score()])
    poisoned = data.embeddings.copy()
    poisoned[7, 0] = np.nan
    with pytest.raises(InvalidEmbeddings, match="row 7"):
        run(replace(data, embeddings=poisoned), [Score()])


@pytest.mark.parametrize(
    "field", ["prevalence", "confidence", "certified_far", "certified_delta", "certified_mean_far"]
)
@pytest.mark.parametrize("value", [0.0, 1.0, -0.1, 2.0, float("nan")])
def test_targets_are_shares(field: str, value: float) -> None:
    with pytest.raises(InvalidInput, match=f"{field}: expected a number between 0 and 1"):
        replace(CalibrationTarget(), **{field: value})


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
    assert "at least 1000 classes, found 60" in point.mean_certificate_refusal


@pytest.mark.slow
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


# the whole story


Calibrate = Callable[..., Calibration]
STRANGERS = cohort_of_strangers()


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Labelled images of 30 classes, a cohort of 40 others with one damaged image, and one class of both."""
    root = tmp_path_factory.mktemp("calibration")
    sizes = {"images": (30, 4, 4000), "cohort": (40, 2, 5000), "shared": (2, 2, 4029)}
    for name, (n_classes, n_images, first_class) in sizes.items():
        write_class_folders(root / name, n_classes=n_classes, n_images=n_images, first_class=first_class)
    (root / "cohort" / "class_5003" / "1.png").write_bytes(b"no image")
    return {name: root / name for name in sizes}


@pytest.fixture
def begin(
    store: Store, tiny_bundle: Bundle, tiny_encoder: Encoder, pool: Executor, folders: dict[str, Path]
) -> Calibrate:
    """Calibrate the tiny bundle on the images, with a cohort if one is named."""
    store.add_bundle(tiny_bundle.directory)

    def run_flow(
        *, cohort: str = "", progress: Callable[[str, int, int], None] = lambda *step: None, **options: Any
    ) -> Calibration:
        request = CalibrationRequest(
            bundle=tiny_bundle.digest,
            data=str(folders["images"]),
            cohort=str(folders[cohort]) if cohort else "",
            k=5,
        )
        return run_calibration(
            store,
            replace(request, **options),
            embedder=embedder_of(tiny_encoder, pool),
            created_at=CREATED_AT,
            progress=progress,
        )

    return run_flow


@pytest.mark.slow
def test_a_point_is_stored_and_activated_only_on_request(
    begin: Calibrate, store: Store, tiny_bundle: Bundle, folders: dict[str, Path], tiny_encoder: Encoder
) -> None:
    """It is the operating point of the embeddings and the seed; progress names the folder and counts every image."""
    steps: list[tuple[str, int, int]] = []
    made = begin(seed=3, progress=lambda *step: steps.append(step))
    assert steps == [("embedding images", 120, 120)]
    assert not made.active
    assert store.active_id(tiny_bundle.digest) is None
    assert store.operating_points(tiny_bundle.digest).readable == [made.point]
    paths = sorted(folders["images"].rglob("*.png"))
    data = LabelledEmbeddings(
        tiny_encoder.embed_images([path.read_bytes() for path in paths]),
        [path.parent.name for path in paths],
        made.point.data_digest,
    )
    assert made.point == replace(run(data, [Score()], seed=3), bundle_digest=tiny_bundle.digest)
    again = begin(seed=3, activate=True)
    assert (again.point.id, again.active, again.no_changes) == (made.point.id, True, "no operating point was active")
    assert store.active_id(tiny_bundle.digest) == made.point.id


def test_the_document_names_what_people_ask_for(begin: Calibrate) -> None:
    made = begin(cohort="cohort", activate=True)
    document = json.loads(json_bytes(made.to_json()))
    assert (document["id"], document["active"], document["changes"]) == (made.point.id, True, None)
    assert document["choice"]["threshold"] == made.point.threshold
    assert [failure["item_id"] for failure in document["failures"]] == ["class_5003/1.png"]


def test_a_cohort_gives_more_scores_and_the_chosen_one_is_stored(begin: Calibrate, store: Store) -> None:
    made = begin(cohort="cohort", activate=True)
    assert {entry.kind for entry in made.point.compared} == {"cosine", "cohort", "whitened cohort"}
    score = store.score(made.point.bundle_digest, made.point.score_digest)
    assert (score.kind, score.digest) == (made.point.score_kind, made.point.score_digest)
    assert [failure.item_id for failure in made.failures] == ["class_5003/1.png"]


@pytest.mark.slow
def test_a_second_point_is_compared_with_the_active_one(begin: Calibrate) -> None:
    """The decisions on these images that change; the same threshold changes none."""
    begin(activate=True)
    stricter = begin(target=CalibrationTarget(target=Target("far", 0.002)))
    assert stricter.changes is not None
    assert (stricter.active, stricter.no_changes) == (False, "")
    assert stricter.changes.proposed == stricter.point.threshold > stricter.changes.active
    assert stricter.changes.n_changed > 0
    same = begin(activate=True)
    assert same.changes is not None
    assert same.changes.n_changed == 0


def test_points_of_two_scores_are_not_compared(begin: Calibrate, store: Store, tiny_bundle: Bundle) -> None:
    """The reason stands in place of the changes."""
    first = begin(activate=True)
    other = replace(first.point, score_kind="cohort", score_digest=store.put_score(tiny_bundle.digest, STRANGERS))
    store.put_operating_point(other)
    store.activate(tiny_bundle.digest, other.id)
    again = begin()
    assert again.changes is None
    assert again.no_changes == "it uses another score (cohort), so the thresholds cannot be compared"


def test_an_active_point_that_cannot_be_read_stops_nothing(begin: Calibrate, store: Store) -> None:
    """Its own message asks for calibrating again."""
    first = begin(activate=True)
    key = f"bundles/{first.point.bundle_digest}/operating_points/{first.point.id}.json"
    store.objects.put(key, json_bytes(first.point.to_json() | {"format": 1}))
    again = begin(activate=True)
    assert again.changes is None
    assert "expected operating point format 2, found 1" in again.no_changes
    assert again.active


def test_what_cannot_be_calibrated_is_refused_before_embedding(
    begin: Calibrate, store: Store, tiny_bundle: Bundle, tmp_path: Path, folders: dict[str, Path]
) -> None:
    """Nothing is embedded and nothing is stored."""
    with pytest.raises(InvalidInput, match="2 of its 4 images are of such classes"):
        begin(cohort="shared")
    manifest = tmp_path / "unlabelled.csv"
    manifest.write_text(f"id,uri\n1,{folders['images']}/class_4000/0.png\n")
    with pytest.raises(InvalidManifest, match="every item needs a label here, 1 have none, for instance '1'"):
        begin(data=str(manifest))
    with pytest.raises(UnknownBundle, match="bundle abc is not in the store"):
        begin(bundle=BundleDigest("abc"))
    assert store.objects.names(f"bundles/{tiny_bundle.digest}/embeddings") == []
    assert store.operating_points(tiny_bundle.digest).readable == []


def test_too_many_unreadable_images_stop_it(
    begin: Calibrate, store: Store, tiny_bundle: Bundle, tmp_path: Path
) -> None:
    """One in a hundred may be unreadable, three of 60 may not."""
    folder = write_class_folders(tmp_path / "bad", n_classes=30, n_images=2, first_class=4100)
    for path in sorted(folder.rglob("*.png"))[:3]:
        path.write_bytes(b"no image")
    with pytest.raises(TooManyFailures, match="3 of 60 items cannot be read, at most 1 are allowed"):
        begin(data=str(folder), activate=True)
    assert store.operating_points(tiny_bundle.digest).readable == []


@pytest.mark.slow
def test_a_family_column_that_is_missing_is_named(begin: Calibrate) -> None:
    with pytest.raises(InvalidManifest, match="expected a column 'maker' of families, found none"):
        begin(family="maker")


@pytest.mark.slow
def test_families_are_recorded_and_a_cap_is_advised(
    begin: Calibrate, folders: dict[str, Path], tmp_path: Path, store: Store
) -> None:
    """Most classes keep 2 of their 4 images: the certificate names a larger one and the cap; families of 3."""
    lines = ["id,uri,label,maker"]
    for number, folder in enumerate(sorted(folders["images"].iterdir())):
        kept = sorted(folder.iterdir())[: 2 if number % 5 else 4]
        lines += [f"{folder.name}/{path.name},{path},{folder.name},{number // 3}" for path in kept]
    (tmp_path / "table.csv").write_text("\n".join(lines))
    target = CalibrationTarget(target=Target("far", 0.05), certified_mean_far=0.1, certified_far=0.3)
    made = begin(data=str(tmp_path / "table.csv"), target=target)
    assert made.point.mean_certificate is not None
    assert any("with 4 of 72 images; at most 2 images a class (max_images=2)" in advice for advice in made.advice)
    assert made.to_json()["advice"] == list(made.advice)
    named = begin(data=str(tmp_path / "table.csv"), target=target, family="maker")
    assert (made.point.family, named.point.family, named.point.choice.n_families) == ("", "maker", 10)
    assert "family" not in made.point.to_json()
    assert store.operating_point(named.point.bundle_digest, named.point.id) == named.point
