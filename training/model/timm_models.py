"""Networks of timm by name, with or without the tag of their weights."""

from functools import partial
from typing import Any, cast

from torch import Tensor, nn

from retrieval.errors import InvalidSettings
from training.config import suggestion
from training.model.backbone import Backbone, fetch, in_bytes
from training.model.torchvision_compat import allow_mismatched_torchvision
from training.model.weights import load_and_resize


def create_timm(name: str, *, weights: str, side: int) -> Backbone:
    """Create the network of this name for square inputs of `side`. Raises as `create_backbone`."""
    allow_mismatched_torchvision()
    import timm

    _check_name(name)
    cfg = timm.get_pretrained_cfg(name)
    is_fixed = cfg is not None and bool(cfg.fixed_input_size)
    # timm resizes its own weights; weights of a file are loaded at their own size.
    sized: dict[str, Any] = {"img_size": side} if is_fixed and weights in ("pretrained", "random") else {}
    pretrained = weights == "pretrained"
    network = fetch(f"timm/{name}", lambda: timm.create_model(name, pretrained=pretrained, num_classes=0, **sized))
    resize = partial(_resize, side=side) if is_fixed and not sized else None
    load_and_resize(network, weights, classifiers=_classifiers(network), resize=resize)
    data = timm.data.config.resolve_model_data_config(network)  # type: ignore[no-untyped-call]
    # Pooling needs the number of tokens before those of the patches.
    has_map = hasattr(network, "forward_features") and (
        hasattr(network, "num_prefix_tokens") or not hasattr(network, "cls_token")
    )
    return Backbone(
        network=network, mean=in_bytes(data["mean"]), std=in_bytes(data["std"]), to_map=_to_map if has_map else None
    )


def _check_name(name: str) -> None:
    import timm

    architecture, _, tag = name.partition(".")
    known = timm.list_models()
    if architecture not in known:
        raise InvalidSettings(f"model.backbone: timm has no model {name!r}" + suggestion(name, known))
    tags = [full.partition(".")[2] for full in timm.list_models(f"{architecture}.*", pretrained=True)]
    if tag and tag not in tags:
        raise InvalidSettings(
            f"model.backbone: timm has no weights {tag!r} of {architecture}, only {', '.join(tags) or 'none'}"
            + suggestion(tag, tags)
        )


def _classifiers(network: nn.Module) -> tuple[str, ...]:
    named: str | tuple[str, ...] | None = cast(Any, network).pretrained_cfg.get("classifier")
    return (named,) if isinstance(named, str) else tuple(named or ())


def _resize(network: nn.Module, *, side: int) -> None:
    """Interpolate weights that depend on the input size, as timm does for its own weights."""
    if hasattr(network, "set_input_size"):
        cast(Any, network).set_input_size(img_size=side)
        return
    expected = cast(Any, network).pretrained_cfg["input_size"][-1]
    if side != expected:
        raise InvalidSettings(f"input.crop: with weights from a file this backbone takes only {expected}, found {side}")


def _to_map(network: nn.Module, pixels: Tensor) -> Tensor:
    """Compute the last feature map [n, c, h, w], or the patch tokens [n, t, c] without class and register tokens."""
    features: Tensor = cast(Any, network).forward_features(pixels)
    if not isinstance(features, Tensor):
        raise InvalidSettings('model.pooling: this backbone returns several feature maps: use pooling = "native"')
    if features.ndim == 4 and str(getattr(network, "output_fmt", "NCHW")) == "NHWC":
        return features.permute(0, 3, 1, 2)
    if features.ndim == 3:
        return features[:, cast(int, getattr(network, "num_prefix_tokens", 0)) :]
    return features
