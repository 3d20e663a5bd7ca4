"""The sequence of blocks of a network: the depth of each parameter, and gradient checkpointing."""

from collections import OrderedDict
from typing import Any, cast

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from retrieval.errors import InvalidSettings
from training.model.embedder import batch_norms


class CheckpointedSequential(nn.Sequential):
    """Modules in sequence that, in training, store no activations and compute them again in the backward pass."""

    def forward(self, input: Any) -> Any:
        """Apply the modules one after another."""
        for module in self:
            again = self.training and torch.is_grad_enabled()
            input = checkpoint(module, input, use_reentrant=False) if again else module(input)
        return input


def parameter_levels(network: nn.Module) -> dict[str, int]:
    """Return the level of each parameter by name, counted from the pixels, from 0.

    timm knows the levels of its own networks. In other networks a level is a block, or the layers between two blocks;
    without blocks it is a layer and its norm.
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
    """Make the blocks of `network` compute their activations twice in training instead of storing them.

    Raises InvalidSettings if the network has no suitable blocks.
    """
    if hasattr(network, "set_grad_checkpointing"):
        try:
            cast(Any, network).set_grad_checkpointing(True)
        except AssertionError as error:  # timm raises this if a network does not support it
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
    """Raise InvalidSettings if batch norms would see every batch twice."""
    if batch_norms(network):
        raise InvalidSettings(
            "model.gradient_checkpointing computes every block twice and would update the statistics of this "
            'backbone\'s batch norms twice per step: use batch_norm = "frozen", or no checkpointing'
        )


def _rows_of_blocks(network: nn.Module, prefix: str = "") -> list[tuple[str, nn.Module]]:
    """Return the outermost modules, by name, that hold two or more blocks, in the order of registration.

    The network itself is one of them only if its blocks are not in containers, as in Inception.
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
    """Return the names of the child modules that have children."""
    dot = "." if prefix else ""
    return [f"{prefix}{dot}{name}" for name, child in module.named_children() if any(True for _ in child.children())]


def _no_blocks() -> InvalidSettings:
    return InvalidSettings(
        "model.gradient_checkpointing: this backbone has no sequence of blocks that can be computed twice"
    )
