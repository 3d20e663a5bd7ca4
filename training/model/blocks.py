"""The blocks that a network is a row of: how deep each parameter lies, and where activations may be computed twice."""

from collections import OrderedDict
from typing import Any, cast

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from retrieval.errors import InvalidSettings
from training.model.embedder import batch_norms


class CheckpointedSequential(nn.Sequential):
    """Its modules in a row; in training each computes its activations again for the backward pass, and keeps none."""

    def forward(self, input: Any) -> Any:
        """What the last module gives."""
        for module in self:
            again = self.training and torch.is_grad_enabled()
            input = checkpoint(module, input, use_reentrant=False) if again else module(input)
        return input


def parameter_levels(network: nn.Module) -> dict[str, int]:
    """How many levels lie below each parameter by name; 0 for those next to the pixels.

    timm says it of its own networks. In others a level is a block, or a run of layers between blocks, and where
    there are no blocks a layer with what follows it.
    """
    if hasattr(network, "group_matcher"):
        from timm.models import group_parameters

        matcher = cast(Any, network).group_matcher(coarse=False)
        by_name: dict[str, int] = group_parameters(network, matcher, reverse=True)
        return by_name
    blocks = [f"{name}." for row_name, row in _rows_of_blocks(network) for name in _blocks_of(row, row_name)]
    levels, level, previous = {}, -1, None
    for name, parameter in network.named_parameters():
        block = next((block for block in blocks if name.startswith(block)), "")
        begins = block != previous if blocks else parameter.ndim > 1
        level = max(level + begins, 0)
        levels[name], previous = level, block
    return levels


def checkpoint_gradients(network: nn.Module) -> None:
    """Let the blocks of `network` compute their activations twice in training rather than keep them.

    Raises InvalidSettings where the network has no blocks for it.
    """
    if hasattr(network, "set_grad_checkpointing"):
        try:
            cast(Any, network).set_grad_checkpointing(True)
        except AssertionError as error:  # timm's way to say that a network cannot
            raise _no_blocks() from error
        return
    rows = [name for name, row in _rows_of_blocks(network) if type(row).forward is nn.Sequential.forward]
    if not rows:
        raise _no_blocks()
    for name in rows:
        parent, _, attribute = name.rpartition(".")
        children = OrderedDict(network.get_submodule(name).named_children())
        setattr(network.get_submodule(parent), attribute, CheckpointedSequential(children))


def refuse_moving_statistics(network: nn.Module) -> None:
    """Raise InvalidSettings where batch norms would see every batch twice."""
    if batch_norms(network):
        raise InvalidSettings(
            "model.gradient_checkpointing computes every block twice and would move the statistics of this backbone's "
            'batch norms twice a step: use batch_norm = "frozen", or no checkpointing'
        )


def _rows_of_blocks(network: nn.Module, prefix: str = "") -> list[tuple[str, nn.Module]]:
    """The outermost modules, by name, of two blocks or more; in the order of registration.

    The network itself is one only where its blocks are not in containers, as those of Inception.
    """
    children = {name: network.get_submodule(name) for name in _blocks_of(network)}
    if sum(not isinstance(child, nn.Sequential | nn.ModuleList) for child in children.values()) >= 2:
        return [(prefix.removesuffix("."), network)]
    rows: list[tuple[str, nn.Module]] = []
    for name, child in children.items():
        if isinstance(child, nn.Sequential | nn.ModuleList) and len(_blocks_of(child)) >= 2:
            rows.append((prefix + name, child))
        else:
            rows += _rows_of_blocks(child, f"{prefix}{name}.")
    return rows


def _blocks_of(module: nn.Module, prefix: str = "") -> list[str]:
    """The names of its children that have children."""
    dot = "." if prefix else ""
    return [f"{prefix}{dot}{name}" for name, child in module.named_children() if any(True for _ in child.children())]


def _no_blocks() -> InvalidSettings:
    return InvalidSettings(
        "model.gradient_checkpointing: this backbone has no row of blocks that can be computed twice"
    )
