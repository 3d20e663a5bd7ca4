from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import retrieval.consistency as statistics
from retrieval.consistency import (
    OpisOptions,
    Target,
    choose_threshold,
    consistency_report,
    crossed,
    judged_curves,
    labelled,
    operating_curves,
    percentile_interval,
    student_quantile,
    thresholds_at_far,
    wilson_interval,
)
from retrieval.errors import InvalidEmbeddings, InvalidInput, NotEnoughEvidence, RetrievalError


def test_judgements_of_zero_and_one_are_those_of_false_and_true() -> None:
    """`~` of the integer 1 is -2: the rates came out wrong and nothing was said."""
    scores, ends = np.array([0.9, 0.6, 0.2, 0.7], dtype=np.float32), ["a", "a", "b", "b"]
    wanted = judged_curves(scores, np.array([True, False, False, True]), ends, thresholds=[0.5])
    for matches in (np.array([1, 0, 0, 1]), [1, 0, 0, 1], [True, False, False, True], np.array([1.0, 0, 0, 1.0])):
        found = judged_curves(scores.tolist(), matches, ends, thresholds=[0.5])  # type: ignore[arg-type]
        assert (found.pooled_tar, found.pooled_far) == (wanted.pooled_tar, wanted.pooled_far)
    for matches in (np.array([1, 2, 0, 1]), np.array(["1", "0", "0", "1"]), np.array([1, np.nan, 0, 1])):
        with pytest.raises(InvalidInput, match="matches: expected True or False for each entry"):
            judged_curves(scores, matches, ends, thresholds=[0.5])


def test_a_target_may_be_its_text(family) -> None:
    rows, labels = family(np.random.default_rng(0), n_classes=30, n_images=4, dimension=8)
    by_text = choose_threshold((rows, labels), target="far=0.05")
    assert by_text == choose_threshold((rows, labels), target=Target("far", 0.05))
    assert choose_threshold((rows.tolist(), np.asarray(labels)), target="far=0.05") == by_text  # type: ignore[arg-type]
    with pytest.raises(InvalidInput, match="'far 5' is no target"):
        choose_threshold((rows, labels), target="far 5")
    with pytest.raises(InvalidInput, match="value: expected a number, found str"):
        Target("far", "0.05")  # type: ignore[arg-type]


def test_a_score_that_depends_on_the_order_of_the_rows_is_refused(family) -> None:
    """A pair would have one of two scores, whichever of its images comes first."""
    rows, labels = family(np.random.default_rng(1), n_classes=8, n_images=3, dimension=8)
    other = family(np.random.default_rng(2), n_classes=8, n_images=3, dimension=8)[0]
    with pytest.raises(InvalidEmbeddings, match="depends on which image is the query"):
        labelled(rows, labels, gallery=other)
    one_row = rows.copy()
    one_row[5] = other[5]
    with pytest.raises(InvalidEmbeddings, match="depends on which image is the query"):
        labelled(rows, labels, gallery=one_row)
    assert crossed(rows, labels, other, labels).n_positives == 8 * 9
    density = rows[:, :1]
    query, gallery = (
        np.hstack([rows, density, np.ones_like(density)]),
        np.hstack([rows, np.ones_like(density), density]),
    )
    assert not labelled(query, labels, gallery=gallery).cosine


