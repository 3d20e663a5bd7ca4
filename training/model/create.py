"""Creates embedders from the configuration: which networks there are, and the order in which options apply."""

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from retrieval.contract.preprocessing import Preprocessing
from retrieval.errors import CorruptArtifact, InvalidSettings
from training.config import InputConfig, ModelConfig, suggestion
from training.model.adapters import add_adapters, merge_adapters
from training.model.backbone import Backbone
from training.model.blocks import checkpoint_gradients, refuse_moving_statistics
from training.model.efficientnet_lite import LITE, create_lite
from training.model.embedder import Embedder
from training.model.parameters import freeze, freeze_unreached
from training.model.timm_models import create_timm
from training.model.torchvision_models import create_torchvision


def create_embedder(config: ModelConfig, input_config: InputConfig) -> tuple[Embedder, Preprocessing]:
    """Create the embedder of the configuration, and the preprocessing that its backbone expects.

    Raises InvalidSettings if the backbone or a name in `frozen` or `lora.targets` is unknown, a file of weights does
    not fit, or the backbone does not support the pooling or checkpointing; Unavailable if weights cannot be downloaded.
    """
    backbone = create_backbone(config.backbone, weights=config.weights, side=input_config.crop)
    embedder = Embedder(backbone, config, crop=input_config.crop)
    if config.pooling != "native":
        freeze_unreached(embedder, input_config.crop)
    freeze(embedder.backbone, config.frozen)
    if config.gradient_checkpointing:
        if config.batch_norm == "trained":
            refuse_moving_statistics(embedder.backbone)
        checkpoint_gradients(embedder.backbone)
    if config.lora.rank:
        add_adapters(embedder.backbone, config.lora)
    if config.channels_last:
        embedder = embedder.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    preprocessing = Preprocessing(
        resize=input_config.resize,
        crop=input_config.crop,
        mean=backbone.mean,
        std=backbone.std,
        interpolation=input_config.interpolation,
    )
    return embedder.train(), preprocessing


def restore_embedder(
    config: ModelConfig, input_config: InputConfig, state: Mapping[str, Tensor]
) -> tuple[Embedder, Preprocessing]:
    """Restore a trained embedder from its `state_dict`, in evaluation mode, and its preprocessing.

    Needs no pretrained weights. Adapters are merged, so that parameters have the names of the plain backbone. Raises
    CorruptArtifact if the state belongs to another configuration, otherwise as `create_embedder`.
    """
    plain = replace(config, weights="random", gradient_checkpointing=False)
    embedder, preprocessing = create_embedder(plain, input_config)
    try:
        embedder.load_state_dict(state)
    except RuntimeError as error:
        raise CorruptArtifact(
            f"the saved weights do not fit the saved configuration of {config.backbone} ({error}): train again"
        ) from error
    merge_adapters(embedder.backbone)
    return embedder.eval(), preprocessing


def create_backbone(name: str, *, weights: str = "pretrained", side: int) -> Backbone:
    """Create the network of this name without its classifier, for square inputs of `side` pixels.

    weights: "pretrained", "random", or the path of a file. Raises InvalidSettings, with the closest names, if there is
    no such network or the file does not fit it, Unavailable if its package or weights cannot be obtained.
    """
    library, _, rest = name.partition("/")
    if name in LITE:
        return create_lite(name, weights=weights, side=side)
    if library in ("torchvision", "timm") and rest:
        create = create_torchvision if library == "torchvision" else create_timm
        return create(rest, weights=weights, side=side)
    raise InvalidSettings(
        f"model.backbone: expected {', '.join(LITE)}, torchvision/NAME or timm/NAME, found {name!r}"
        + suggestion(name, LITE)
    )
