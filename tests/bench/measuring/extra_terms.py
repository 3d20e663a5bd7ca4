"""Terms that are added to a base loss so that one threshold may fit all classes: TCM, its relatives, their controls.

All work on the similarities of one batch. Which pairs count and how they are averaged is what tells them apart.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from training.config import LossConfig, MarginConfig
from training.losses import TrainingLoss

Kind = Literal["none", "tcm", "all-pairs", "class-mean", "adaptive", "scheduled", "relative", "spread", "cohort"]
_MOMENTUM = 0.9  # of running quantiles: a batch holds about ten negatives above the quantile 0.999
_SPREAD_FARS = (0.01, 0.02, 0.05, 0.1)
_SPREAD_WIDTH = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class Extra:
    """What is added to the base loss.

    none        nothing
    tcm         mean over the pairs on the wrong side of their margin, as the source defines it
    all-pairs   the same pairs, divided by the number of all pairs: the two-margin contrastive loss
    class-mean  tcm of each class (its positives; negatives with an end in it), averaged over the classes of the batch
    adaptive    tcm whose margins follow quantiles of positive and negative similarities
    scheduled   tcm whose margins move from those quantiles, as the head's training leaves them, to the fixed ones
    relative    tcm of similarities less the crowdedness of both ends: the mean of each one's `crowd` nearest negatives
    cohort      tcm on the cohort score, as the product trains it: score = "cohort", margins = "quantiles"
    spread      variance over classes of a smoothed utility at thresholds of equal FAR: OPIS itself

    weights, margins: of positive and negative pairs, margins as similarities. quantiles: of the positive and of the
    negative similarities, for adaptive, scheduled and cohort. start, ramp: shares of the steps before the term begins
    and in which its weight then rises.
    """

    kind: Kind = "none"
    positive_weight: float = 1.0
    negative_weight: float = 1.0
    positive_margin: float = 0.9
    negative_margin: float = 0.5
    positive_quantile: float = 0.5
    negative_quantile: float = 0.99
    crowd: int = 5
    start: float = 0.0
    ramp: float = 0.0


class ExtraTerm:
    """The term, with the running quantiles that some kinds have. active: shares of pairs that the last call moved."""

    def __init__(self, extra: Extra) -> None:
        self.extra = extra
        self.active = (0.0, 0.0)
        self._running: tuple[float, float] | None = None
        self._first: tuple[float, float] | None = None
        self._product: TrainingLoss | None = None

    def __call__(self, embeddings: Tensor, labels: Tensor, *, done: float) -> Tensor:
        """The weighted term of a batch [n, d] with labels [n]; done: share of the training that has passed."""
        extra = self.extra
        if extra.kind == "none" or done < extra.start:
            return embeddings.new_zeros(())
        ramp = min(1.0, (done - extra.start) / extra.ramp) if extra.ramp else 1.0
        if extra.kind == "cohort":
            return ramp * self._on_cohort_score(embeddings, labels)
        similarities = embeddings @ embeddings.T
        off_diagonal = ~torch.eye(len(labels), dtype=torch.bool)
        same = labels[:, None] == labels[None, :]
        positives, negatives = same & off_diagonal, ~same
        if extra.kind == "spread":
            return ramp * extra.positive_weight * _spread(similarities, positives, negatives)
        if extra.kind == "relative":
            crowded = torch.where(negatives, similarities, -1.0).topk(extra.crowd, dim=1).values.mean(dim=1)
            similarities = similarities - (crowded[:, None] + crowded[None, :]) / 2
        upper, lower = self._margins(similarities, positives, negatives, done)
        short, over = (upper - similarities).clamp(min=0), (similarities - lower).clamp(min=0)
        short, over = short * positives, over * negatives
        self.active = (
            ((short > 0).sum() / positives.sum()).item(),
            ((over > 0).sum() / negatives.sum()).item(),
        )
        return ramp * (
            extra.positive_weight * self._mean(short, positives) + extra.negative_weight * self._mean(over, negatives)
        )

    def _on_cohort_score(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        extra = self.extra
        if self._product is None:
            tcm = MarginConfig(
                score="cohort",
                margins="quantiles",
                momentum=_MOMENTUM,
                positive_weight=extra.positive_weight,
                negative_weight=extra.negative_weight,
                positive_quantile=extra.positive_quantile,
                negative_quantile=extra.negative_quantile,
            )
            # Without a base loss the number of classes has no effect but to bound the labels.
            self._product = TrainingLoss(
                LossConfig(base=(), tcm=tcm), n_classes=2**31, dimension=embeddings.shape[1], steps=1
            )
        found = self._product(embeddings, labels, step=0).margin
        self.active = (found.active_positives.item(), found.active_negatives.item())
        value: Tensor = found.value
        return value

    def _mean(self, excess: Tensor, pairs: Tensor) -> Tensor:
        if self.extra.kind == "all-pairs":
            return excess.sum() / pairs.sum()
        if self.extra.kind == "class-mean":  # by image, which is by class where classes have as many images
            by_image = excess.sum(dim=1) / (excess > 0).sum(dim=1).clamp(min=1)
            return by_image.mean()
        return excess.sum() / (excess > 0).sum().clamp(min=1)

    def _margins(self, similarities: Tensor, positives: Tensor, negatives: Tensor, done: float) -> tuple[float, float]:
        extra = self.extra
        if extra.kind not in ("adaptive", "scheduled"):
            return extra.positive_margin, extra.negative_margin
        values = similarities.detach()
        now = (
            torch.quantile(values[positives], extra.positive_quantile).item(),
            torch.quantile(values[negatives], extra.negative_quantile).item(),
        )
        self._running = now if self._running is None else _blend(self._running, now, _MOMENTUM)
        self._first = self._first or now
        if extra.kind == "adaptive":
            return self._running
        return _blend((extra.positive_margin, extra.negative_margin), self._first, done)


def _blend(first: tuple[float, float], second: tuple[float, float], share: float) -> tuple[float, float]:
    return (share * first[0] + (1 - share) * second[0], share * first[1] + (1 - share) * second[1])


def _spread(similarities: Tensor, positives: Tensor, negatives: Tensor) -> Tensor:
    """Variance over the images of a batch of the smoothed utility, averaged over thresholds at fixed FARs."""
    with torch.no_grad():
        thresholds = torch.quantile(similarities[negatives], 1 - torch.tensor(_SPREAD_FARS))
    accepted = torch.sigmoid((similarities[None] - thresholds[:, None, None]) / _SPREAD_WIDTH)
    accepts = (accepted * positives).sum(dim=2) / positives.sum(dim=1)
    rejects = 1 - (accepted * negatives).sum(dim=2) / negatives.sum(dim=1)
    utilities = 2 * accepts * rejects / (accepts + rejects)
    return ((utilities - utilities.mean(dim=1, keepdim=True)) ** 2).mean()
