"""The allowed content of an experiment file, and the errors for other content."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from retrieval.errors import InvalidSettings
from training.experiment import EXPERIMENTS, Experiment, load_experiment

Parse = Callable[[dict[str, Any]], Experiment]


def test_arms_differ_from_the_common_configuration(described: dict[str, Any], parsed: Parse) -> None:
    """Overrides are merged key by key, `like` goes on from another arm, `model` takes another arm's runs."""
    described["arms"].append({"name": "late tcm", "like": "base+tcm", "config": {"loss": {"tcm": {"warmup_steps": 9}}}})
    found = parsed(described)
    base, tcm, cohort, late = found.arms
    assert (base.training.schedule.steps, base.training.schedule.classes) == (3, 32)
    assert (base.training.loss.tcm.positive_weight, tcm.training.loss.tcm.positive_weight) == (0, 2)
    assert (late.training.loss.tcm.positive_weight, late.training.loss.tcm.warmup_steps) == (2, 9)
    assert (cohort.trained_by, cohort.training, cohort.trains) == ("base", base.training, False)
    assert [arm.against for arm in found.arms] == [None, "base", "base", "base"]
    assert found.trained_arms == (base, tcm, late)


def test_an_arm_like_one_that_uses_the_runs_of_another(described: dict[str, Any], parsed: Parse) -> None:
    """It goes on from the configuration that those runs were trained with."""
    described["arms"] += [
        {"name": "scored tcm", "model": "base+tcm", "score": {"kind": "cohort"}},
        {"name": "longer", "like": "scored tcm", "config": {"loss": {"tcm": {"warmup_steps": 9}}}},
    ]
    *_, longer = parsed(described).arms
    assert (longer.training.loss.tcm.positive_weight, longer.training.loss.tcm.warmup_steps) == (2, 9)


def test_the_shipped_experiment_trains_tcm_on_the_cohort_score() -> None:
    """With the settings of the arm with adaptive margins, judged by the cosine and by its own score."""
    arms = {arm.name: arm for arm in load_experiment("emoji_tcm", root=Path()).arms}
    adaptive, trained, judged = (
        arms[f"softmax+{name}"] for name in ("adaptive tcm", "tcm on cohort", "tcm on cohort+cohort")
    )
    expected = replace(adaptive.training.loss.tcm, score="cohort")
    assert trained.training == replace(adaptive.training, loss=replace(adaptive.training.loss, tcm=expected))
    assert (judged.trained_by, judged.trains, judged.score) == (trained.name, False, arms["softmax+cohort"].score)


def test_data_of_a_seed(described: dict[str, Any], parsed: Parse, tmp_path: Path) -> None:
    """{seed} is the seed, relative paths count from the root, URLs stay."""
    described["data"] |= {"train": "split-{seed}/train.csv", "test": "s3://bucket/{seed}.csv"}
    data = parsed(described).data.of_seed(7, tmp_path)
    assert (data.train, data.test) == (str(tmp_path / "split-7/train.csv"), "s3://bucket/7.csv")


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"arms": [{"name": "a", "config": {"loss": {"tmc": {}}}}]}, "arm 'a': unknown key loss.tmc; did you mean tcm"),
        ({"arms": [{"name": "a", "config": {"schedule": {"steps": 0}}}]}, "arm 'a': schedule.steps"),
        ({"arms": [{"name": "a", "scores": {}}]}, "unknown key arms.0.scores; did you mean score"),
        ({"arms": [{"name": "a", "score": {"kind": "cohrot"}}]}, "arms.0.score.kind"),
        ({"arms": [{"name": "a", "score": {"kind": "isotonic", "fitted_on": "train"}}]}, "only a score with a cohort"),
        ({"arms": []}, "arms"),
        ({"arms": [{"name": "a/b"}]}, "found 'a/b'"),
        ({"arms": [{"name": "a"}, {"name": "A"}]}, "two arms are named 'A'"),
        ({"arms": [{"name": "table.md"}]}, "ends with none of .md"),
        ({"arms": [{"name": ".."}]}, "found '..'"),
        ({"arms": [{"name": "one"}, {"name": "b", "like": "on"}]}, "like names an earlier arm, found 'on'; did you"),
        ({"arms": [{"name": "a", "model": "b"}, {"name": "b"}]}, "model names an earlier arm, found 'b'"),
        ({"arms": [{"name": "a"}, {"name": "b", "model": "a", "config": {"seed": 1}}]}, "have no effect"),
        ({"seeds": [1, 1]}, "seeds must differ from each other"),
        ({"common": {"seed": 3}}, "seed is set by seeds"),
        ({"data": {"train": "a"}}, "data.validation is missing"),
        ({"config": "emojy"}, "did you mean emoji"),
        ({"far_target": 0.6}, "far_target"),
    ],
)
def test_what_is_wrong_is_named(
    change: dict[str, Any], expected: str, described: dict[str, Any], parsed: Parse
) -> None:
    with pytest.raises(InvalidSettings, match=expected):
        parsed(described | change)


