"""The figures of an evaluation, against a case that can be checked by hand and against what they are made of."""

import json
from dataclasses import replace

import numpy as np
import pytest

from retrieval.consistency import OpisOptions, consistency_report, labelled, map_at_r, recall_at_k
from retrieval.consistency.thresholds.cross_fitted import split_classes
from retrieval.contract.manifest import Item
from retrieval.contract.preprocessing import Preprocessing
from retrieval.errors import CorruptArtifact, InvalidInput, NotEnoughEvidence, TooManyFailures
from tests.consistency.conftest import draw_family
from training.evaluation import Evaluation, embed_images, evaluate, evaluate_items, require_evidence
from training.evaluation.report import to_markdown


@pytest.fixture(scope="module")
def drawn() -> tuple[np.ndarray, list[str]]:
    return draw_family(np.random.default_rng(0), n_classes=80, n_images=5, spread=0.6, crowding=0.4)


@pytest.fixture(scope="module")
def evaluation(drawn: tuple[np.ndarray, list[str]]) -> Evaluation:
    return evaluate(*drawn)


@pytest.mark.slow
def test_perfect_classes() -> None:
    """Classes in nearly orthogonal directions: every neighbour is right, every pair accepted, all classes are alike."""
    directions = np.eye(20) + np.random.default_rng(0).normal(0, 0.01, (20, 20))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    embeddings = directions.astype(np.float32).repeat(4, axis=0)
    found = evaluate(embeddings, [f"class {row // 4}" for row in range(80)])
    assert (found.n_images, found.n_classes, found.n_single) == (80, 20, 0)
    assert (found.r_at_1, found.r_at_8, found.map_at_r, found.tar) == (1.0, 1.0, 1.0, 1.0)
    assert found.opis < 1e-3
    assert [rate.far for rate in found.tar_at_far] == [1e-1, 1e-2]
    assert set(found.missing) == {"tar at far 0.001", "tar at far 0.0001", "consistency around far_target"} | {
        "other_classes",
        "identification",
    }


def test_figures_are_those_of_the_mathematics(drawn: tuple[np.ndarray, list[str]], evaluation: Evaluation) -> None:
    rows, labels = drawn
    vectors = labelled(rows, labels)
    recall = recall_at_k(vectors, k=(1, 2, 4, 8))
    assert [evaluation.r_at_1, evaluation.r_at_2, evaluation.r_at_4, evaluation.r_at_8] == list(recall.values())
    assert evaluation.map_at_r == map_at_r(vectors)
    distance, log_far, around, decades = evaluation.consistency
    assert (distance.axis, log_far.axis, around.axis) == ("distance", "log_far", "log_far")
    assert (distance.opis, distance.floor, distance.debiased) == (
        evaluation.opis,
        evaluation.opis_floor,
        evaluation.opis_debiased,
    )
    expected = consistency_report(vectors, OpisOptions(axis="log_far"), rng=np.random.default_rng(0))
    assert (log_far.opis, log_far.debiased, log_far.eps_opis) == (expected.value, expected.debiased, expected.eps_opis)
    assert (around.far_low, around.far_high) == (pytest.approx(10**-2.5, rel=0.05), pytest.approx(10**-1.5, rel=0.05))
    assert (decades.far_low, decades.far_high) == (pytest.approx(1e-3, rel=0.05), pytest.approx(1e-1, rel=0.05))
    tars = {rate.far: rate.tar for rate in evaluation.tar_at_far}
    assert list(tars) == [1e-1, 1e-2, 1e-3]
    assert tars[1e-2] == evaluation.tar
    assert evaluation.missing == {"tar at far 0.0001": "79000 negative pairs give fewer than 10 false accepts"}


def test_other_classes_and_galleries(evaluation: Evaluation) -> None:
    """At thresholds fixed on other classes the FAR is near its target, and the worst classes are worse than all."""
    found = evaluation.other_classes
    assert found is not None
    assert found.far == pytest.approx(0.01, rel=0.3)
    assert found.far in found.far_range
    assert found.worst_tar < found.tar
    assert found.worst_far > found.far
    assert [rates.gallery_size for rates in evaluation.identification] == [30, 100]
    assert evaluation.identification[0].at_far.fpir < evaluation.identification[1].at_far.fpir


def test_brief_is_part_of_full(drawn: tuple[np.ndarray, list[str]], evaluation: Evaluation) -> None:
    brief = evaluate(*drawn, in_full=False)
    assert brief.consistency == brief.tar_at_far == brief.identification == ()
    for name in ("r_at_1", "map_at_r", "threshold", "tar", "opis", "opis_debiased"):
        assert getattr(brief, name) == getattr(evaluation, name)


