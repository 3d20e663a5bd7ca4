"""What the tests of the loop and the processes that they start share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from training.loop import CHECKPOINT, Observers, StepReport

SMALL: dict[str, Any] = {
    "input": {"resize": 32, "crop": 32},
    "model": {"backbone": "timm/test_resnet", "weights": "random", "dimension": 8},
    "augmentation": {"flip": 0.0},
    "schedule": {"steps": 4, "head_steps": 3, "classes": 4, "images": 2, "warmup_steps": 1},
    "loop": {"checkpoint_every": 2},
}


class Killed(Exception):
    """Thrown into the loop by a test."""


def kill_at(step: int) -> Observers:
    def observe(report: StepReport) -> None:
        if report.step == step:
            raise Killed(f"killed at step {step}")

    return Observers(step=observe)


def weights(run: Path) -> dict[str, torch.Tensor]:
    """All tensors of a run's checkpoint."""
    saved = torch.load(run / CHECKPOINT, weights_only=True)
    return _tensors(saved, "")


def _tensors(value: Any, prefix: str) -> dict[str, torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return {prefix: value}
    parts: dict[str, torch.Tensor] = {}
    if isinstance(value, dict | list):
        for key, part in value.items() if isinstance(value, dict) else enumerate(value):
            parts |= _tensors(part, f"{prefix}.{key}")
    return parts


def assert_same_weights(first: Path, second: Path) -> None:
    """Every tensor of both checkpoints, of model, loss, optimiser and means, is equal to the last bit."""
    left, right = weights(first), weights(second)
    assert left.keys() == right.keys()
    for key, value in left.items():
        torch.testing.assert_close(value, right[key], rtol=0, atol=0, equal_nan=True, msg=key)
