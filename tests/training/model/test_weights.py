"""Weights from local files: what fits, and how what does not is answered."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from retrieval.errors import InvalidSettings
from training.config import InputConfig, ModelConfig
from training.model import Embedder, create_backbone, create_embedder
from training.model.torchvision_models import resize_transformer
from training.model.weights import load_state, read_state

SMALL = InputConfig(resize=32, crop=32)
RESNET = "timm/test_resnet"


def network(*, seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(2, 3))


def own_state() -> dict[str, torch.Tensor]:
    return dict(network(seed=1).state_dict())


@pytest.mark.parametrize("prefix", ["", "module.", "backbone.", "module.encoder."])
def test_a_common_prefix_is_taken_off(prefix: str) -> None:
    target, state = network(), own_state()
    beside = {"head.weight": torch.ones(1)} if prefix else {}
    load_state(target, {prefix + key: value for key, value in state.items()} | beside, source="file")
    assert all(torch.equal(value, state[key]) for key, value in target.state_dict().items())


def test_the_classifier_of_the_network_and_counters_are_not_missed() -> None:
    target, state = network(), own_state()
    del state["1.num_batches_tracked"]
    load_state(target, state | {"fc.weight": torch.ones(5, 5)}, source="file", classifiers=("fc",))
    assert torch.equal(target[3].weight, state["3.weight"])


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"3.weight": None}, r"^model.weights: some.pth lacks 3.weight$"),
        ({"3.weight": None, "3.weights": (3, 2)}, r"lacks 3.weight; did you mean 3.weights.*; also has 3.weights"),
        ({"3.weight": (4, 2)}, r"has 1 of another shape, 3.weight \[4, 2\] instead of \[3, 2\].*input.crop"),
        ({"3.extra": (1,)}, r"^model.weights: some.pth also has 3.extra$"),
        ({"fc.weight": (1,), "fc.bias": (1,)}, r"also has fc.weight, fc.bias: if fc are heads .* drop them"),
        (
            dict.fromkeys(["0.weight", "0.bias", "1.weight", "1.bias", "1.running_mean"]) | {"stem.weight": (1,)},
            r"holds another architecture: 4 of 9 weights fit; it has .*, the backbone 0.weight, 0.bias, 1.weight and",
        ),
    ],
)
def test_what_does_not_fit_is_named_and_nothing_is_loaded(
    change: dict[str, tuple[int, ...] | None], expected: str
) -> None:
    target, before, state = network(), network().state_dict(), own_state()
    for key, shape in change.items():
        state.pop(key, None)
        if shape is not None:
            state[key] = torch.ones(shape)
    with pytest.raises(InvalidSettings, match=expected):
        load_state(target, state, source="some.pth")
    assert all(torch.equal(value, before[key]) for key, value in target.state_dict().items())


@pytest.mark.parametrize("wrapper", [None, "state_dict", "model", "embedder"])
def test_files_of_training_programs_are_unwrapped(wrapper: str | None, tmp_path: Path) -> None:
    state = own_state()
    torch.save(state if wrapper is None else {wrapper: state, "step": 3}, tmp_path / "file.pt")
    assert read_state(str(tmp_path / "file.pt")).keys() == state.keys()


def test_safetensors_are_read(tmp_path: Path) -> None:
    save_file(own_state(), tmp_path / "file.safetensors")
    assert read_state(str(tmp_path / "file.safetensors")).keys() == own_state().keys()


def test_files_that_hold_no_state_are_refused(tmp_path: Path) -> None:
    for name, content in {
        "code.pt": network(),  # a whole module: reading it would run code
        "number.pth": 3,
        "empty.pt": {"step": 3},
        "numbered.pt": {0: torch.zeros(2)},
    }.items():
        torch.save(content, tmp_path / name)
    (tmp_path / "cut.safetensors").write_bytes(b"\x08")
    (tmp_path / "cut.pt").write_bytes(b"PK")
    for name, expected in {
        "code.pt": "cannot be read as tensors only",
        "number.pth": "holds no named tensors",
        "empty.pt": "holds no named tensors, but step",
        "numbered.pt": "holds no named tensors, but 0",
        "cut.safetensors": "not a complete safetensors file",
        "cut.pt": "cannot be read as tensors only",
        "absent.pt": "does not exist",
        "weights.onnx": 'expected "pretrained", "random" or a .pt, .pth or .safetensors file',
    }.items():
        with pytest.raises(InvalidSettings, match=expected):
            read_state(str(tmp_path / name))
    with pytest.raises(InvalidSettings, match="did you mean pretrained"):
        read_state("pretrain")


@pytest.mark.parametrize("backbone", [RESNET, "torchvision/resnet18", "efficientnet-lite0", "timm/test_vit"])
def test_a_run_starts_from_the_checkpoint_of_another(backbone: str, tmp_path: Path) -> None:
    first = embedder(backbone, "random")
    torch.save({"step": 1, "embedder": first.state_dict()}, tmp_path / "checkpoint.pt")
    second = embedder(backbone, str(tmp_path / "checkpoint.pt"))
    theirs = second.backbone.state_dict()
    assert all(torch.equal(value, theirs[key]) for key, value in first.backbone.state_dict().items())


def test_a_file_with_a_classifier_fits_its_backbone(tmp_path: Path) -> None:
    import timm
    from efficientnet_lite_pytorch import EfficientNet
    from torchvision import models

    for name, whole in {
        RESNET: timm.create_model("test_resnet"),
        "torchvision/resnet18": models.resnet18(),
        "efficientnet-lite0": EfficientNet.from_name("efficientnet-lite0"),
    }.items():
        torch.save(whole.state_dict(), tmp_path / "whole.pth")
        backbone = create_backbone(name, weights=str(tmp_path / "whole.pth"), side=32).network
        ours = next(value for value in backbone.parameters() if value.ndim == 4)
        assert torch.equal(ours, next(value for value in whole.parameters() if value.ndim == 4))


def test_a_file_of_another_architecture_is_refused(tmp_path: Path) -> None:
    torch.save(
        create_backbone("torchvision/resnet18", weights="random", side=32).network.state_dict(), tmp_path / "18.pt"
    )
    with pytest.raises(InvalidSettings, match=r"18.pt holds another architecture: \d+ of \d+ weights fit"):
        create_backbone("timm/mobilenetv3_small_050", weights=str(tmp_path / "18.pt"), side=32)


def test_positions_of_a_file_are_interpolated_to_another_side(tmp_path: Path) -> None:
    name = "timm/test_vit"
    whole = create_backbone(name, weights="random", side=160).network
    torch.save(whole.state_dict(), tmp_path / "vit.pt")
    backbone = create_backbone(name, weights=str(tmp_path / "vit.pt"), side=64).network
    assert backbone(torch.zeros(1, 3, 64, 64)).shape == (1, 64)
    key = "blocks.3.attn.qkv.weight"
    assert torch.equal(backbone.state_dict()[key], whole.state_dict()[key])


def test_a_transformer_of_torchvision_takes_another_side() -> None:
    from torchvision.models import VisionTransformer

    transformer = VisionTransformer(
        image_size=32, patch_size=8, num_layers=1, num_heads=1, hidden_dim=4, mlp_dim=4, num_classes=2
    ).eval()
    with torch.no_grad():
        transformer.encoder.pos_embedding[:, 1:] = 7.0  # the same everywhere: interpolation keeps it
    resize_transformer(transformer, side=64)
    assert transformer(torch.zeros(1, 3, 64, 64)).shape == (1, 2)
    torch.testing.assert_close(transformer.encoder.pos_embedding[:, 1:], torch.full((1, 64, 4), 7.0))
    with pytest.raises(InvalidSettings, match=r"input.crop: this backbone takes multiples of 8, found 36"):
        resize_transformer(transformer, side=36)


def embedder(backbone: str, weights: str) -> Embedder:
    return create_embedder(ModelConfig(backbone=backbone, weights=weights, dimension=8), SMALL)[0]
