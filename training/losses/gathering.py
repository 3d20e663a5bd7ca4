"""Gathers the batch of all data-parallel processes, each of which holds only its own rows.

Decides how rows are exchanged and how gradients are scaled.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, distributed
from torch.autograd.function import once_differentiable


@dataclass(frozen=True, slots=True)
class GatheredBatch:
    """embeddings [n, d] and labels [n] of all processes in the order of their ranks; own: the rows of this process."""

    embeddings: Tensor
    labels: Tensor
    own: slice


def is_distributed() -> bool:
    """Return whether several processes train together."""
    return distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1


def gather(embeddings: Tensor, labels: Tensor) -> GatheredBatch:
    """Gather the rows of all processes, the same on each; only the rows of this process carry a gradient.

    embeddings: [m, d] floating; labels: [m] int64; m may differ between processes and be 0. Each process computes the
    loss of the whole batch. The gradient of `embeddings` is multiplied by the number of processes, so that the mean
    over processes, which data-parallel training takes, equals the gradient of a single process with all rows.
    Parameters of the loss receive the same, unscaled gradient on every process. Without `torch.distributed`, or with
    one process, the batch is returned as it is. The processes first exchange the numbers of rows, and wait for them.
    """
    if not is_distributed():
        return GatheredBatch(embeddings, labels, slice(0, len(labels)))
    world, rank = distributed.get_world_size(), distributed.get_rank()
    counts = _row_counts(len(labels), world, embeddings.device)
    parts = _exchange(embeddings.detach(), counts)
    parts[rank] = _TimesBackward.apply(embeddings, world)  # type: ignore[no-untyped-call]
    start = sum(counts[:rank])
    return GatheredBatch(torch.cat(parts), torch.cat(_exchange(labels, counts)), slice(start, start + counts[rank]))


def sum_over_processes(values: Tensor) -> Tensor:
    """Sum `values` over all processes, with the same result on each. Carries no gradient; may change `values`."""
    if is_distributed():
        distributed.all_reduce(values)
    return values


def _row_counts(n_rows: int, world: int, device: torch.device) -> list[int]:
    counts = torch.empty(world, dtype=torch.int64, device=device)
    distributed.all_gather([counts[rank : rank + 1] for rank in range(world)], torch.tensor([n_rows], device=device))
    return [int(count) for count in counts.tolist()]


def _exchange(rows: Tensor, counts: list[int]) -> list[Tensor]:
    """Return the rows of each process. Collectives need equal shapes, so each process pads to the largest count."""
    padded = rows.new_zeros((max(counts), *rows.shape[1:]))
    padded[: len(rows)] = rows
    parts = [torch.empty_like(padded) for _ in counts]
    distributed.all_gather(parts, padded)
    return [part[:count] for part, count in zip(parts, counts, strict=True)]


class _TimesBackward(torch.autograd.Function):
    """The identity, whose gradient is multiplied by a constant."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, factor: int) -> Tensor:
        ctx.factor = factor
        return values.view_as(values)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient * ctx.factor, None
