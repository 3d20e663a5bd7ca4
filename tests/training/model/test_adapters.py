"""Low-rank adapters: what they train, that they are merged without a trace, and what they cannot be put on."""

import sys

import pytest
import torch

from retrieval.errors import InvalidSettings, Unavailable
from training.config import InputConfig, LoraConfig, ModelConfig, ScheduleConfig
from training.model import Embedder, create_embedder, merge_adapters, parameter_groups, restore_embedder

SMALL = InputConfig(resize=32, crop=32)
VIT = ModelConfig(
    backbone="timm/test_vit", weights="random", dimension=8, lora=LoraConfig(rank=2, targets=("qkv", "fc1"))
)
RESNET = ModelConfig(
    backbone="timm/test_resnet", weights="random", dimension=8, lora=LoraConfig(rank=2, targets=("downsample.1",))
)
PIXELS = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def trained(config: ModelConfig) -> Embedder:
    """After three steps, by which every adapter has left its start, where it adds nothing."""
    torch.manual_seed(0)
    embedder, _ = create_embedder(config, SMALL)
    optimizer = torch.optim.AdamW(parameter_groups(embedder, ScheduleConfig()), lr=1e-2)
    for _ in range(3):
        optimizer.zero_grad()
        (embedder(PIXELS) * torch.arange(32.0).reshape(4, 8)).sum().backward()
        optimizer.step()
    return embedder


@pytest.mark.slow
@pytest.mark.parametrize("config", [VIT, RESNET], ids=["linear", "convolution"])
def test_only_adapters_and_head_are_trained_and_the_restored_embedder_has_no_trace(config: ModelConfig) -> None:
    torch.manual_seed(0)
    start, embedder = create_embedder(config, SMALL)[0].state_dict(), trained(config)
    changed = {key for key, value in embedder.state_dict().items() if not torch.equal(value, start[key])}
    assert any(".lora_B." in key for key in changed)
    assert all(".lora_" in key or key.startswith("head.") for key in changed)

    restored, _ = restore_embedder(config, SMALL, embedder.state_dict())
    torch.testing.assert_close(restored(PIXELS), embedder.eval()(PIXELS), atol=1e-5, rtol=0)
    plain, _ = create_embedder(ModelConfig(backbone=config.backbone, weights="random", dimension=8), SMALL)
    assert restored.state_dict().keys() == plain.state_dict().keys()
    assert {type(module) for module in restored.modules()} == {type(module) for module in plain.modules()}
    assert not any("peft" in type(module).__module__ for module in restored.modules())


@pytest.mark.slow
def test_an_adapter_adds_nothing_before_it_is_trained() -> None:
    torch.manual_seed(0)
    with_adapters = create_embedder(VIT, SMALL)[0].eval()
    torch.manual_seed(0)
    without = create_embedder(ModelConfig(backbone=VIT.backbone, weights="random", dimension=8), SMALL)[0].eval()
    torch.testing.assert_close(with_adapters(PIXELS), without(PIXELS))
    merge_adapters(without.backbone)  # where there are none, nothing happens
    torch.testing.assert_close(with_adapters(PIXELS), without(PIXELS))


@pytest.mark.slow
def test_blocks_with_adapters_can_be_computed_twice_and_learn_by_level() -> None:
    from dataclasses import replace

    embedder = trained(replace(VIT, gradient_checkpointing=True))
    expected = trained(VIT).state_dict()
    for key, value in embedder.state_dict().items():
        torch.testing.assert_close(value, expected[key], msg=key)
    peaks = {group["peak"] for group in parameter_groups(embedder, ScheduleConfig(layer_decay=0.5))}
    assert len(peaks) == 6 + 1  # blocks and head


@pytest.mark.parametrize(
    ("backbone", "target", "expected"),
    [
        ("timm/test_vit", "fc3", r"is or ends with 'fc3'; did you mean fc[12]"),
        ("timm/test_vit", "kv", r"is or ends with 'kv'; did you mean qkv"),
        ("timm/test_resnet", "xyz", r"is or ends with 'xyz'; names that exist are, for instance, conv1.0, 0, "),
        ("efficientnet-lite0", "_depthwise_conv", r"no linear layer or ungrouped convolution"),
    ],
)
def test_a_target_that_names_nothing_is_answered_with_the_nearest(backbone: str, target: str, expected: str) -> None:
    config = ModelConfig(backbone=backbone, weights="random", lora=LoraConfig(rank=2, targets=(target,)))
    with pytest.raises(InvalidSettings, match=expected):
        create_embedder(config, SMALL)


def test_without_peft_its_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(Unavailable, match=r"pip install peft"):
        create_embedder(RESNET, SMALL)
