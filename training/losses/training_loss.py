"""The loss of a training step: the weighted sum of base losses, plus the threshold-consistent margin (TCM)."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from retrieval.errors import InvalidInput
from training.config import LossConfig
from training.losses.adaptive import AdaptiveMargins
from training.losses.cohort import DensityQueue
from training.losses.gathering import GatheredBatch, gather, is_distributed
from training.losses.library import create_base_loss, create_miner
from training.losses.margin import MarginLoss, threshold_consistent_margin
from training.losses.memory import CrossBatchMemory, Remembered


@dataclass(frozen=True, slots=True, kw_only=True)
class StepLoss:
    """The loss of one batch: `total` [] to differentiate, and its parts, [] each.

    base: the weighted sum of base losses, without gradient. margin: TCM with its weights, warm-up included;
    positive_margin, negative_margin: the margins of this step.
    """

    total: Tensor
    base: Tensor
    margin: MarginLoss
    positive_margin: Tensor
    negative_margin: Tensor


class TrainingLoss(nn.Module):
    """Base losses plus TCM, in float32 or better. Some base losses have trainable parameters: a proxy per class.

    The whole state is in `state_dict`. Under `torch.distributed` each process passes its own rows; all of them compute
    the loss of the whole batch, and the mean of their gradients is the gradient of that loss.
    """

    def __init__(self, config: LossConfig, *, n_classes: int, dimension: int, steps: int) -> None:
        """Create the loss for labels below n_classes, embeddings of this dimension, and a run of `steps` steps."""
        super().__init__()
        self.base = nn.ModuleList(create_base_loss(b, n_classes=n_classes, dimension=dimension) for b in config.base)
        self.miners = nn.ModuleList(create_miner(b) or nn.Identity() for b in config.base)
        self.margins = AdaptiveMargins(config.tcm, steps=steps)
        tcm = config.tcm
        self.memory = CrossBatchMemory(tcm.memory, dimension) if tcm.memory else None
        self.cohort: DensityQueue | None = None
        if tcm.score == "cohort":
            self.cohort = DensityQueue(tcm.cohort, dimension, k=tcm.cohort_k, chunk=tcm.chunk)
        self._config = config
        self._n_classes = n_classes

    def forward(self, embeddings: Tensor, labels: Tensor, *, step: int) -> StepLoss:
        """Compute the loss of embeddings [n, d] floating, unit rows, and labels [n] int64 below n_classes.

        step: from 0; determines warm-up and margins, and the random draws on which several processes must agree. In
        training mode the batch is added to the memory and to the cohort, and the running quantiles are updated. TCM on
        the cohort score is 0 until there are enough rows in the cohort. Raises InvalidInput if labels have another
        shape or type or, on a CPU, are out of range.
        """
        self._check(embeddings, labels)
        with torch.autocast(embeddings.device.type, enabled=False):
            rows = embeddings if embeddings.dtype == torch.float64 else embeddings.float()
            batch = gather(rows, labels)
            with _same_draws(step, rows.device):
                base = self._base(batch)
            margin, positive_margin, negative_margin = self._margin(batch, step)
            if self.training:
                self._remember(batch)
        return StepLoss(
            total=base + margin.value,
            base=base.detach(),
            margin=margin,
            positive_margin=positive_margin,
            negative_margin=negative_margin,
        )

    def _base(self, batch: GatheredBatch) -> Tensor:
        total = 0 * batch.embeddings.sum()
        for config, loss, miner in zip(self._config.base, self.base, self.miners, strict=True):
            mined = () if config.miner is None else (miner(batch.embeddings, batch.labels),)
            total = total + config.weight * loss(batch.embeddings, batch.labels, *mined)
        return total

    def _margin(self, batch: GatheredBatch, step: int) -> tuple[MarginLoss, Tensor, Tensor]:
        """Return TCM and the margins of positives and negatives."""
        config = self._config.tcm
        if self.cohort is not None and not self.cohort.is_ready:
            nothing = batch.embeddings.new_zeros(())
            return MarginLoss(nothing, nothing, nothing), *self.margins.targets
        rows = batch.embeddings.detach()
        memory = self.memory.remembered if self.memory is not None else None
        offsets = self._offsets(rows, batch.labels, memory)
        batch_offsets = None if offsets is None else offsets[: len(rows)]
        positive_margin, negative_margin = self.margins(rows, batch.labels, step=step, offsets=batch_offsets)
        warmth = min(step / config.warmup_steps, 1.0) if config.warmup_steps else 1.0
        margin = threshold_consistent_margin(
            batch.embeddings,
            batch.labels,
            positive_weight=warmth * config.positive_weight,
            negative_weight=warmth * config.negative_weight,
            positive_margin=positive_margin,
            negative_margin=negative_margin,
            average=config.average,
            balance=config.balance,
            memory=memory,
            offsets=offsets,
            own=batch.own,
            chunk=config.chunk,
        )
        return margin, positive_margin, negative_margin

    def _offsets(self, rows: Tensor, labels: Tensor, memory: Remembered | None) -> Tensor | None:
        """Return the offsets of the batch, then of the memory, [n + m], or None if the score is the cosine."""
        if self.cohort is None:
            return None
        offsets = self.cohort.offsets(rows, labels)
        if memory is None:
            return offsets
        return torch.cat([offsets, self.cohort.offsets(memory.embeddings.to(rows.dtype), memory.labels)])

    def _remember(self, batch: GatheredBatch) -> None:
        for kept in (self.memory, self.cohort):
            if kept is not None:
                kept.add(batch.embeddings, batch.labels)

    def _check(self, embeddings: Tensor, labels: Tensor) -> None:
        if embeddings.ndim != 2 or labels.dtype != torch.int64 or labels.shape != embeddings.shape[:1]:
            raise InvalidInput(
                f"training loss: expected embeddings [n, d] and labels [n] int64, "
                f"found {list(embeddings.shape)} and {list(labels.shape)} {labels.dtype}"
            )
        # On other devices the check would wait for the device at every step.
        if labels.device.type == "cpu" and len(labels):
            lowest, highest = labels.aminmax()
            if lowest < 0 or highest >= self._n_classes:
                raise InvalidInput(
                    f"training loss: expected labels from 0 to {self._n_classes - 1}, "
                    f"found {int(lowest)} to {int(highest)}"
                )


@contextlib.contextmanager
def _same_draws(step: int, device: torch.device) -> Iterator[None]:
    """Make the random draws of losses and miners the same in all processes; do nothing in a single process."""
    if not is_distributed():
        yield
        return
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(step)
        yield
