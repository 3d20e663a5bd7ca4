"""Configurations: only differences, nothing unknown, all problems at once."""

from pathlib import Path

import pytest

from retrieval.errors import InvalidSettings
from training.config import CONFIGS, TrainingConfig, load_config, parse_config, to_json


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
        ("[input]\nresize = 64\ncrop = 65", "input.crop is at most input.resize, found 65 and 64"),
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


def test_all_problems_come_at_once() -> None:
    with pytest.raises(InvalidSettings, match=r"unknown key a; unknown key loss\.b"):
        parse_config({"a": 1, "loss": {"b": 2}}, source="test")


def test_an_unknown_name_is_answered_with_the_known_ones() -> None:
    with pytest.raises(InvalidSettings, match=r"default, emoji; did you mean emoji\?"):
        load_config("emojis")
