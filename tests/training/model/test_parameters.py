"""Which parameters learn, and how fast."""

import itertools
import math

import pytest
import torch
from torch import nn

from training.config import InputConfig, ModelConfig, ScheduleConfig
from training.model import Embedder, create_backbone, create_embedder, parameter_groups
from training.model.blocks import parameter_levels

SMALL = InputConfig(resize=32, crop=32)
SCHEDULE = ScheduleConfig(learning_rate=1e-3, head_learning_rate=5e-3, weight_decay=0.02, layer_decay=0.5)


def embedder_of(backbone: str, **options: object) -> Embedder:
    return create_embedder(ModelConfig(backbone=backbone, weights="random", dimension=8, **options), SMALL)[0]


def settings_by_name(embedder: Embedder, schedule: ScheduleConfig = SCHEDULE) -> dict[str, tuple[float, float]]:
    """Peak learning rate and weight decay of each trained parameter."""
    groups = parameter_groups(embedder, schedule)
    torch.optim.AdamW(groups)  # refuses a parameter in two groups
    found = {id(p): (group["peak"], group["weight_decay"]) for group in groups for p in group["params"]}
    assert all(group["lr"] == group["peak"] for group in groups)
    return {name: found[id(p)] for name, p in embedder.named_parameters() if id(p) in found}


@pytest.mark.parametrize(
    ("backbone", "lowest_to_highest"),
    [
        ("efficientnet-lite0", ["stem.0.weight", *(f"blocks.{n}._bn2.weight" for n in range(16)), "top.0.weight"]),
        (
            "torchvision/resnet18",
            ["conv1.weight", *(f"layer{n}.{block}.conv1.weight" for n in (1, 2, 3, 4) for block in (0, 1))],
        ),
        ("timm/test_vit", ["cls_token", *(f"blocks.{n}.mlp.fc1.weight" for n in range(6))]),
    ],
)
def test_each_block_learns_more_slowly_than_the_next(backbone: str, lowest_to_highest: list[str]) -> None:
    found = settings_by_name(embedder_of(backbone))
    peaks = [found[f"backbone.{name}"][0] for name in lowest_to_highest]
    assert all(math.isclose(later, 2 * earlier) for earlier, later in itertools.pairwise(peaks))
    assert max(peak for name, (peak, _) in found.items() if name.startswith("backbone.")) == 1e-3
    assert found["head.weight"] == (5e-3, 0.02)


def test_where_there_are_no_blocks_each_layer_is_one() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4, 2))
    assert parameter_levels(network) == {
        "0.weight": 0,
        "0.bias": 0,
        "1.weight": 0,
        "1.bias": 0,
        "4.weight": 1,
        "4.bias": 1,
    }


def test_blocks_beside_each_other_in_the_network_are_levels_too() -> None:
    levels = parameter_levels(create_backbone("torchvision/googlenet", weights="random", side=64).network)
    assert max(levels.values()) == 11  # three convolutions of the stem, nine modules
    assert len({level for name, level in levels.items() if name.startswith("inception4a.")}) == 1


def test_vectors_positions_and_tokens_are_not_decayed() -> None:
    for backbone in ("timm/test_vit", "torchvision/resnet18"):
        found = settings_by_name(embedder_of(backbone))
        for name, (_, decay) in found.items():
            vector = name.endswith((".bias", "pos_embed", "cls_token")) or "norm" in name or ".bn" in name
            assert decay == (0.0 if vector or "downsample.1" in name else 0.02), name


def test_without_decay_of_layers_there_is_one_rate_for_each_part() -> None:
    embedder = embedder_of("timm/test_resnet", pooling="gem")
    groups = parameter_groups(embedder, ScheduleConfig())
    assert sorted((group["peak"], group["weight_decay"]) for group in groups) == [
        (1e-3, 0.0),
        (1e-3, 1e-2),
        (5e-3, 0.0),
        (5e-3, 1e-2),
    ]
    assert any(p is embedder.pooling.p for group in groups for p in group["params"] if group["peak"] == 5e-3)


def test_frozen_parameters_are_in_no_group() -> None:
    embedder = embedder_of("timm/test_resnet", frozen=("conv1", "layer1.0.bn1.weight"))
    found = settings_by_name(embedder)
    trained = {name for name, parameter in embedder.named_parameters() if parameter.requires_grad}
    assert found.keys() == trained
    assert {name for name, _ in embedder.named_parameters()} - trained == {
        "backbone.conv1.0.weight",
        "backbone.conv1.1.weight",
        "backbone.conv1.1.bias",
        "backbone.conv1.3.weight",
        "backbone.conv1.4.weight",
        "backbone.conv1.4.bias",
        "backbone.conv1.6.weight",
        "backbone.layer1.0.bn1.weight",
    }
