"""Seeds and classes combined, against textbook tests."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from retrieval.consistency import compare_consistency, labelled
from tests.training.experiment.test_figures import embedded
from training.config import TrainingConfig
from training.experiment import Experiment, ExperimentResult, Measured, ScoreConfig, measure, summarise, to_json
from training.experiment.plan import Arm, ExperimentData
from training.experiment.plots import write_plots
from training.experiment.report import write_report
from training.experiment.summary import combine_p_values, over_seeds

DATA = ExperimentData(train="", validation="", cohort="", calibration="", test="")


def arm(name: str, against: str | None = None) -> Arm:
    return Arm(name=name, trained_by=name, against=against, training=TrainingConfig(), score=ScoreConfig())


@pytest.fixture(scope="module")
def results() -> dict[str, dict[int, Measured]]:
    """Two arms, three seeds; the second has classes that are more alike."""
    return {
        name: {
            seed: measure(
                {part: embedded(seed if part == "test" else 90, spread=spread) for part in ("cohort", "test")}
                | {"calibration": embedded(91, spread=spread)},
                ScoreConfig(),
                far_target=0.02,
                training_s=10.0 + seed,
            )
            for seed in (0, 1, 2)
        }
        for name, spread in (("wide", 0.9), ("narrow", 0.3))
    }


@pytest.fixture(scope="module")
def result(results: dict[str, dict[int, Measured]]) -> ExperimentResult:
    arms = (arm("wide"), arm("narrow", "wide"))
    plan = Experiment(name="tried", root=Path(), data=DATA, seeds=(0, 1, 2), arms=arms, far_target=0.02)
    return ExperimentResult(experiment=plan, arms=tuple(summarise(arms, results)), failures=())


def test_paired_over_seeds(result: ExperimentResult, results: dict[str, dict[int, Measured]]) -> None:
    wide, narrow = ([results[name][seed].figures.r_at_1 for seed in (0, 1, 2)] for name in ("wide", "narrow"))
    found = result.arms[1].differences["r_at_1"]
    expected = stats.ttest_rel(narrow, wide)
    assert (found.mean, found.p_value) == (
        pytest.approx(np.mean(narrow) - np.mean(wide)),
        pytest.approx(expected.pvalue),
    )
    assert found.interval is not None
    assert (found.interval.low, found.interval.high) == pytest.approx(tuple(expected.confidence_interval()))
    assert found.relative is None
    assert result.arms[0].differences == {}


def test_paired_over_classes(result: ExperimentResult) -> None:
    """Seed by seed as `compare_consistency` has it, then combined."""
    single = [
        compare_consistency(
            labelled(embedded(seed, spread=0.3).embeddings, embedded(seed).labels.tolist()),
            labelled(embedded(seed, spread=0.9).embeddings, embedded(seed).labels.tolist()),
            rng=np.random.default_rng(0),
        )
        for seed in (0, 1, 2)
    ]
    found = result.arms[1].differences["opis_log_far"]
    assert found.mean == pytest.approx(np.mean([one.difference for one in single]))
    combined = combine_p_values([one.difference for one in single], [one.p_value for one in single])
    assert found.class_p_value == pytest.approx(combined, abs=0.05)  # two bootstraps of one hypothesis
    assert found.relative == pytest.approx(np.mean([one.ratio - 1 for one in single if one.ratio]))


def test_nothing_is_divided_by_what_may_be_zero(
    result: ExperimentResult, results: dict[str, dict[int, Measured]]
) -> None:
    """One seed whose classes may be alike leaves no relative change, and the difference as it was."""
    assert all("opis_log_far" in found.above_zero for found in results["wide"].values())
    unsure = {**results, "wide": {**results["wide"], 1: replace(results["wide"][1], above_zero=frozenset())}}
    narrow = summarise((arm("wide"), arm("narrow", "wide")), unsure)[1].differences["opis_log_far"]
    before = result.arms[1].differences["opis_log_far"]
    assert (narrow.mean, narrow.p_value) == (before.mean, before.p_value)
    assert before.relative is not None
    assert narrow.relative is narrow.relative_interval is None


def test_combined_p_values() -> None:
    """Seeds that agree keep their evidence, seeds that disagree lose it, and nothing exceeds 1."""
    assert combine_p_values([-1, -1, -1], [0.01] * 3) == pytest.approx(0.02)
    assert combine_p_values([-2, 1, -2], [0.01, 0.01, 0.01]) == 1.0
    assert combine_p_values([0, 0], [1.0, 1.0]) == 1.0


def test_false_alarms_of_combined_p_values() -> None:
    """With identical and with independent seeds, at most 5 % false alarms if the arms do not differ."""
    rng = np.random.default_rng(0)
    for shared in (0.0, 1.0):
        z = shared * rng.normal(size=(4000, 1)) + np.sqrt(1 - shared**2) * rng.normal(size=(4000, 3))
        p = 2 * stats.norm.sf(np.abs(z))
        assert (
            np.mean([combine_p_values(list(row), list(values)) <= 0.05 for row, values in zip(z, p, strict=True)])
            < 0.055
        )


def test_few_seeds_have_no_interval() -> None:
    assert over_seeds([1.0, 3.0]) == (2.0, None)


def test_tables_agree(result: ExperimentResult, tmp_path: Path) -> None:
    """Text, CSV and JSON say the same; JSON has no NaN."""
    write_report(result, tmp_path)
    document = json.loads((tmp_path / "table.json").read_text())
    assert document == json.loads(json.dumps(to_json(result)))
    mean = document["arms"][1]["figures"]["opis_log_far"]["mean"]
    rows = list(csv.DictReader((tmp_path / "table.csv").read_text().splitlines()))
    (row,) = [row for row in rows if (row["arm"], row["figure"]) == ("narrow", "opis_log_far")]
    assert float(row["mean"]) == mean
    assert f"{1e3 * mean:.2f}" in (tmp_path / "table.md").read_text()
    runs = list(csv.DictReader((tmp_path / "runs.csv").read_text().splitlines()))
    assert len(runs) == 6
    assert np.mean([float(run["opis_log_far"]) for run in runs if run["arm"] == "narrow"]) == pytest.approx(mean)


@pytest.mark.slow
def test_plots_are_written(result: ExperimentResult, tmp_path: Path) -> None:
    paths = write_plots(result.arms, tmp_path)
    assert [path.name for path in paths] == ["front.png", "opis.png"]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in paths)


@pytest.mark.slow
def test_what_cannot_be_divided_is_no_plot_of_changes(result: ExperimentResult, tmp_path: Path) -> None:
    wide, narrow = result.arms
    unsure = {name: replace(found, relative=None, relative_interval=None) for name, found in narrow.differences.items()}
    paths = write_plots([wide, replace(narrow, differences=unsure)], tmp_path)
    assert [path.name for path in paths] == ["front.png"]
    half = narrow.differences | {"opis_deployed": unsure["opis_deployed"]}
    assert len(write_plots([wide, replace(narrow, differences=half)], tmp_path)) == 2
