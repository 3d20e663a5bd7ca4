"""Backbones by name, freezing, unit norm."""

import pytest
import torch
from torch import nn

from retrieval.errors import InvalidSettings
from training.config import InputConfig, ModelConfig
from training.model import create_backbone, create_embedder, freeze

SMALL = InputConfig(resize=32, crop=32)


@pytest.mark.parametrize(
    ("name", "n_features"),
    [
        ("efficientnet-lite0", 1280),
        ("torchvision/mobilenet_v3_small", 1024),
        ("torchvision/resnet18", 512),
        ("timm/mobilenetv3_small_050", 1024),
        ("timm/resnet10t", 512),
        ("timm/vit_tiny_patch16_224", 192),
    ],
)
def test_a_backbone_gives_an_embedder_of_unit_rows(name: str, n_features: int) -> None:
    config = ModelConfig(backbone=name, weights="random", dimension=8)
    embedder, preprocessing = create_embedder(config, SMALL)
    rows = embedder.eval()(torch.randn(3, 3, 32, 32))
    assert embedder.head.in_features == n_features
    assert rows.shape == (3, 8)
    torch.testing.assert_close(rows.norm(dim=1), torch.ones(3))
    assert all(100 < mean < 130 for mean in preprocessing.mean)


def test_packaged_weights_are_loaded() -> None:
    """Pretrained weights are the same at every load; random ones differ from them."""
    first = create_backbone("efficientnet-lite0", weights="pretrained", side=32).network
    second = create_backbone("efficientnet-lite0", weights="pretrained", side=32).network
    untrained = create_backbone("efficientnet-lite0", weights="random", side=32).network
    key = "blocks.3._expand_conv.weight"
    assert torch.equal(first.state_dict()[key], second.state_dict()[key])
    assert not torch.equal(first.state_dict()[key], untrained.state_dict()[key])


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("efficientnet-light0", "did you mean efficientnet-lite0"),
        ("torchvision/resnet5", "torchvision has no model 'resnet5'; did you mean resnet50"),
        ("timm/resnet5", "timm has no model 'resnet5'; did you mean resnet50"),
        ("timm/resnet18.a1_in2k", "timm has no weights 'a1_in2k' of resnet18, only .*; did you mean a1_in1k"),
        (
            "resnet50",
            "expected efficientnet-lite0, efficientnet-lite1, efficientnet-lite2, torchvision/NAME or timm/NAME",
        ),
    ],
)
def test_an_unknown_backbone_is_answered_with_the_nearest(name: str, expected: str) -> None:
    with pytest.raises(InvalidSettings, match=expected):
        create_backbone(name, weights="random", side=32)


def test_frozen_names_cover_modules_and_parameters() -> None:
    network = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    freeze(network, ["0", "1.bias"])
    assert [name for name, parameter in network.named_parameters() if parameter.requires_grad] == ["1.weight"]


def test_a_frozen_name_that_matches_nothing_is_refused() -> None:
    """ "1" must not freeze "10" as well, so a part of a name is not enough."""
    config = ModelConfig(weights="random", frozen=("block.1",))
    with pytest.raises(
        InvalidSettings, match=r"'block\.1' names no parameter and no module with parameters; did you mean blocks\.1"
    ):
        create_embedder(config, SMALL)


def test_batch_norms_keep_their_statistics_in_training() -> None:
    embedder, _ = create_embedder(ModelConfig(weights="random"), SMALL)
    before = {key: value.clone() for key, value in embedder.state_dict().items() if "running" in key}
    embedder.train()(torch.randn(4, 3, 32, 32))
    assert before
    assert all(torch.equal(value, embedder.state_dict()[key]) for key, value in before.items())
    assert embedder.training
