"""Manifests without images, for a program that only pretends to train, and an experiment on them."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from training.experiment import Experiment, parse_experiment

PRETENCE = (sys.executable, str(Path(__file__).with_name("pretend_training.py")))
SIZES = {"train": 8, "cohort": 20, "calibration": 20, "test": 24}


@pytest.fixture(scope="session")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a manifest for each part: classes of five images that are not there."""
    folder = tmp_path_factory.mktemp("manifests")
    for number, (part, n_classes) in enumerate(SIZES.items()):
        labels = [f"class_{100 * number + row:03d}" for row in range(n_classes)]
        rows = [f"{label}-{image},nowhere.png,{label}" for label in labels for image in range(5)]
        (folder / f"{part}.csv").write_text("\n".join(["id,uri,label", *rows]) + "\n")
    return folder


@pytest.fixture
def described() -> dict[str, Any]:
    """Two arms that train, one that uses the runs of the first; two seeds."""
    return {
        "seeds": [0, 1],
        "far_target": 0.01,
        "data": {
            "train": "train.csv",
            "validation": "cohort.csv",
            "cohort": "cohort.csv",
            "calibration": "calibration.csv",
            "test": "test.csv",
        },
        "common": {"schedule": {"steps": 3, "head_steps": 2, "warmup_steps": 1}},
        "arms": [
            {"name": "base", "config": {"loss": {"tcm": {"positive_weight": 0, "negative_weight": 0}}}},
            {"name": "base+tcm", "config": {"loss": {"tcm": {"positive_weight": 2}}}},
            {"name": "base+cohort", "model": "base", "score": {"kind": "cohort", "k": 5}},
        ],
    }


@pytest.fixture
def parsed(root: Path) -> Callable[[dict[str, Any]], Experiment]:
    return lambda values: parse_experiment(values, name="tried", folder=root, root=root)
