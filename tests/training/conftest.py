"""A small drawn data set, and a configuration that trains on it in seconds."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from retrieval.contract.manifest import Item, read_manifest
from tests.pictures import write_class_folders
from training.cli import main
from training.config import TrainingConfig, parse_config
from training.loop import FinishedRun, load_finished, train_embedder

TINY: dict[str, Any] = {
    "input": {"resize": 32, "crop": 32},
    "model": {"dimension": 16, "frozen": ["stem", "blocks.0"]},
    "augmentation": {"flip": 0.0},
    "schedule": {"steps": 4, "head_steps": 20, "classes": 4, "images": 2, "warmup_steps": 1},
    "loop": {"checkpoint_every": 2},
}


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """Tiny tensors are slower on two threads than on one."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny_config() -> TrainingConfig:
    return parse_config(TINY, source="test")


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Eight classes to train on and fourteen others, five pictures each, as folders."""
    root = tmp_path_factory.mktemp("pictures")
    return (
        write_class_folders(root / "train", n_classes=8, n_images=5),
        write_class_folders(root / "held-out", n_classes=14, n_images=5, first_class=100),
    )


@pytest.fixture(scope="session")
def training_items(folders: tuple[Path, Path]) -> list[Item]:
    return read_manifest(str(folders[0]))


@pytest.fixture(scope="session")
def held_out_items(folders: tuple[Path, Path]) -> list[Item]:
    return read_manifest(str(folders[1]))


@pytest.fixture(scope="session")
def run(
    tmp_path_factory: pytest.TempPathFactory,
    tiny_config: TrainingConfig,
    training_items: list[Item],
    held_out_items: list[Item],
) -> Path:
    """The folder of a finished run; read only."""
    folder = tmp_path_factory.mktemp("runs") / "finished"
    train_embedder(tiny_config, training_items, held_out_items, folder)
    return folder


@pytest.fixture(scope="session")
def finished(run: Path) -> FinishedRun:
    return load_finished(run)


@pytest.fixture
def training(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """Run the command line in this process: exit code, stdout, stderr without line breaks."""

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["training", *map(str, arguments)])
        with pytest.raises(SystemExit, match=r"^(\d+|None)?$") as left:
            main()
        captured = capsys.readouterr()
        return int(left.value.code or 0), captured.out, " ".join(captured.err.split())

    monkeypatch.setenv("OMP_WAIT_POLICY", "PASSIVE")
    return run
