"""The values of a training step, by name: scalar tensors on the device, and numbers once the host has read them.

Decides how they are averaged over batches and read from all processes. Reading a value makes a GPU wait, so the values
of several steps and processes are read in one transfer.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Generic, TypeVar

import torch
from torch import Tensor

from training.loop.processes import Processes

Value = TypeVar("Value", float, Tensor)


@dataclass(frozen=True, slots=True, kw_only=True)
class StepValues(Generic[Value]):
    """Means over the batches of a step, and over the processes once they are numbers.

    margin: TCM with its weights, warm-up included, so that loss is base + margin; active_positives, active_negatives:
    shares of the pairs on the wrong side of the positive_margin and negative_margin of the step; gradient_norm: over
    all parameters, before clipping.
    """

    loss: Value
    base: Value
    margin: Value
    active_positives: Value
    active_negatives: Value
    positive_margin: Value
    negative_margin: Value
    gradient_norm: Value


_NAMES = tuple(f.name for f in fields(StepValues))


def mean_by_name(batches: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Average scalar tensors with the same names over batches; without a graph, float32."""
    rows = torch.stack([torch.stack([value.detach().float() for value in batch.values()]) for batch in batches])
    return dict(zip(batches[0], rows.mean(dim=0), strict=True))


def read_values(steps: Sequence[StepValues[Tensor]], processes: Processes) -> StepValues[Tensor]:
    """Read the values of these steps from all processes, in one transfer: each [world, steps] float32, on the CPU."""
    own = torch.stack([torch.stack([getattr(step, name) for name in _NAMES]) for step in steps])
    table = processes.gather(own[None]).cpu()
    return StepValues(**dict(zip(_NAMES, table.unbind(dim=2), strict=True)))


def mean_over_processes(values: StepValues[Tensor]) -> list[StepValues[float]]:
    """Average values [world, steps] over the processes: the numbers of each step."""
    means = {name: getattr(values, name).mean(dim=0).tolist() for name in _NAMES}
    n_steps = len(means["loss"])
    return [StepValues(**{name: column[step] for name, column in means.items()}) for step in range(n_steps)]
