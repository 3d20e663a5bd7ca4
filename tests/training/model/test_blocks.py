"""Activations computed twice give the gradients of activations kept."""

import copy

import pytest
import torch

from retrieval.errors import InvalidSettings
from training.config import InputConfig, ModelConfig
from training.model import Embedder, create_embedder

SMALL = InputConfig(resize=32, crop=32)


def embedder_of(backbone: str, *, twice: bool = True, **options: object) -> Embedder:
    torch.manual_seed(0)
    config = ModelConfig(backbone=backbone, weights="random", dimension=8, gradient_checkpointing=twice, **options)
    return create_embedder(config, SMALL)[0]


def gradients(embedder: Embedder) -> dict[str, torch.Tensor]:
    torch.manual_seed(1)  # for dropout and stochastic depth
    pixels = torch.randn(4, 3, 32, 32)
    (embedder(pixels) * torch.randn(4, 8)).sum().backward()
    return {name: p.grad for name, p in embedder.named_parameters() if p.grad is not None}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("backbone", "block"),
    [
        ("efficientnet-lite0", "blocks.3"),
        ("torchvision/resnet18", "layer2.0"),
        ("timm/test_vit", "blocks.3"),
        ("timm/test_resnet", "layer2.0"),
    ],
)
def test_gradients_are_equal_and_blocks_run_twice(backbone: str, block: str) -> None:
    plain, twice = embedder_of(backbone, twice=False), embedder_of(backbone)
    runs: list[bool] = []
    twice.backbone.get_submodule(block).register_forward_pre_hook(lambda *_: runs.append(torch.is_grad_enabled()))
    expected, found = gradients(plain), gradients(twice)
    assert len(runs) == 2
    assert expected.keys() == found.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, msg=name)
    assert plain.state_dict().keys() == twice.state_dict().keys()


def test_a_copy_runs_its_own_blocks() -> None:
    """A running mean of the weights is a deep copy."""
    embedder = embedder_of("torchvision/resnet18")
    copied = copy.deepcopy(embedder)
    with torch.no_grad():
        copied.backbone.get_parameter("layer4.1.bn2.weight").zero_()
    pixels = torch.randn(2, 3, 32, 32)
    assert not torch.allclose(embedder(pixels), copied(pixels))


def test_moving_statistics_would_move_twice() -> None:
    with pytest.raises(InvalidSettings, match=r'twice per step: use batch_norm = "frozen"'):
        embedder_of("timm/test_resnet", batch_norm="trained")
    assert embedder_of("timm/test_vit", batch_norm="trained")  # has none


@pytest.mark.parametrize("backbone", ["torchvision/googlenet", "timm/coat_tiny"])
def test_a_network_without_blocks_is_refused(backbone: str) -> None:
    with pytest.raises(InvalidSettings, match=r"no sequence of blocks"):
        embedder_of(backbone)
