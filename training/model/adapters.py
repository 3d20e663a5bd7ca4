"""Low-rank adapters: peft inserts them into a backbone before training; afterwards they are merged into its weights."""

import importlib
import re
from typing import Any, cast

from torch import nn

from retrieval.errors import InvalidSettings, Unavailable
from training.config import LoraConfig, suggestion
from training.model.torchvision_compat import allow_mismatched_torchvision


def add_adapters(network: nn.Module, config: LoraConfig) -> None:
    """Add adapters to the layers of `config.targets`, in place; no other parameter of `network` is trained then.

    Raises InvalidSettings if a target names no layer that can have an adapter, Unavailable without peft.
    """
    names = [name for target in config.targets for name in _layers_named(network, target)]
    allow_mismatched_torchvision()  # peft imports it
    try:
        peft = importlib.import_module("peft")
    except ImportError as error:
        raise Unavailable("model.lora needs peft: pip install peft, or set model.lora.rank = 0") from error
    # One pattern, because peft matches each name of a list with all names that end with it.
    pattern = "|".join(re.escape(name) for name in names)
    options = peft.LoraConfig(
        r=config.rank, lora_alpha=config.alpha, lora_dropout=config.dropout, target_modules=pattern, bias="none"
    )
    peft.inject_adapter_in_model(options, network)


def merge_adapters(network: nn.Module) -> None:
    """Merge the adapters in `network` into the weights of their layers and remove all of peft, in place.

    Outputs stay equal up to rounding; without adapters nothing happens.
    """
    for name, module in list(network.named_modules()):
        if hasattr(module, "get_base_layer"):
            adapted = cast(Any, module)
            adapted.merge()
            parent, _, attribute = name.rpartition(".")
            setattr(network.get_submodule(parent), attribute, adapted.get_base_layer())


def _layers_named(network: nn.Module, target: str) -> list[str]:
    """Return the linear layers and convolutions whose name is, or ends with, `target`."""
    possible = list(_adaptable(network))
    names = [name for name in possible if f".{name}".endswith(f".{target}")]
    if not names:
        endings = dict.fromkeys(ending for name in possible for ending in (name, name.rpartition(".")[2]))
        raise InvalidSettings(
            f"model.lora.targets: no linear layer or ungrouped convolution has a name that is or ends with {target!r}"
            + (suggestion(target, endings) or f"; names that exist are, for instance, {', '.join(list(endings)[:4])}")
        )
    return names


def _adaptable(network: nn.Module) -> list[str]:
    """Return the layers that can have an adapter.

    Grouped convolutions cannot be merged; torch's attention reads the weights of its layers and bypasses an adapter.
    """
    return [
        name
        for name, module in network.named_modules()
        if (isinstance(module, nn.Linear) or (isinstance(module, nn.Conv2d) and module.groups == 1))
        and not isinstance(network.get_submodule(name.rpartition(".")[0]), nn.MultiheadAttention)
    ]
