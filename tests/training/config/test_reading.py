"""Configurations: only differences, nothing unknown, all problems at once."""

import re
import tomllib
from dataclasses import fields
from pathlib import Path

import pytest
from pydantic import TypeAdapter

from retrieval.errors import InvalidSettings
from training import config as sections
from training.config import CONFIGS, TrainingConfig, load_config, parse_config, to_json
from training.experiment.scores import ScoreConfig


def test_a_file_changes_only_what_it_names(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text("seed = 7\n[schedule]\nsteps = 3\n")
    config = load_config(str(path))
    assert (config.seed, config.schedule.steps) == (7, 3)
    assert config.model == TrainingConfig().model
    assert config.schedule.images == TrainingConfig().schedule.images


@pytest.mark.parametrize("name", [path.stem for path in CONFIGS.glob("*.toml")])
def test_every_packaged_configuration_loads_and_survives_json(name: str) -> None:
    config = load_config(name)
    assert parse_config(to_json(config), source="json") == config


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("sed = 1", "unknown key sed; did you mean seed"),
        ("[schedule]\nstep = 3", "unknown key schedule.step; did you mean steps"),
        ("[schedule]\nsteps = 0", "schedule.steps"),
        ("[schedule]\nsteps = 'many'", "schedule.steps"),
        ("[input]\nresize = 64\ncrop = 65", "input.crop must be at most input.resize, found 65 and 64"),
        ("[schedule]\nclasses = 1", "schedule.classes"),
        ("[loop]\npatience = 3", r"loop\.patience needs loop\.evaluate_every, found 3 and 0"),
        ("[model]\nfrozen = ['stem']\nlora.rank = 2", r"model\.frozen has no effect with model\.lora"),
        ("[model]\nbatch_norm = 'trained'\nlora.rank = 2", r"model\.batch_norm .* no effect with model\.lora"),
        ("[loss]\nbase = []\ntcm = { positive_weight = 0, negative_weight = 0 }", "there is nothing to minimise"),
        ("[[loss.base]]\nweight = 0\n[loss.tcm]\npositive_weight = 0\nnegative_weight = 0", "nothing to minimise"),
        ("[loss.tcm]\npositive_margin = 0.4", "positive_margin must be above .*negative_margin, found 0.4 and 0.5"),
        ("[loss.tcm]\nmargins = 'schedule'\nnegative_margin = 0.9", "found 0.9 and 0.9"),
        ("[loss.tcm]\nscore = 'cohort'", 'score = "cohort" needs loss.tcm.margins = "quantiles", found "fixed"'),
        ("[loss.tcm]\nscore = 'cohort'\nmargins = 'schedule'", 'found "schedule": positive_margin and'),
        (
            "[loss.tcm]\nscore = 'cohort'\nmargins = 'quantiles'\ncohort = 39",
            r"loss\.tcm\.cohort: expected at least 4 times loss\.tcm\.cohort_k, which is 10, found 39",
        ),
        ("[[loss.base]]\nnmae = 'SupConLoss'", r"unknown key loss\.base\.0\.nmae; did you mean name"),
        ("model = 3", "model"),
        ("seed = ", "is not TOML"),
    ],
)
def test_a_mistake_is_named(tmp_path: Path, text: str, expected: str) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(text)
    with pytest.raises(InvalidSettings, match=expected):
        load_config(str(path))


@pytest.mark.parametrize(
    "text",
    [
        "[loss.tcm]\npositive_margin = 0.4\nmargins = 'quantiles'",  # used only where a batch has no such pair
        "[loss.tcm]\npositive_margin = 0.4\nnegative_weight = 0",
        "[loss.tcm]\nscore = 'cohort'\nmargins = 'quantiles'\ncohort = 40",
        "[loss.tcm]\ncohort = 1",  # used only by the cohort score
        "[loss]\nbase = []",
        "[loss.tcm]\npositive_weight = 0\nnegative_weight = 0",
        "[model]\nlora.rank = 2",
    ],
)
def test_what_only_looks_like_a_contradiction_is_not_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(text)
    load_config(str(path))


def test_all_problems_come_at_once() -> None:
    with pytest.raises(InvalidSettings, match=r"unknown key a; unknown key loss\.b"):
        parse_config({"a": 1, "loss": {"b": 2}}, source="test")
    with pytest.raises(InvalidSettings, match=r"input\.crop must be .*; loop\.patience needs"):
        parse_config({"input": {"crop": 300}, "loop": {"patience": 1}}, source="test")


def test_an_unknown_name_is_answered_with_the_known_ones() -> None:
    with pytest.raises(InvalidSettings, match=r"default, emoji; did you mean emoji\?"):
        load_config("emojis")


def test_the_examples_of_the_docs_are_configurations() -> None:
    page = Path(__file__).parents[3] / "docs" / "train.md"
    examples = re.findall(r"```toml\n(.*?)```", page.read_text(), re.DOTALL)
    whole, cohort, score = (tomllib.loads(example) for example in examples)
    whole, cohort = (parse_config(example, source="docs/train.md") for example in (whole, cohort))
    assert whole.loss.base[0].name == "MultiSimilarityLoss"
    assert (cohort.loss.tcm.score, cohort.loss.tcm.margins) == ("cohort", "quantiles")
    assert TypeAdapter(ScoreConfig).validate_python(score["score"]).kind == "catalogue"


@pytest.mark.parametrize("section", sections.__all__)
def test_every_key_is_documented(section: str) -> None:
    kind = getattr(sections, section)
    if section.endswith("Config") and section != "TrainingConfig":
        assert [field.name for field in fields(kind) if field.name not in kind.__doc__] == []
