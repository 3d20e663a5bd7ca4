"""The batch of all data-parallel processes, where each of them holds only its own rows.

Decides how rows travel and how gradients are scaled; what is done with the whole batch is left to the losses.
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
    """Whether this process is one of several that train together."""
    return distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1


def gather(embeddings: Tensor, labels: Tensor) -> GatheredBatch:
    """The rows of all processes, of which those of this one carry gradient; the same batch on each of them.

    embeddings: [m, d] floating; labels: [m] int64; m may differ between processes and be 0. Each process computes the
    loss of the whole batch. The gradient that reaches `embeddings` is multiplied by the number of processes, so that
    the mean over them, which data-parallel training takes, is the gradient that one process with all rows would find.
    Parameters of the loss itself receive the same, unscaled gradient on every process. Without `torch.distributed`, or
    with one process, the batch is what was given. One small message tells the numbers of rows, and is waited for.
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
    """The sum of `values` over all processes, the same on each. Carries no gradient; may change `values`."""
    if is_distributed():
        distributed.all_reduce(values)
    return values


def _row_counts(n_rows: int, world: int, device: torch.device) -> list[int]:
    counts = torch.empty(world, dtype=torch.int64, device=device)
    distributed.all_gather([counts[rank : rank + 1] for rank in range(world)], torch.tensor([n_rows], device=device))
    return [int(count) for count in counts.tolist()]


def _exchange(rows: Tensor, counts: list[int]) -> list[Tensor]:
    """The rows of each process. Collectives want equal shapes, so each sends as many as the longest."""
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
