"""Networks of torchvision by name."""

from collections import OrderedDict
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from retrieval.errors import InvalidSettings
from training.config import suggestion
from training.model.backbone import Backbone, ToMap, fetch, in_bytes
from training.model.torchvision_compat import allow_mismatched_torchvision
from training.model.weights import load_and_resize

# For each class of networks: the modules that, in sequence, lead from pixels to the last feature map.
_ROWS = {
    "AlexNet": ("features",),
    "ConvNeXt": ("features",),
    "EfficientNet": ("features",),
    "MNASNet": ("layers",),
    "MaxVit": ("stem", "blocks"),
    "MobileNetV2": ("features",),
    "MobileNetV3": ("features",),
    "RegNet": ("stem", "trunk_output"),
    "ResNet": ("conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3", "layer4"),
    "ShuffleNetV2": ("conv1", "maxpool", "stage2", "stage3", "stage4", "conv5"),
    "SwinTransformer": ("features", "norm", "permute"),
    "VGG": ("features",),
}
# They compute auxiliary losses in training, and normalise their input again if their weights were loaded.
_INCEPTION = {"googlenet": ("aux1", "aux2"), "inception_v3": ("AuxLogits",)}


def create_torchvision(name: str, *, weights: str, side: int) -> Backbone:
    """Create the network of this name for square inputs of `side`. Raises as `create_backbone`."""
    allow_mismatched_torchvision()
    from torchvision import models

    known = models.list_models(module=models)
    if name not in known:
        raise InvalidSettings(f"model.backbone: torchvision has no model {name!r}" + suggestion(name, known))
    default = models.get_model_weights(name)["DEFAULT"]
    options = {"init_weights": False} if name in _INCEPTION else {}
    chosen = default if weights == "pretrained" else None
    network = fetch(f"torchvision/{name}", lambda: models.get_model(name, weights=chosen, **options))
    if name in _INCEPTION:
        _drop_auxiliary_losses(network, _INCEPTION[name])
    classifier = _drop_classifier(network)
    resize = partial(resize_transformer, side=side) if isinstance(network, models.VisionTransformer) else None
    load_and_resize(network, weights, classifiers=(classifier,), resize=resize)
    transforms = default.transforms()
    return Backbone(
        network=network, mean=in_bytes(transforms.mean), std=in_bytes(transforms.std), to_map=_find_map(network)
    )


def _drop_auxiliary_losses(network: nn.Module, modules: tuple[str, ...]) -> None:
    # The pretrained weights need the second normalisation; it is kept without them, so that the network is the same.
    for name, value in (("aux_logits", False), ("transform_input", True), *((module, None) for module in modules)):
        setattr(network, name, value)


def _drop_classifier(network: nn.Module) -> str:
    """Replace the classifier, the last linear layer or convolution, by the identity; return its name."""
    kinds = (nn.Conv2d,) if type(network).__name__ == "SqueezeNet" else (nn.Linear,)
    last: str
    *_, last = (name for name, module in network.named_modules() if isinstance(module, kinds))
    parent, _, attribute = last.rpartition(".")
    setattr(network.get_submodule(parent), attribute, nn.Identity())
    return last


def resize_transformer(network: nn.Module, *, side: int) -> None:
    """Adapt a VisionTransformer to inputs of `side`: interpolate its positions, which were learnt for another side."""
    from torchvision.models.vision_transformer import interpolate_embeddings

    transformer = cast(Any, network)
    if side == transformer.image_size:
        return
    if side % transformer.patch_size:
        raise InvalidSettings(f"input.crop: this backbone takes multiples of {transformer.patch_size}, found {side}")
    key = "encoder.pos_embedding"
    state = OrderedDict({key: transformer.encoder.pos_embedding.detach()})
    resized = interpolate_embeddings(side, transformer.patch_size, state)[key]
    transformer.encoder.pos_embedding = nn.Parameter(resized)
    transformer.image_size, transformer.seq_length = side, resized.shape[1]


def _find_map(network: nn.Module) -> ToMap | None:
    kind = type(network).__name__
    if kind == "VisionTransformer":
        return _patch_tokens
    if kind == "DenseNet":
        return _dense_map
    return partial(_in_a_row, names=_ROWS[kind]) if kind in _ROWS else None


def _in_a_row(network: nn.Module, pixels: Tensor, *, names: tuple[str, ...]) -> Tensor:
    for name in names:
        part = getattr(network, name)
        for module in part if isinstance(part, nn.ModuleList) else (part,):
            pixels = module(pixels)
    return pixels


def _dense_map(network: nn.Module, pixels: Tensor) -> Tensor:
    return functional.relu(cast(Any, network).features(pixels))


def _patch_tokens(network: nn.Module, pixels: Tensor) -> Tensor:
    """Compute the tokens [n, t, c] without the class token, as torchvision's own `forward` does."""
    transformer = cast(Any, network)
    patches = transformer._process_input(pixels)
    class_token = transformer.class_token.expand(patches.shape[0], -1, -1)  # `len` is a constant once exported
    tokens: Tensor = transformer.encoder(torch.cat([class_token, patches], dim=1))
    return tokens[:, 1:]
