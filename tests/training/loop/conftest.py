"""A network without pretrained weights, small enough that a run takes a second, and runs with it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from retrieval.contract.manifest import Item
from tests.training.loop.small import SMALL
from training.config import TrainingConfig, parse_config
from training.evaluation import Evaluation
from training.loop import SILENT, Observers, train_embedder

TrainSmall = Callable[..., Evaluation]


@pytest.fixture(scope="session")
def small_config() -> TrainingConfig:
    return parse_config(SMALL, source="test")


@pytest.fixture(scope="session")
def everything_config() -> TrainingConfig:
    """All that the loop can do on one CPU, at once, with a loss that keeps a state."""
    loop = {
        "precision": "bf16",
        "chunk_images": 3,
        "accumulate": 2,
        "clip_norm": 1.0,
        "ema_decay": 0.9,
        "evaluate_every": 2,
        "checkpoint_every": 2,
    }
    tcm = {"margins": "quantiles", "memory": 12, "warmup_steps": 3, "score": "cohort", "cohort": 40, "cohort_k": 3}
    return parse_config({**SMALL, "loop": loop, "loss": {"tcm": tcm}}, source="test")


@pytest.fixture(scope="session")
def train_small(training_items: list[Item], held_out_items: list[Item]) -> TrainSmall:
    """Train on the drawn classes: configuration and folder, then the options of `train`."""

    def run(config: TrainingConfig, folder: Path, *, observers: Observers = SILENT, **options: Any) -> Evaluation:
        items = options.pop("items", training_items)
        return train_embedder(
            config, items, options.pop("held_out", held_out_items), folder, observers=observers, **options
        )

    return run


@pytest.fixture(scope="session")
def small_run(tmp_path_factory: pytest.TempPathFactory, small_config: TrainingConfig, train_small: TrainSmall) -> Path:
    """The folder of a finished run; read only."""
    folder = tmp_path_factory.mktemp("small") / "run"
    train_small(small_config, folder)
    return folder
