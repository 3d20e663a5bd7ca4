"""The training loss: a base loss from pytorch-metric-learning plus the threshold-consistent margin (TCM)."""

import inspect
from dataclasses import dataclass
from typing import cast

import torch
from pytorch_metric_learning import losses as base_losses
from torch import Tensor, nn

from retrieval.errors import InvalidSettings
from training.config import BaseLossConfig, LossConfig, suggestion

_BASE_CLASS = base_losses.BaseMetricLossFunction


@dataclass(frozen=True, slots=True)
class MarginLoss:
    """TCM of one batch. value: [] float32; active_positives, active_negatives: shares of the pairs it still moves."""

    value: Tensor
    active_positives: float
    active_negatives: float


def threshold_consistent_margin(
    embeddings: Tensor,
    labels: Tensor,
    *,
    positive_weight: float = 1.0,
    negative_weight: float = 1.0,
    positive_margin: float = 0.9,
    negative_margin: float = 0.5,
) -> MarginLoss:
    """How far, on average, the pairs on the wrong side of their margin are from it.

    embeddings: [n, d] floating, unit rows; labels: [n] integer. Positive pairs count where their similarity is at most
    `positive_margin`, negative pairs where it is at least `negative_margin`; a side without such pairs contributes 0,
    with a gradient of 0. Computed in float32 or better from one n x n matrix of similarities.

    Source: Zhang et al., "Threshold-Consistent Margin Loss for Open-World Deep Metric Learning", ICLR 2024
    (arXiv 2307.04047), the definition of L_TCM.

    >>> rows = nn.functional.normalize(torch.tensor([[0.0, 1.0], [0.43, 0.9], [1.0, 0.0], [0.5, 0.5]]))
    >>> round(threshold_consistent_margin(rows, torch.tensor([0, 0, 1, 1])).value.item(), 5)
    0.51788
    """
    with torch.autocast(embeddings.device.type, enabled=False):
        rows = embeddings if embeddings.dtype == torch.float64 else embeddings.float()
        first, second = torch.triu_indices(len(rows), len(rows), offset=1, device=rows.device)
        similarities = (rows @ rows.T)[first, second]
        is_positive = labels[first] == labels[second]
        too_far = is_positive & (similarities <= positive_margin)
        too_close = ~is_positive & (similarities >= negative_margin)
        positive = _mean_where(positive_margin - similarities, too_far)
        negative = _mean_where(similarities - negative_margin, too_close)
    return MarginLoss(
        value=positive_weight * positive + negative_weight * negative,
        active_positives=_share(too_far, is_positive),
        active_negatives=_share(too_close, ~is_positive),
    )


def _mean_where(values: Tensor, mask: Tensor) -> Tensor:
    """Mean of the values under the mask; 0 where there is none. Without indexing, so that shapes stay fixed."""
    return torch.where(mask, values, 0).sum() / mask.sum().clamp(min=1)


def _share(part: Tensor, whole: Tensor) -> float:
    return (part.sum() / whole.sum().clamp(min=1)).item()


@dataclass(frozen=True, slots=True)
class StepLoss:
    """The loss of one batch: `total` [] to differentiate, and what it consists of."""

    total: Tensor
    base: float
    margin: MarginLoss


class TrainingLoss(nn.Module):
    """Base loss plus TCM. Some base losses own parameters (a proxy per class), so this is a module to be optimised."""

    def __init__(self, config: LossConfig, *, n_classes: int, dimension: int) -> None:
        super().__init__()
        self.base = nn.ModuleList(create_base_loss(b, n_classes=n_classes, dimension=dimension) for b in config.base)
        self._weights = [b.weight for b in config.base]
        self._margins = {
            "positive_weight": config.tcm.positive_weight,
            "negative_weight": config.tcm.negative_weight,
            "positive_margin": config.tcm.positive_margin,
            "negative_margin": config.tcm.negative_margin,
        }

    def forward(self, embeddings: Tensor, labels: Tensor) -> StepLoss:
        """The loss of embeddings [n, d], unit rows, and labels [n] int64 below n_classes."""
        values = [w * base(embeddings, labels) for w, base in zip(self._weights, self.base, strict=True)]
        base = torch.stack(values).sum()
        margin = threshold_consistent_margin(embeddings, labels, **self._margins)
        return StepLoss(total=base + margin.value, base=base.item(), margin=margin)


def create_base_loss(config: BaseLossConfig, *, n_classes: int, dimension: int) -> nn.Module:
    """The loss of this name from pytorch_metric_learning.losses, told the number of classes and dimensions if it asks.

    Raises InvalidSettings where there is none of this name, or where it does not take these options.
    """
    known = {
        key: value
        for key, value in vars(base_losses).items()
        if inspect.isclass(value) and issubclass(value, _BASE_CLASS) and value is not _BASE_CLASS
    }
    name, options = config.name, config.options
    if name not in known:
        raise InvalidSettings(
            f"loss.base.name: expected a class of pytorch_metric_learning.losses, found {name!r}"
            + suggestion(name, known)
        )
    sizes = {"num_classes": n_classes, "embedding_size": dimension}
    wanted = {key: value for key, value in sizes.items() if key in inspect.signature(known[name]).parameters}
    try:
        return cast(nn.Module, known[name](**wanted, **options))
    except TypeError as error:
        raise InvalidSettings(f"loss.base.options of {name}: {error}") from error
