from __future__ import annotations

import json

import numpy as np
import pytest

from retrieval.consistency import (
    Target,
    ThresholdChoice,
    choose_threshold,
    labelled,
    operating_curves,
    parse_target,
    threshold_grid,
)
from retrieval.errors import InvalidEmbeddings, InvalidInput, NotEnoughEvidence
from tests.bench.measuring.coverage import promises
from tests.bench.measuring.settings import FRESH, SETTINGS

NEW_FIELDS = {"far_units", "tar_units", "tar_trials", "class_tar", "n_families", "warnings"}


def test_threshold_is_exact_and_its_rates_are_those_of_the_curves(family) -> None:
    rows, labels = family(np.random.default_rng(0), n_classes=40, n_images=4, spread=0.2)
    choice = choose_threshold(labelled(rows, labels), target=Target("far", 0.01))
    below = float(np.nextafter(np.float32(choice.threshold), np.float32(-1)))
    curves = operating_curves(labelled(rows, labels), thresholds=[below, choice.threshold])
    assert curves.pooled_far[1] == choice.far <= 0.01 < curves.pooled_far[0]
    assert curves.pooled_tar[1] == choice.tar
    assert choice.threshold in choice.threshold_interval
    assert choice.far in choice.far_interval
    assert choice.tar in choice.tar_interval
    assert (choice.n_classes, choice.n_classes_with_positives, choice.n_images) == (40, 40, 160)
    assert str(choice).startswith(f"threshold {choice.threshold:.4f} (95 % interval ")


@pytest.mark.slow
def test_promises_hold_for_new_classes(family) -> None:
    """Over 200 draws of 60 classes, each 90 % interval holds what it is about in about 90 % of them.

    The FAR interval that takes per-class rates as independent is computed beside: it holds far less often.
    """
    rng = np.random.default_rng(2)
    options = {"n_images": 4, "dimension": 16, "spread": 0.2, "crowding": 0.6}
    target, n_draws = 0.02, 200
    population = family(rng, n_classes=1000, **options)
    population_curves = operating_curves(
        labelled(*population), thresholds=threshold_grid(labelled(*population), n_band=100)
    )
    population_threshold = choose_threshold(labelled(*population), target=Target("far", target)).threshold
    inside = dict.fromkeys(["new far", "new tar", "far", "threshold", "naive far"], 0)
    for _ in range(n_draws):
        drawn, other = family(rng, n_classes=60, **options), family(rng, n_classes=45, **options)
        choice = choose_threshold(labelled(*drawn), target=Target("far", target), confidence=0.9)
        measured = operating_curves(labelled(*other), thresholds=[choice.threshold])
        inside["new far"] += measured.pooled_far[0] in choice.predicted_far(45)
        inside["new tar"] += measured.pooled_tar[0] in choice.predicted_tar(45)
        true_far = np.interp(choice.threshold, population_curves.thresholds, population_curves.pooled_far)
        inside["far"] += true_far in choice.far_interval
        inside["threshold"] += population_threshold in choice.threshold_interval
        by_class = operating_curves(labelled(*drawn), thresholds=[choice.threshold]).far[:, 0]
        naive = 1.645 * by_class.std(ddof=1) / np.sqrt(60) / choice.far
        inside["naive far"] += abs(np.log(true_far / choice.far)) < naive
    # The binomial error of 200 draws is 2 %, and the population of 1,000 classes is itself a draw.
    assert inside.pop("naive far") / n_draws < 0.8
    for name, hits in inside.items():
        assert 0.84 <= hits / n_draws <= 0.96, (name, hits)


