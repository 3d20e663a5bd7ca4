"""The threshold-consistent margin (TCM): the mean distance of pairs on the wrong side of their margin from it.

Decides what is averaged and the divisor of each average; `blocks.py` handles the pairs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from training.losses.blocks import Active, Few, Pairs, add_gradient, all_ends, compare, condense, split_blocks, tally
from training.losses.gathering import sum_over_processes
from training.losses.memory import Remembered


@dataclass(frozen=True, slots=True)
class MarginLoss:
    """TCM of one batch. value: [] float32 or float64, the only one with a gradient.

    active_positives, active_negatives: [] shares of the positive and of the negative pairs that are active, 0 without
    pairs.
    """

    value: Tensor
    active_positives: Tensor
    active_negatives: Tensor


def threshold_consistent_margin(  # noqa: PLR0913  # the options of a loss function, as in torch.nn.functional
    embeddings: Tensor,
    labels: Tensor,
    *,
    positive_weight: float = 1.0,
    negative_weight: float = 1.0,
    positive_margin: float | Tensor = 0.9,
    negative_margin: float | Tensor = 0.5,
    average: Literal["active", "all"] = "active",
    balance: Literal["pairs", "classes"] = "pairs",
    memory: Remembered | None = None,
    offsets: Tensor | None = None,
    own: slice | None = None,
    chunk: int = 4096,
) -> MarginLoss:
    """Compute the mean distance of the pairs on the wrong side of their margin from it.

    embeddings: [n, d] floating, unit rows; labels: [n] integer. A positive pair is active if its similarity is at most
    `positive_margin`, a negative pair if it is at least `negative_margin`; margins are numbers or [] tensors without
    gradient. Positives, or negatives, without an active pair contribute 0, with a gradient of 0. NaN gives NaN.

    average: over "active" pairs, as in the source, or over "all" positive and all negative pairs. balance: "pairs"
    averages over pairs; "classes" averages over the pairs of each class, then over classes. A positive pair belongs to
    its class, a negative pair to both of its classes; classes without a pair to average over are left out. memory: rows
    without gradient that are paired with those of the batch, not with each other. offsets: [n + memory] floating, taken
    as constants: similarities are replaced by <a, b> - offset(a) - offset(b). own: if `embeddings` are the rows of
    all data-parallel processes, the rows of this process; sums and counts are then added over the processes, and the
    gradient is that of the own rows (see `gather`). chunk: rows compared at a time; with more rows than this, masks of
    active pairs are not stored, and blocks with many active pairs are computed twice.

    Computed in float32 or better, also under autocast, with at most n x (n + memory) similarities; the gradient is
    computed together with the value, and cannot be differentiated again.

    Source: Zhang et al., "Threshold-Consistent Margin Loss for Open-World Deep Metric Learning", ICLR 2024
    (arXiv 2307.04047), the definition of L_TCM.

    >>> rows = torch.nn.functional.normalize(torch.tensor([[0.0, 1.0], [0.43, 0.9], [1.0, 0.0], [0.5, 0.5]]))
    >>> round(threshold_consistent_margin(rows, torch.tensor([0, 0, 1, 1])).value.item(), 5)
    0.51788
    """
    weights = (positive_weight, negative_weight)
    with torch.autocast(embeddings.device.type, enabled=False):
        rows = embeddings if embeddings.dtype == torch.float64 else embeddings.float()
        with torch.no_grad():
            pairs = _pairs(rows, labels, memory, own, balance, (positive_margin, negative_margin), offsets)
            needs_gradient = rows.requires_grad and weights != (0, 0)
            value, gradient, shares = _evaluate(
                pairs, weights, average, chunk, needs_gradient=needs_gradient, spread=own is not None
            )
        if gradient is not None:
            value = _WithGradient.apply(rows, value, gradient)  # type: ignore[no-untyped-call]
    return MarginLoss(value, *shares)


def _pairs(
    rows: Tensor,
    labels: Tensor,
    memory: Remembered | None,
    own: slice | None,
    balance: Literal["pairs", "classes"],
    margins: tuple[float | Tensor, float | Tensor],
    offsets: Tensor | None,
) -> Pairs:
    columns = rows.detach()
    n_batch = len(labels)
    if memory is not None and len(memory.labels):
        columns = torch.cat([columns, memory.embeddings.to(columns.dtype)])
        labels = torch.cat([labels, memory.labels])
    classes, groups = (None, None) if balance == "pairs" else torch.unique(labels, return_inverse=True)
    return Pairs(
        columns=columns,
        labels=labels,
        groups=groups,
        n_groups=1 if classes is None else len(classes),
        own=own if own is not None else slice(0, n_batch),
        n_batch=n_batch,
        positive_margin=margins[0],
        negative_margin=margins[1],
        offsets=None if offsets is None else offsets.to(columns.dtype),
    )


def _evaluate(
    pairs: Pairs,
    weights: tuple[float, float],
    average: Literal["active", "all"],
    chunk: int,
    *,
    needs_gradient: bool,
    spread: bool,
) -> tuple[Tensor, Tensor | None, Tensor]:
    """Return the value [], the gradient [n_batch, d], and the shares [2] of active pairs."""
    kept: list[Active | Few | None] = []
    keep = pairs.own.stop - pairs.own.start <= chunk
    found = pairs.columns.new_zeros((5, pairs.n_groups), dtype=torch.float64)
    blocks = list(split_blocks(pairs, chunk))
    for block in blocks:
        similarities, same, active = compare(pairs, block)
        found += tally(pairs, block, similarities, same, active)
        if needs_gradient:
            kept.append(condense(active, keep=keep))
    if spread:
        found = sum_over_processes(found)
    value, worth, shares = _average(found, pairs, weights, average)
    if not needs_gradient:
        return value, None, shares
    gradient = torch.zeros_like(pairs.columns[: pairs.n_batch])
    for block, known in zip(blocks, kept, strict=True):
        add_gradient(gradient, pairs, block, known or compare(pairs, block)[2], worth)
    return value, gradient, shares


def _average(
    found: Tensor, pairs: Pairs, weights: tuple[float, float], average: Literal["active", "all"]
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute loss [], derivative by the ends of each group [2, g], and active shares [2] from sums [5, g]."""
    similarity, n_active, n_same = found[:2], found[2:4], found[4]
    n_ends, n_self = all_ends(pairs)
    n_pairs = torch.stack([n_same - n_self, n_ends - n_same])
    count = n_active if average == "active" else n_pairs
    averaged = count > 0
    # Positives are below their margin, negatives above it.
    slope = found.new_tensor([[-weights[0]], [weights[1]]])
    worth = averaged * slope / (averaged.sum(1, keepdim=True).clamp_(min=1) * count.clamp(min=1))
    value = ((similarity - _margins(pairs, found) * n_active) * worth).sum()
    shares = n_active.sum(1) / n_pairs.sum(1).clamp_(min=1)
    dtype = pairs.columns.dtype
    return value.to(dtype), worth.to(dtype), shares.to(dtype)


def _margins(pairs: Pairs, like: Tensor) -> Tensor:
    """Return both margins, [2, 1], without waiting for a device that holds them."""
    margins = (pairs.positive_margin, pairs.negative_margin)
    if not any(isinstance(margin, Tensor) for margin in margins):
        return like.new_tensor(margins)[:, None]
    return torch.stack([torch.as_tensor(margin, dtype=like.dtype, device=like.device) for margin in margins])[:, None]


class _WithGradient(torch.autograd.Function):
    """A value whose gradient is already known."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, value: Tensor, gradient: Tensor) -> Tensor:
        ctx.save_for_backward(gradient)
        return value.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = ctx.saved_tensors
        return upstream * gradient, None, None
