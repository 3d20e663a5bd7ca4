"""Linear, MLP and BN-neck."""

import pytest
import torch
from torch import nn

from training.config import ModelConfig
from training.model.pooling_and_head import create_head


def test_a_linear_head_is_one_layer() -> None:
    head = create_head(ModelConfig(head="linear", dimension=3), 5)
    assert {name: tuple(value.shape) for name, value in head.state_dict().items()} == {"weight": (3, 5), "bias": (3,)}


def test_an_mlp_head_has_one_hidden_layer() -> None:
    torch.manual_seed(0)
    head = create_head(ModelConfig(head="mlp", hidden=7, dimension=3), 5)
    features = torch.randn(4, 5)
    first, second = head[0], head[2]
    expected = (features @ first.weight.T + first.bias).clamp(min=0) @ second.weight.T + second.bias
    torch.testing.assert_close(head(features), expected)
    assert first.weight.shape == (7, 5)


def test_a_bnneck_normalises_by_the_batch_and_has_no_shift() -> None:
    torch.manual_seed(0)
    head = create_head(ModelConfig(head="bnneck", dimension=3), 5).train()
    features = 10 * torch.randn(64, 5) + 100
    scaled = (features - features.mean(dim=0)) / (features.var(dim=0, unbiased=False) + 1e-5).sqrt()
    torch.testing.assert_close(head(features), scaled @ head[1].weight.T, atol=1e-4, rtol=1e-4)
    assert [name for name, parameter in head.named_parameters() if parameter.requires_grad] == ["0.weight", "1.weight"]
    assert isinstance(head[0], nn.BatchNorm1d)
    assert not head[0].bias.any()


@pytest.mark.parametrize("name", ["linear", "mlp", "bnneck"])
def test_at_inference_a_row_does_not_depend_on_the_batch(name: str) -> None:
    torch.manual_seed(0)
    head = create_head(ModelConfig(head=name, hidden=7, dimension=3), 5)
    head.train()(torch.randn(8, 5))  # moves running statistics, where there are any
    head.eval()
    features = torch.randn(6, 5)
    torch.testing.assert_close(head(features)[2:3], head(features[2:3]))