def test_predictions_widen_as_the_new_set_shrinks(family) -> None:
    rows, labels = family(np.random.default_rng(2), n_classes=150, n_images=4, dimension=16, spread=0.3, crowding=1.0)
    choice = choose_threshold(labelled(rows, labels), target=Target("far", 0.02))
    assert choice.class_variance > choice.pair_variance > 0
    # As many new classes as old ones: twice the variance, on the scale on which the interval is symmetric.
    assert np.log(choice.predicted_far(150).high / choice.far) == pytest.approx(
        np.sqrt(2) * np.log(choice.far_interval.high / choice.far)
    )
    for predicted, known in (
        (choice.predicted_far, choice.far_interval),
        (choice.predicted_tar, choice.tar_interval),
    ):
        widths = [interval.high - interval.low for interval in (predicted(5), predicted(50), predicted(10**9), known)]
        assert widths[:3] == sorted(widths[:3], reverse=True)
        assert widths[2] == pytest.approx(widths[3])
    for predicted, few in ((choice.predicted_far, 1), (choice.predicted_tar, 0)):
        with pytest.raises(InvalidInput, match="new class"):
            predicted(few)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "n_draws"),
    [
        ("40 of 2, TAR near 1", 200),
        ("100 of 4, TAR near 1", 75),
        ("60 of 2 to 30", 75),
        ("99 of 5, one of 400", 30),
        ("30 of 4", 100),
        ("100 of 4, heavy tails, FAR 1e-3", 75),
    ],
)
def test_promises_hold_in_hard_settings(name: str, n_draws: int) -> None:
    """Each 95 % interval and prediction; the binomial error of 75 draws at 0.95 is 2.5 %, and three are allowed."""
    (setting,) = [setting for setting in SETTINGS if setting.name == name]
    for promise, coverage in promises(setting, n_draws, seed=7).items():
        assert coverage.share >= 0.95 - 3 * np.sqrt(0.95 * 0.05 / coverage.draws), (promise, coverage.share)


@pytest.mark.slow
def test_predictions_hold_for_families_that_are_drawn_together() -> None:
    for setting in (setting for setting in SETTINGS if setting.family >= 6):
        for promise, coverage in promises(setting, 150, seed=7, families=True).items():
            assert coverage.share >= 0.95 - 3 * np.sqrt(0.95 * 0.05 / coverage.draws), (promise, coverage.share)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["10 families of 12", "30 families of 4, d 24"])
def test_predictions_hold_for_families_that_nobody_named(name: str) -> None:
    """Those of TAR do not if each class is taken as drawn alone."""
    (setting,) = [setting for setting in (*SETTINGS, *FRESH) if setting.name == name]
    found = promises(setting, 100, seed=7)
    for promise in ("predicted FAR", "predicted TAR"):
        assert found[promise].share >= 0.95 - 3 * np.sqrt(0.95 * 0.05 / found[promise].draws), promise
    assert found["predicted TAR, classes alone"].share < 0.9