def test_separated_classes_are_not_taken_for_wrong_labels() -> None:
    rows = np.repeat(np.eye(25, dtype=np.float32), 4, axis=0)
    labels = [str(row // 4) for row in range(100)]
    with pytest.raises(NotEnoughEvidence, match=r"the classes are separated.* and 1 of the true pairs score higher"):
        choose_threshold((rows, labels), target="far=0.01")
    with pytest.raises(NotEnoughEvidence, match="look for images filed under several classes"):
        choose_threshold((np.tile(rows[:1], (100, 1)), labels), target="far=0.01")


def chosen(vectors: Any) -> Any:
    return choose_threshold(vectors, target="far=0.1", min_classes=5)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda v: consistency_report(v, rng=0), "rng: expected a numpy.random.Generator, such as"),
        (lambda v: consistency_report(v, "log_far", rng=np.random.default_rng(0)), "options: expected"),
        (lambda v: thresholds_at_far(v, []), "at least one FAR target"),
        (lambda v: thresholds_at_far(v, 0.01), "fars: expected a sequence or an array"),
        (lambda v: operating_curves(v, thresholds="0.5"), "thresholds: expected"),
        (lambda v: operating_curves(v, thresholds=[0.5], threads=1.5), "threads: expected a whole number or None"),
        (lambda v: operating_curves(v, thresholds=[0.5], shard=[0, 2]), "shard: expected a tuple of 2"),
        (lambda v: operating_curves(v, threshold=[0.5]), "operating_curves: got an unexpected keyword argument"),
        (lambda v: wilson_interval(5, 3), "5 successes in 3 trials"),
        (lambda v: wilson_interval(-1, 3), "-1 successes in 3 trials"),
        (lambda v: wilson_interval(True, 3), "successes: expected a whole number, found bool True"),
        (lambda v: percentile_interval(np.array([0.1, np.nan]), 0.9), "NaN in 1 of 2"),
        (lambda v: student_quantile(9, 95), "confidence must lie strictly between 0 and 1, found 95"),
        (lambda v: labelled(np.eye(2, dtype=np.float32), "ab"), "labels: expected a sequence, found str 'ab'"),
        (lambda v: labelled(np.eye(2, dtype=np.float32), [1, 2]), "convert class numbers to strings"),
        (lambda v: operating_curves(v, thresholds=[0.5], shard=(0.5, 2)), r"shard\[0\]: expected a whole number"),
        (
            lambda v: labelled(np.eye(2, dtype=np.float32), ["a", "b"], exclude=[1]),
            r"exclude\[0\]: expected a sequence",
        ),
        (lambda v: statistics.decision_flips(v, {"dark": 3}, 0.5), r"perturbed\['dark'\]: expected labelled vectors"),
        (lambda v: statistics.fit_scores(np.array(0.5), [True], kind="platt", prevalence=0.1), "found a single value"),
        (
            lambda v: statistics.mean_over_classes(
                np.ones(2), np.ones(3) / 3, n_bootstrap=9, confidence=0.9, rng=np.random.default_rng(0)
            ),
            "expected a value and a weight for each class",
        ),
        (lambda v: chosen(v).predicted_far("10"), "n_new_classes: expected a whole number, found str '10'"),
        (lambda v: chosen(v).predicted_far(float("nan")), "n_new_classes: expected a whole number, found float nan"),
        (lambda v: chosen(v).predicted_tar([10]), "n_new_classes: expected a whole number, found list"),
        (lambda v: operating_curves(v, thresholds=[0.5]).at("0.5"), "threshold: expected a number, found str '0.5'"),
        (lambda v: statistics.fit_whitening(v.query).apply([["a"]]), "embeddings: expected an array of numbers"),
        (
            lambda v: statistics.start_drift(np.ones(200), rng=np.random.default_rng(0)).drifted("0.05"),
            "alpha: expected a number, found str '0.05'",
        ),
        (
            lambda v: statistics.fit_best_calibrator(v, prevalence=0.1, rng=np.random.default_rng(0)).probability("x"),
            "scores must be numbers: could not convert",
        ),
        (lambda v: OpisOptions(far_low="0.01"), "far_low: expected a number, found str"),
    ],
)
def test_wrong_arguments_are_named(call: Any, message: str, family) -> None:
    vectors = labelled(*family(np.random.default_rng(3), n_classes=12, n_images=3, dimension=8))
    with pytest.raises((InvalidInput, InvalidEmbeddings), match=message):
        call(vectors)


@pytest.mark.parametrize("wrong", [None, object(), "x", b"x", 2.5, [None], {}, float("nan"), np.array(["a"])])
@pytest.mark.parametrize("name", [name for name in statistics.__all__ if name[0].islower()])
def test_no_public_function_ends_in_a_raw_error(name: str, wrong: object) -> None:
    """Every argument that has no default is given the same nonsense."""
    for arguments in ((), (wrong,), (wrong, wrong), (wrong,) * 9):
        for named in ({}, {"rng": np.random.default_rng(0)}, {"rng": wrong}):
            try:
                getattr(statistics, name)(*arguments, **named)
            except RetrievalError:
                continue


def test_right_arguments_pass_unchanged() -> None:
    """A document of any values, a mapping of weights, numbers of NumPy and an array of texts."""
    calibrator = statistics.PlattCalibrator(2.0, -1.0, 0.5, 10, 10)
    assert statistics.calibrator_from_json(calibrator.to_json()) == calibrator
    options = OpisOptions(weighting={"a": 1, "b": np.float64(2)}, distance_range=(0.5, 1), far_low=np.float32(0.5))
    assert (options.weighting, options.distance_range) == ({"a": 1, "b": 2.0}, (0.5, 1))
    assert wilson_interval(np.int64(5), 10) == wilson_interval(5, 10)
    assert labelled(np.eye(3, dtype=np.float32), np.array(["a", "b", "a"])).classes == ("a", "b")  # type: ignore[arg-type]