def test_unequal_budgets_are_refused_unless_free(described: dict[str, Any], parsed: Parse) -> None:
    described["arms"][1]["config"]["schedule"] = {"steps": 4}
    with pytest.raises(InvalidSettings, match="arm 'base\\+tcm' takes 4 steps of 128 images after 2 of the head, arm"):
        parsed(described)
    assert len(parsed(described | {"budget": "free"}).arms) == 3


def test_shipped_experiments_can_be_read() -> None:
    names = [path.stem for path in EXPERIMENTS.glob("*.toml")]
    assert names
    for name in names:
        assert len(load_experiment(name, root=Path()).trained_arms) > 1
    with pytest.raises(InvalidSettings, match="does not exist"):
        load_experiment("none", root=Path())


COHORT, CATALOGUE = {"kind": "cohort"}, {"kind": "catalogue", "fitted_on": "train"}


def test_scores_of_searches(described: dict[str, Any], parsed: Parse) -> None:
    described |= {"compare": "searches"}
    described["arms"] += [
        {"name": "catalogue", "model": "base", "score": CATALOGUE | {"k": 7, "whitened": True}},
        {"name": "class means", "model": "base", "score": {"kind": "catalogue", "base": "cosine"}},
    ]
    found = parsed(described)
    assert found.compare == "searches"
    assert [arm.score.base for arm in found.arms[-2:]] == ["cohort", "cosine"]


@pytest.mark.parametrize(
    ("compare", "score", "expected"),
    [
        ("pairs", CATALOGUE, "arm 'a': a catalogue score needs a labelled gallery: set compare = \"searches\""),
        ("searches", {"kind": "catalogue"}, "arm 'a': the class terms are chosen on the part cohort"),
        ("searches", {"kind": "isotonic"}, "arm 'a': 'isotonic' is computed for one set of images"),
        ("searches", {"kind": "cluster_offsets"}, "'cluster_offsets' is computed for one set"),
        ("searches", {"kind": "cluster_isotonic"}, "'cluster_isotonic' is computed for one set"),
        ("rounds", COHORT, "compare: Input should be 'pairs' or 'searches', found 'rounds'"),
        ("searches", CATALOGUE | {"base": "isotonic"}, "score.base: Input should be 'cosine' or 'cohort'"),
    ],
)
def test_scores_that_do_not_fit_what_is_compared(
    compare: str, score: dict[str, Any], expected: str, described: dict[str, Any], parsed: Parse
) -> None:
    with pytest.raises(InvalidSettings, match=expected):
        parsed(described | {"compare": compare, "arms": [{"name": "a", "score": score}]})


def test_the_shipped_searches_compare_four_scores_of_three_models() -> None:
    """Every trained model under the cosine, the cohort score, and a catalogue score over either."""
    searches, pairs = (load_experiment(name, root=Path()) for name in ("emoji_catalogue", "emoji_tcm"))
    assert (searches.compare, searches.far_target, len(searches.arms)) == ("searches", 1e-3, 12)
    scores = {arm.name: [one.score for one in searches.arms if one.trained_by == arm.name] for arm in searches.arms}
    trained = {arm.name: arm.training for arm in searches.trained_arms}
    assert [len(scores[name]) for name in trained] == [4, 4, 4]
    assert len({tuple(scores[name]) for name in trained}) == 1
    assert trained == {arm.name: arm.training for arm in pairs.trained_arms if arm.name in trained}
