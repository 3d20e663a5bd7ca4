"""Unit rows, what is pooled, which batch norms move, and that the whole can be exported."""

import pytest
import torch

from retrieval.errors import InvalidSettings
from training.config import InputConfig, ModelConfig
from training.model import Embedder, create_embedder
from training.model.embedder import unit_rows

SMALL = InputConfig(resize=32, crop=32)


def embedder_of(backbone: str = "timm/test_resnet", **options: object) -> Embedder:
    torch.manual_seed(0)
    return create_embedder(ModelConfig(backbone=backbone, weights="random", dimension=8, **options), SMALL)[0]


def test_a_zero_row_stays_zero_and_passes_no_gradient() -> None:
    rows = torch.tensor([[3.0, 4.0], [0.0, 0.0], [1e-15, 0.0]], requires_grad=True)
    unit = unit_rows(rows)
    unit.sum().backward()
    torch.testing.assert_close(unit.detach(), torch.tensor([[0.6, 0.8], [0.0, 0.0], [1.0, 0.0]]))
    assert rows.grad is not None
    torch.testing.assert_close(rows.grad[0], torch.tensor([0.032, -0.024]))
    assert not rows.grad[1].any()


def test_rows_are_normalised_in_float32() -> None:
    half = unit_rows(torch.full((1, 4), 60000.0, dtype=torch.float16))  # their squares are beyond float16
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, torch.full((1, 4), 0.5))


@pytest.mark.parametrize(
    ("backbone", "native", "pooled"),
    [
        ("efficientnet-lite0", 1280, 1280),
        ("torchvision/resnet18", 512, 512),
        ("torchvision/mobilenet_v3_small", 1024, 576),
        ("timm/mobilenetv3_small_050", 1024, 288),
        ("timm/test_vit", 64, 64),
        ("timm/test_mambaout", 256, 64),
    ],
)
def test_average_and_gem_pool_the_last_map_of_every_family(backbone: str, native: int, pooled: int) -> None:
    """Channels are pooled, not places, whichever order the library keeps them in; all that is left learns."""
    pixels = torch.randn(2, 3, 32, 32)
    assert embedder_of(backbone).eval().features(pixels).shape == (2, native)
    for pooling in ("average", "gem"):
        embedder = embedder_of(backbone, pooling=pooling)
        assert embedder.features(pixels).shape == (2, pooled)
        (embedder(pixels) * torch.randn(2, 8)).sum().backward()
        assert all(p.grad is not None for p in embedder.parameters() if p.requires_grad)


def test_average_pooling_of_a_residual_network_is_its_own() -> None:
    native, average = embedder_of(), embedder_of(pooling="average")
    pixels = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(native.eval()(pixels), average.eval()(pixels))
    assert native.state_dict().keys() == average.state_dict().keys()


def test_the_class_token_is_not_pooled() -> None:
    embedder = embedder_of("timm/test_vit", pooling="average").eval()
    pixels = torch.randn(2, 3, 32, 32)
    tokens = embedder.backbone.forward_features(pixels)
    assert tokens.shape == (2, 1 + 4, 64)
    torch.testing.assert_close(embedder.features(pixels), tokens[:, 1:].mean(dim=1))


@pytest.mark.parametrize("backbone", ["torchvision/squeezenet1_1", "timm/pit_ti_224", "timm/coat_tiny"])
def test_a_backbone_without_one_map_cannot_be_pooled_otherwise(backbone: str) -> None:
    with pytest.raises(InvalidSettings, match=r'model.pooling: .*use pooling = "native"'):
        embedder_of(backbone, pooling="gem")


def test_batch_norms_keep_their_statistics_unless_told() -> None:
    for batch_norm, moves in (("frozen", False), ("trained", True)):
        embedder = embedder_of(batch_norm=batch_norm, frozen=("layer1",))
        before = {key: value.clone() for key, value in embedder.state_dict().items() if "running_mean" in key}
        embedder.train()(torch.randn(4, 3, 32, 32))
        moved = {key for key, value in before.items() if not torch.equal(value, embedder.state_dict()[key])}
        assert any(key.startswith("backbone.layer2") for key in moved) is moves
        assert not any(key.startswith("backbone.layer1") for key in moved)  # frozen parameters, frozen statistics
        assert embedder.training


def test_the_norm_of_a_bnneck_learns_its_statistics_beside_frozen_ones() -> None:
    embedder = embedder_of(head="bnneck")
    embedder.train()(torch.randn(4, 3, 32, 32))
    assert embedder.head[0].running_mean.abs().sum() > 0
    assert embedder.dimension == 8
    assert embedder.device == torch.device("cpu")


@pytest.mark.parametrize("channels_last", [True, False])
def test_the_layout_changes_nothing_but_the_layout(channels_last: bool) -> None:
    pixels = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    embedder = embedder_of(channels_last=channels_last).eval()
    weight = embedder.backbone.get_parameter("layer4.0.conv1.weight")
    assert weight.is_contiguous(memory_format=torch.channels_last) is channels_last
    torch.testing.assert_close(embedder(pixels), embedder_of(channels_last=not channels_last).eval()(pixels))


@pytest.mark.slow
def test_every_part_is_exported_for_any_size_of_batch() -> None:
    embedder = embedder_of(pooling="gem", head="bnneck").eval()
    pixels = torch.randn(5, 3, 32, 32)
    program = torch.export.export(embedder, (pixels[:2],), dynamic_shapes=({0: torch.export.Dim("batch")},))
    for n in (1, 5):
        torch.testing.assert_close(program.module()(pixels[:n]), embedder(pixels[:n]))


def test_a_side_that_a_network_cannot_take_is_named() -> None:
    with pytest.raises(InvalidSettings, match=r"input.crop: this backbone does not take 33 x 33 pixels"):
        create_embedder(ModelConfig(backbone="timm/crossvit_tiny_240", weights="random"), InputConfig(crop=33))
