"""Pictures and a configuration to draw them with."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from retrieval.contract.manifest import Item, read_manifest
from retrieval.contract.preprocessing import Preprocessing
from tests.pictures import truncated_jpeg, write_class_folders
from training.config import AugmentationConfig, TrainingConfig, parse_config
from training.data import TrainingImages, open_training_images

PREPROCESSING = Preprocessing(resize=24, crop=20, mean=(127.0, 120.0, 110.0), std=(60.0, 58.0, 57.0))
UNCHANGED = AugmentationConfig(
    zoom=0, stretch=0, rotate_degrees=0, shift=0, flip=0, grey=0, mix_colours=0, brightness=0
)


def ignore(done: int, total: int) -> None: ...


def configured(**sections: Any) -> TrainingConfig:
    """Six steps of 4 x 3 images, no change, unless said otherwise."""
    config = parse_config({"schedule": {"steps": 6, "classes": 4, "images": 3, "warmup_steps": 1}}, source="test")
    config = replace(config, augmentation=UNCHANGED)
    for name, values in sections.items():
        config = replace(config, **{name: replace(getattr(config, name), **values)})
    return config


def opened(items: list[Item], tmp_path: Path, config: TrainingConfig | None = None) -> TrainingImages:
    data = (config or configured()).data
    return open_training_images(items, PREPROCESSING, data, cache=tmp_path, progress=ignore)


@pytest.fixture
def items_with_damage(tmp_path: Path) -> list[Item]:
    """Three classes of four pictures, of which one of the second class is truncated."""
    folder = write_class_folders(tmp_path / "damaged", n_classes=3, n_images=4)
    (folder / "class_001" / "2.png").write_bytes(truncated_jpeg())
    return read_manifest(str(folder))
