"""Networks of timm by name, with or without the tag of their weights."""

from typing import Any, cast

from torch import Tensor, nn

from retrieval.errors import InvalidSettings
from training.config import suggestion
from training.model.backbone import Backbone, fetch, in_bytes
from training.model.weights import load_state, read_state
from training.torchvision_compat import allow_mismatched_torchvision


def create_timm(name: str, *, weights: str, side: int) -> Backbone:
    """The network of this name for square inputs of `side`. Raises as `create_backbone`."""
    allow_mismatched_torchvision()
    import timm

    _check_name(name)
    of_file = weights not in ("pretrained", "random")
    sized: dict[str, Any] = {}
    cfg = timm.get_pretrained_cfg(name)
    if cfg is not None and cfg.fixed_input_size and not of_file:
        sized["img_size"] = side
    pretrained = weights == "pretrained"
    network = fetch(f"timm/{name}", lambda: timm.create_model(name, pretrained=pretrained, num_classes=0, **sized))
    if of_file:
        load_state(network, read_state(weights), source=weights, classifiers=_classifiers(network))
        if cfg is not None and cfg.fixed_input_size:
            _resize(network, name, side)
    data = timm.data.config.resolve_model_data_config(network)  # type: ignore[no-untyped-call]
    has_map = hasattr(network, "forward_features")
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


def _resize(network: nn.Module, name: str, side: int) -> None:
    """Interpolate what was learnt for one size of the input, as timm does for its own weights."""
    if not hasattr(network, "set_input_size"):
        expected = cast(Any, network).pretrained_cfg["input_size"][-1]
        if side != expected:
            raise InvalidSettings(f"input.crop: timm/{name} takes {expected} only with a file, found {side}")
        return
    cast(Any, network).set_input_size(img_size=side)


def _to_map(network: nn.Module, pixels: Tensor) -> Tensor:
    """The last map [n, c, h, w], or the tokens [n, t, c] of patches, without those of class and registers."""
    features: Tensor = cast(Any, network).forward_features(pixels)
    if features.ndim == 4 and str(getattr(network, "output_fmt", "NCHW")) == "NHWC":
        return features.permute(0, 3, 1, 2)
    if features.ndim == 3:
        return features[:, cast(int, getattr(network, "num_prefix_tokens", 0)) :]
    return features
