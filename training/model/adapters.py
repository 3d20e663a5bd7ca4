"""Low-rank adapters: put into a backbone by peft before training, added to its own weights after it."""

import importlib
import re
from typing import Any, cast

from torch import nn

from retrieval.errors import InvalidSettings, Unavailable
from training.config import LoraConfig, suggestion
from training.model.torchvision_compat import allow_mismatched_torchvision


def add_adapters(network: nn.Module, config: LoraConfig) -> None:
    """Give the layers of `config.targets` adapters, in place; of `network` these alone are trained then.

    Raises InvalidSettings where a target names no layer that can have one, Unavailable without peft.
    """
    names = [name for target in config.targets for name in _layers_named(network, target)]
    allow_mismatched_torchvision()  # peft imports it
    try:
        peft = importlib.import_module("peft")
    except ImportError as error:
        raise Unavailable("model.lora needs peft: pip install peft, or set model.lora.rank = 0") from error
    # As one pattern: in a list of names each would stand for all names that end so.
    pattern = "|".join(re.escape(name) for name in names)
    options = peft.LoraConfig(
        r=config.rank, lora_alpha=config.alpha, lora_dropout=config.dropout, target_modules=pattern, bias="none"
    )
    peft.inject_adapter_in_model(options, network)


def merge_adapters(network: nn.Module) -> None:
    """Add the adapters in `network` to the weights of their layers and remove them, in place: nothing of peft is left.

    Outputs stay equal up to rounding; without adapters nothing happens.
    """
    for name, module in list(network.named_modules()):
        if hasattr(module, "get_base_layer"):
            adapted = cast(Any, module)
            adapted.merge()
            parent, _, attribute = name.rpartition(".")
            setattr(network.get_submodule(parent), attribute, adapted.get_base_layer())


def _layers_named(network: nn.Module, target: str) -> list[str]:
    """The linear layers and convolutions that are named so or whose names end so."""
    possible = list(_adaptable(network))
    names = [name for name in possible if f".{name}".endswith(f".{target}")]
    if not names:
        endings = dict.fromkeys(ending for name in possible for ending in (name, name.rpartition(".")[2]))
        raise InvalidSettings(
            f"model.lora.targets: no linear layer or ungrouped convolution is named {target!r} or ends so"
            + (suggestion(target, endings) or f"; there are for instance {', '.join(list(endings)[:4])}")
        )
    return names


def _adaptable(network: nn.Module) -> list[str]:
    """Grouped convolutions cannot be merged; attention of torch reads its layers' weights past the adapter."""
    return [
        name
        for name, module in network.named_modules()
        if (isinstance(module, nn.Linear) or (isinstance(module, nn.Conv2d) and module.groups == 1))
        and not isinstance(network.get_submodule(name.rpartition(".")[0]), nn.MultiheadAttention)
    ]
