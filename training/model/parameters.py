"""Decides which parameters are trained, and at which learning rate."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from retrieval.errors import InvalidSettings
from training.config import ScheduleConfig, suggestion
from training.model.blocks import parameter_levels
from training.model.embedder import Embedder

# Positions and class tokens of torchvision's transformers; timm's networks name theirs.
_NEVER_DECAYED = frozenset(("class_token", "encoder.pos_embedding"))


def freeze(network: nn.Module, names: Sequence[str]) -> None:
    """Exclude the parameters named, or held by the modules named, from training.

    Raises InvalidSettings if a name matches no parameter.
    """
    for name in names:
        matching = [p for key, p in network.named_parameters() if key == name or key.startswith(f"{name}.")]
        if not matching:
            modules = [key for key, _ in network.named_modules() if key]
            raise InvalidSettings(
                f"model.frozen: {name!r} names no parameter and no module with parameters" + suggestion(name, modules)
            )
        for parameter in matching:
            parameter.requires_grad_(False)


def freeze_unreached(embedder: Embedder, crop: int) -> None:
    """Exclude the parameters behind the pooled map: they get no gradient, and parallel training would wait for it.

    Costs one forward and one backward pass of one image.
    """
    embedder.eval()
    embedder.features(torch.zeros(1, 3, crop, crop)).sum().backward()  # type: ignore[no-untyped-call]
    for parameter in embedder.backbone.parameters():
        parameter.requires_grad_(parameter.grad is not None)
    embedder.zero_grad(set_to_none=True)
    embedder.train()


def parameter_groups(embedder: Embedder, schedule: ScheduleConfig) -> list[dict[str, Any]]:
    """Group the trained parameters of the embedder for a torch optimiser.

    Each group has `params`, `weight_decay`, and its peak learning rate as `lr` and, for schedules, as `peak`. The rate
    of the backbone is `learning_rate`, times `layer_decay` for each level below the last; the rate of pooling and head
    is `head_learning_rate`. Norms, biases and other vectors, positions and class tokens are not decayed: decay would
    only change scales and offsets that the next layer undoes or needs.

    Source of the levels: Clark et al., "ELECTRA", ICLR 2020, layer-wise learning rate decay.
    """
    levels = parameter_levels(embedder.backbone)
    top = max(levels.values(), default=0)
    never = _NEVER_DECAYED | set(getattr(embedder.backbone, "no_weight_decay", set)())
    groups: dict[tuple[str, float, float], dict[str, Any]] = {}

    def add(part: str, parameter: nn.Parameter, peak: float, *, decayed: bool) -> None:
        decay = schedule.weight_decay if decayed and parameter.ndim > 1 else 0.0
        empty = {"params": [], "lr": peak, "peak": peak, "weight_decay": decay}
        groups.setdefault((part, peak, decay), empty)["params"].append(parameter)

    for name, parameter in embedder.backbone.named_parameters():
        if parameter.requires_grad:
            peak = schedule.learning_rate * schedule.layer_decay ** (top - levels.get(name, top))
            add("backbone", parameter, peak, decayed=name not in never)
    for module in (embedder.pooling, embedder.head):
        for parameter in module.parameters():
            if parameter.requires_grad:
                add("head", parameter, schedule.head_learning_rate, decayed=True)
    return list(groups.values())
