"""The state that training changes from step to step, and that a checkpoint saves and restores.

It includes the running mean of the weights, which is often better, and steadier, than the weights of the last step.
Random choices are functions of seed and step, so that no random state has to be saved.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from retrieval.errors import InvalidInput
from training.loop.stopping import Stopping
from training.losses import TrainingLoss
from training.model import Embedder

Tensors = tuple[Tensor, ...] | list[Tensor]


@dataclass(slots=True, kw_only=True)
class TrainingState:
    """The state of a run. step: steps taken; scaler: for float16 gradients; average: running mean of the weights."""

    embedder: Embedder
    loss: TrainingLoss
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler | None = None
    average: AveragedModel | None = None
    stopping: Stopping = field(default_factory=Stopping)
    step: int = 0

    @property
    def evaluated(self) -> Embedder:
        """Return the embedder to evaluate: the running mean, if there is one."""
        if self.average is None:
            return self.embedder
        return cast(Embedder, self.average.module)

    def state_dict(self) -> dict[str, Any]:
        """Return the whole state, and in "final" the weights to evaluate and export."""
        final = self.stopping.weights or self.evaluated.state_dict()
        return {
            "step": self.step,
            "embedder": self.embedder.state_dict(),
            "loss": self.loss.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": None if self.scaler is None else self.scaler.state_dict(),
            "average": None if self.average is None else self.average.state_dict(),
            "stopping": self.stopping.state_dict(),
            "final": final,
        }

    def load_state_dict(self, saved: Mapping[str, Any], path: Path) -> None:
        """Restore a saved state, read from `path`. Raises InvalidInput if the weights do not fit."""
        load_weights(self.embedder, saved["embedder"], path)
        load_weights(self.loss, saved["loss"], path)
        self.optimizer.load_state_dict(saved["optimizer"])
        if self.scaler is not None:
            self.scaler.load_state_dict(saved["scaler"])
        if self.average is not None:
            load_weights(self.average, saved["average"], path)
        self.stopping.load_state_dict(saved["stopping"])
        self.step = saved["step"]


def average_weights(embedder: Embedder, *, decay: float) -> AveragedModel:
    """Create the exponential running mean of the embedder's weights, with this decay per update.

    Update n (from 1) uses the decay min(decay, (1 + n) / (10 + n)); otherwise the mean of a short run would stay close
    to the initial weights. Running statistics of batch norms are also averaged.

    Source: the schedule of TensorFlow's ExponentialMovingAverage with num_updates.
    """

    def follow(means: Tensors, weights: Tensors, n_averaged: Tensor | int) -> None:
        """Update all tensors of one type at once, because a call for each tensor takes longer than the sums."""
        if not weights[0].is_floating_point():
            torch._foreach_copy_(means, weights)
            return
        n = torch.as_tensor(n_averaged, device=weights[0].device, dtype=weights[0].dtype)
        differences = torch._foreach_sub(weights, means)  # exactly 0 for frozen weights
        torch._foreach_mul_(differences, 1 - torch.clamp((1 + n) / (10 + n), max=decay))
        torch._foreach_add_(means, differences)

    # The first update copies the weights; it is made here, to copy the weights before the first step.
    average = AveragedModel(embedder, multi_avg_fn=follow, use_buffers=True)
    average.update_parameters(embedder)
    return average


def load_weights(module: nn.Module, saved: Mapping[str, Any], path: Path) -> None:
    """Load the weights saved in `path` into the module. Raises InvalidInput, with reasons, if they do not fit."""
    wanted = module.state_dict()
    problems = [f"{key} is missing" for key in wanted if key not in saved]
    problems += [f"{key} is unknown" for key in saved if key not in wanted]
    problems += [
        f"{key} has the shape {list(saved[key].shape)}, expected {list(value.shape)}"
        for key, value in wanted.items()
        if isinstance(value, Tensor) and key in saved and saved[key].shape != value.shape  # others are extra state
    ]
    if problems:
        more = f"; and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise InvalidInput(
            f"{path} is of another architecture: {'; '.join(problems[:3])}{more}. Use the versions of the libraries "
            "that it was trained with, or train in a new folder"
        )
    module.load_state_dict(saved)


def count_bytes(state: object) -> int:
    """Return the size in bytes of the tensors in a state, each counted once."""
    seen: dict[int, int] = {}
    parts = [state]
    while parts:
        part = parts.pop()
        if isinstance(part, Tensor):
            storage = part.untyped_storage()
            seen[storage.data_ptr()] = storage.nbytes()
        elif isinstance(part, Mapping):
            parts += part.values()
        elif isinstance(part, list | tuple):
            parts += part
    return sum(seen.values())