def test_a_tar_of_1_is_an_interval_with_a_width() -> None:
    """40 classes of two images, every pair accepted: 0 of 40 rejected leaves up to 9 % possible."""
    centres = np.random.default_rng(4).normal(size=(40, 6))
    rows = np.repeat(centres / np.linalg.norm(centres, axis=1, keepdims=True), 2, axis=0).astype(np.float32)
    choice = choose_threshold(labelled(rows, [str(row // 2) for row in range(80)]), target=Target("far", 0.05))
    assert choice.tar == 1
    assert choice.tar_interval.low == pytest.approx(0.907, abs=1e-3)
    assert choice.predicted_tar(40).low < choice.tar_interval.low


def test_a_document_of_an_older_version_opens_and_predicts(family) -> None:
    rows, labels = family(np.random.default_rng(2), n_classes=60, n_images=4, dimension=16, crowding=1.0)
    choice = choose_threshold(labelled(rows, labels), target=Target("far", 0.02))
    document = {name: value for name, value in choice.to_json().items() if name not in NEW_FIELDS}
    older = ThresholdChoice.from_json(document)
    assert older.threshold == choice.threshold
    assert older.far in older.predicted_far(60)
    assert older.predicted_tar(60).low == pytest.approx(choice.predicted_tar(60).low, abs=0.02)
    perfect = ThresholdChoice.from_json(document | {"tar": 1.0})
    assert perfect.predicted_tar(60).low < 1


def test_a_class_that_holds_most_pairs_is_named_and_the_class_mean_stands_beside(family) -> None:
    rows, labels = family(np.random.default_rng(3), n_classes=60, n_images=40, dimension=16, spread=0.5, crowding=0.8)
    kept = [row for row in range(len(labels)) if row < 40 or row % 40 < 4]
    choice = choose_threshold((rows[kept], [labels[row] for row in kept]), target=Target("far", 0.02))
    by_class = operating_curves((rows[kept], [labels[row] for row in kept]), thresholds=[choice.threshold])
    assert choice.class_tar == pytest.approx(by_class.tar.mean())
    (true_pairs, false_pairs) = choice.warnings[:2]
    assert "class 'class 0000' (40 images) holds 69% of the true pairs: pooled TAR" in true_pairs
    assert true_pairs in str(choice)
    assert "of the false pairs" in false_pairs
    assert ThresholdChoice.from_json(json.loads(json.dumps(choice.to_json()))) == choice
    even = choose_threshold(family(np.random.default_rng(3), n_classes=60, n_images=4), target=Target("far", 0.1))
    assert even.warnings == ()


def test_false_accepts_of_few_pairs_of_classes_are_said(family) -> None:
    rng = np.random.default_rng(5)
    rows, labels = family(rng, n_classes=60, n_images=4, dimension=48)
    for code in range(0, 8, 2):  # four pairs of classes that look alike
        rows[4 * code + 4 : 4 * code + 8] = rows[4 * code : 4 * code + 4]
    choice = choose_threshold((rows, labels), target=Target("far", 0.001))
    warning = choice.warnings[-1]  # before it may stand that groups of look-alike classes were found
    assert "2 of 1770 pairs of classes hold half of the false accepts" in warning
    assert choice.far_units is not None
    assert choice.far_units < 20


def test_perfect_separation_promises_no_certainty() -> None:
    """All positives accepted in the sample: the interval still reaches below 1."""
    centres = np.random.default_rng(4).normal(size=(30, 8))
    rows = np.repeat(centres / np.linalg.norm(centres, axis=1, keepdims=True), 3, axis=0).astype(np.float32)
    choice = choose_threshold(labelled(rows, [str(row // 3) for row in range(90)]), target=Target("far", 0.01))
    assert choice.tar == 1
    assert choice.tar_interval.low < 1 == choice.tar_interval.high


def test_cohort_scores_and_shuffled_rows_work_alike(family) -> None:
    rows, labels = family(np.random.default_rng(5), n_classes=30, n_images=4)
    query, gallery = (
        np.hstack([rows, np.full((120, 1), -3, np.float32)]),
        np.hstack([rows, np.ones((120, 1), np.float32)]),
    )
    plain = choose_threshold(labelled(rows, labels), target=Target("far", 0.01))
    shifted = choose_threshold(labelled(query, labels, gallery=gallery), target=Target("far", 0.01))
    assert shifted.threshold == pytest.approx(plain.threshold - 3, abs=1e-5)
    order = np.random.default_rng(6).permutation(120)
    shuffled = choose_threshold(labelled(rows[order], [labels[row] for row in order]), target=Target("far", 0.01))
    assert shuffled.threshold == pytest.approx(plain.threshold, abs=1e-6)
    assert shuffled.class_variance == pytest.approx(plain.class_variance)


def test_too_little_evidence_is_refused_with_what_would_do(family) -> None:
    rows, labels = family(np.random.default_rng(7), n_classes=19, n_images=2)
    with pytest.raises(NotEnoughEvidence, match="at least 20 classes with 2 images or more, found 19"):
        choose_threshold(labelled(rows, labels), target=Target("far", 0.1))
    assert choose_threshold(labelled(rows, labels), target=Target("far", 0.1), min_classes=10).n_classes == 19
    rows, labels = family(np.random.default_rng(7), n_classes=20, n_images=2)
    with pytest.raises(NotEnoughEvidence, match="at least 10000 negative pairs, found 760"):
        choose_threshold(labelled(rows, labels), target=Target("far", 0.001))
    tied = np.tile(rows[:1], (40, 1))
    with pytest.raises(NotEnoughEvidence, match="tie at the highest score"):
        choose_threshold(labelled(tied, labels), target=Target("far", 0.1))


def test_impossible_targets_are_refused(family) -> None:
    rows, labels = family(np.random.default_rng(8), n_classes=20, n_images=2)
    with pytest.raises(InvalidInput, match=r"confidence must lie strictly"):
        choose_threshold(labelled(rows, labels), target=Target("far", 0.1), confidence=1.0)
    with pytest.raises(InvalidEmbeddings, match="rows of norm 1"):
        choose_threshold((rows * np.float32(2), labels), target=Target("far", 0.1))
    with pytest.raises(InvalidInput, match="expected labelled vectors or"):
        choose_threshold([rows, labels], target=Target("far", 0.1))  # type: ignore[arg-type]  # without types


TARGETS = ["far=0.02", "class-far=0.02", "frr=0.3", "precision=0.2@0.01", "f1@0.01", "utility", "false-matches=1@50"]


@pytest.mark.parametrize("text", TARGETS)
def test_every_target_comes_with_its_evidence(text: str, family) -> None:
    """Rates are those of the curves, intervals hold them, predictions work, JSON gives it back equal."""
    rows, labels = family(np.random.default_rng(9), n_classes=50, n_images=4, dimension=12, spread=0.3, crowding=0.5)
    rows, labels = rows[3:], labels[3:]
    choice = choose_threshold(labelled(rows, labels), target=parse_target(text), confidence=0.9)
    curves = operating_curves(labelled(rows, labels), thresholds=[choice.threshold])
    assert (choice.far, choice.tar, choice.class_far) == (
        curves.pooled_far[0], curves.pooled_tar[0], curves.mean_far[0]
    )  # fmt: skip
    assert choice.cost == 1 - choice.tar
    assert choice.achieved == pytest.approx(abs(choice.target.achieved(curves)[0]))
    assert choice.threshold_interval.low <= choice.threshold <= choice.threshold_interval.high
    assert choice.far in choice.far_interval
    assert choice.class_far in choice.class_far_interval
    assert choice.tar in choice.tar_interval
    assert choice.far in choice.predicted_far(40)
    assert choice.tar in choice.predicted_tar(40)
    assert choice.target.describe() in str(choice)
    again = ThresholdChoice.from_json(json.loads(json.dumps(choice.to_json())))
    assert again == choice
    wider = choose_threshold(labelled(rows, labels), target=parse_target(text), confidence=0.99)
    assert wider.threshold == choice.threshold
    assert wider.threshold_interval.low <= choice.threshold_interval.low
    assert wider.threshold_interval.high >= choice.threshold_interval.high


def test_the_far_that_was_asked_for(family) -> None:
    """Where none was, it is the one achieved: an audit compares with it."""
    rows, labels = family(np.random.default_rng(10), n_classes=40, n_images=4)
    chosen = {
        text: choose_threshold(labelled(rows, labels), target=parse_target(text)) for text in ("far=0.02", "frr=0.1")
    }
    assert chosen["far=0.02"].target_far == 0.02
    assert chosen["frr=0.1"].target_far == chosen["frr=0.1"].far


def test_thin_evidence_for_other_targets_is_refused(family) -> None:
    rows, labels = family(np.random.default_rng(11), n_classes=20, n_images=3)
    with pytest.raises(NotEnoughEvidence, match=r"a FRR target of 0.05 needs at least 200 positive pairs, found 60"):
        choose_threshold(labelled(rows, labels), target=parse_target("frr=0.05"))
    with pytest.raises(
        NotEnoughEvidence, match="a target false-matches=1@1000000 needs at least 10000000 negative pairs"
    ):
        choose_threshold(labelled(rows, labels), target=parse_target("false-matches=1@1000000"))
    apart = np.repeat(np.eye(20, dtype=np.float32), 3, axis=0)
    with pytest.raises(NotEnoughEvidence, match=r"accepts 0 of 1710 negative pairs.*more than 1.7e.04 pairs would do"):
        choose_threshold(labelled(apart, labels), target=parse_target("utility"))


@pytest.mark.parametrize("change", [{"target": "eer"}, {"target": None}, {"surprise": 1}, {"far_interval": None}])
def test_documents_that_are_no_choice_are_refused(change: dict[str, object], family) -> None:
    rows, labels = family(np.random.default_rng(12), n_classes=20, n_images=3)
    document = choose_threshold(labelled(rows, labels), target=parse_target("far=0.05")).to_json()
    with pytest.raises(InvalidInput, match=r"incomplete or malformed|is no target"):
        ThresholdChoice.from_json(document | change)
    del document["threshold"]
    with pytest.raises(InvalidInput, match="incomplete or malformed"):
        ThresholdChoice.from_json(document)
