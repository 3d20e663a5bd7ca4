"""The optimiser, and how its learning rates change over the steps."""

import math
from collections.abc import Collection

import torch

from training.config import ScheduleConfig
from training.losses import TrainingLoss
from training.model import Embedder, parameter_groups

PARTS = ("backbone", "head", "loss")


def learning_rate_factor(step: int, schedule: ScheduleConfig) -> float:
    """Return the share of the peak learning rate at `step` (from 0): linear in the warm-up, then `schedule.decay`.

    >>> [round(learning_rate_factor(step, ScheduleConfig(steps=6, warmup_steps=2)), 2) for step in range(6)]
    [0.5, 1.0, 1.0, 0.85, 0.5, 0.15]
    >>> stairs = ScheduleConfig(steps=4, warmup_steps=0, decay="step")
    >>> [round(learning_rate_factor(step, stairs), 2) for step in range(4)]
    [1.0, 1.0, 0.1, 0.01]
    """
    if step < schedule.warmup_steps:
        return (step + 1) / schedule.warmup_steps
    if schedule.decay == "cosine":
        done = (step - schedule.warmup_steps) / max(schedule.steps - schedule.warmup_steps, 1)
        return 0.5 * (1 + math.cos(math.pi * done))
    if schedule.decay == "step":
        return schedule.step_factor ** sum(step >= share * schedule.steps for share in schedule.step_at)
    return 1.0


def create_optimizer(
    embedder: Embedder, loss: TrainingLoss, schedule: ScheduleConfig, *, parts: Collection[str] = PARTS
) -> torch.optim.Optimizer:
    """Create AdamW for these parts; its groups keep their peak learning rate in `peak` and their part in `part`.

    parts: of PARTS; "head" includes the pooling.
    """
    backbone = set(embedder.backbone.parameters())
    groups = [
        {**group, "part": "backbone" if group["params"][0] in backbone else "head"}
        for group in parameter_groups(embedder, schedule)
    ]
    # Only the direction of a proxy matters: decaying its length would only change how fast it turns.
    rate = schedule.loss_learning_rate
    owned = {"part": "loss", "params": list(loss.parameters()), "lr": rate, "peak": rate, "weight_decay": 0.0}
    return torch.optim.AdamW([group for group in (*groups, owned) if group["part"] in parts])


def set_learning_rates(optimizer: torch.optim.Optimizer, step: int, schedule: ScheduleConfig) -> dict[str, float]:
    """Set the learning rate of each group for `step`; return the highest of each part."""
    factor = learning_rate_factor(step, schedule)
    highest: dict[str, float] = {}
    for group in optimizer.param_groups:
        group["lr"] = group["peak"] * factor
        highest[group["part"]] = max(group["lr"], highest.get(group["part"], 0.0))
    return highest