def test_json_and_back(evaluation: Evaluation) -> None:
    text = json.dumps(evaluation.to_json(), allow_nan=False)
    assert Evaluation.from_json(json.loads(text)) == evaluation
    brief = {name: value for name, value in json.loads(text).items() if name not in ("consistency", "map_at_r")}
    assert Evaluation.from_json(brief).consistency == ()
    with pytest.raises(CorruptArtifact, match="r_at_1"):
        Evaluation.from_json(brief | {"r_at_1": "high"})


def test_items_are_embedded_in_order_and_damaged_ones_counted(held_out_items: list[Item]) -> None:
    """The embedding is the mean colour of each cell: pictures of a class share it, so most are found."""
    lost = Item(id="lost", uri="file:///nowhere/lost.png", label="class_100", attributes={})
    preprocessing = Preprocessing(resize=4, crop=4, mean=(127, 127, 127), std=(60, 60, 60))

    def embed(pixels: np.ndarray) -> np.ndarray:
        rows = pixels.reshape(len(pixels), -1)
        return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)

    found = evaluate_items(
        [*held_out_items, lost], embed, preprocessing, max_unreadable=0.1, progress=lambda done, total: None
    )
    assert (found.n_images, found.n_classes, found.n_unreadable) == (70, 14, 1)
    assert found.r_at_1 > 0.9
    assert found.tar > 0.9
    assert "R@1" in str(found)


def test_images_without_labels_are_refused() -> None:
    """They are no class of their own."""
    with pytest.raises(InvalidInput, match="2 of 42 have none"):
        require_evidence([*(f"{row // 4}" for row in range(40)), "", ""])


def test_nothing_that_can_be_read(held_out_items: list[Item]) -> None:
    lost = [replace(item, uri="file:///nowhere/lost.png") for item in held_out_items]
    preprocessing = Preprocessing(resize=4, crop=4, mean=(127, 127, 127), std=(60, 60, 60))
    with pytest.raises(TooManyFailures, match="none of 70 images can be read, at least one is needed: file:///nowhere"):
        embed_images(
            lost, lambda pixels: pixels.mean(axis=(2, 3)), preprocessing, max_unreadable=1, progress=lambda *_: None
        )


@pytest.mark.parametrize(
    ("labels", "far_target", "expected"),
    [
        (["a", "b", "c"], 1e-2, "two images of a class, found 3 images of 3 classes"),
        (["a", "a", "a"], 1e-2, "two classes"),
        ([f"{row // 4}" for row in range(40)], 1e-2, "720 pairs of images of different classes give 7.2"),
        ([f"{row // 4}" for row in range(80)], 1e-3, "3040 pairs .* or raise the FAR target"),
        (["pair", *(f"{row}" for row in range(99)), "pair"], 1e-2, "found one: add images per class"),
    ],
)
def test_too_little_is_refused_before_and_after(labels: list[str], far_target: float, expected: str) -> None:
    """From the labels alone, so that a run can be refused before it starts, and by the evaluation likewise."""
    rows = np.eye(len(labels), dtype=np.float32)
    with pytest.raises(NotEnoughEvidence, match=expected):
        require_evidence(labels, far_target=far_target)
    with pytest.raises(NotEnoughEvidence, match=expected):
        evaluate(rows, labels, far_target=far_target)


def test_what_decides_the_rates_is_noted(drawn: tuple[np.ndarray, list[str]]) -> None:
    """20 classes under one label hold most true pairs; a full evaluation states it, in its table too."""
    rows, labels = drawn
    merged = ["merged" if label < "class 0020" else label for label in labels]
    found = evaluate(rows, merged)
    assert any("class 'merged' (100 images) holds" in warning for warning in found.warnings)
    assert "Notes:\n- class 'merged'" in to_markdown(found)
    assert Evaluation.from_json(json.loads(json.dumps(found.to_json()))) == found
    assert evaluate(rows, merged, in_full=False).warnings == ()


@pytest.mark.slow
def test_families_are_split_as_a_whole(drawn: tuple[np.ndarray, list[str]]) -> None:
    """Families of 10 classes: the halves that fix thresholds and are measured share no family, so they differ more."""
    rows, labels = drawn
    families = [label[:-1] for label in labels]
    halves = split_classes(labelled(rows, labels, families=families), np.random.default_rng(0))
    names = [{half.classes[code][:-1] for code in half.codes} for half in halves]
    assert len(names[0]) == len(names[1]) == 4
    assert not names[0] & names[1]
    plain, named = evaluate(rows, labels), evaluate(rows, labels, families=families)
    assert plain.tar == named.tar
    assert plain.other_classes != named.other_classes
