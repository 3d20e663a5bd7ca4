"""Average and generalised mean over maps and tokens; linear, MLP and BN-neck heads."""

import pytest
import torch
from torch import Tensor, nn

from retrieval.errors import InvalidSettings
from training.config import ModelConfig
from training.model.pooling_and_head import Average, GeM, create_head

TOKENS = torch.tensor([[[1.0, 4.0], [3.0, 0.0], [2.0, 8.0]]])  # [1, 3, 2]
MAP = TOKENS.transpose(1, 2).reshape(1, 2, 3, 1)


@pytest.mark.parametrize("features", [TOKENS, MAP], ids=["tokens", "map"])
@pytest.mark.parametrize(
    ("pool", "expected"),
    [
        (Average(), [2.0, 4.0]),
        (GeM(p=1.0), [2.0, 4.0]),
        (GeM(p=2.0), [(14 / 3) ** 0.5, (80 / 3) ** 0.5]),
        (GeM(p=3.0), [12 ** (1 / 3), 192 ** (1 / 3)]),
        (GeM(p=2000.0), [3.0, 8.0]),
    ],
)
def test_every_channel_is_pooled_over_all_places(features: Tensor, pool: nn.Module, expected: list[float]) -> None:
    torch.testing.assert_close(pool(features), torch.tensor([expected]), atol=5e-3, rtol=0)


def test_the_gradients_of_gem_are_those_of_its_formula() -> None:
    """Its division by the largest value must not show in them."""
    features = torch.rand(2, 3, 4, generator=torch.Generator().manual_seed(0)) + 0.1
    weights = torch.tensor([[1.0, 2.0, 3.0, 4.0], [-1.0, 1.0, 0.5, 2.0]])
    pool = GeM(p=2.5)
    ours, plain, p = features.clone().requires_grad_(), features.clone().requires_grad_(), torch.tensor([2.5])
    p.requires_grad_()
    (pool(ours) * weights).sum().backward()
    (plain.pow(p).mean(dim=1).pow(1 / p) * weights).sum().backward()
    torch.testing.assert_close(ours.grad, plain.grad)
    torch.testing.assert_close(pool.p.grad, p.grad)
    assert pool.p.grad.abs() > 0.01


def test_gem_of_large_small_and_negative_features_is_finite() -> None:
    features = torch.tensor([[[1e30, 0.0, -5.0], [1e30, 0.0, -1.0]]], requires_grad=True)
    pool = GeM(p=50.0)
    pooled = pool(features)
    pooled.sum().backward()
    torch.testing.assert_close(pooled[0], torch.tensor([1e30, 1e-6, 1e-6]))
    assert features.grad is not None
    assert torch.isfinite(features.grad).all()
    assert torch.isfinite(pool.p.grad).all()


def test_rows_that_are_pooled_already_are_refused() -> None:
    with pytest.raises(InvalidSettings, match=r"a map \[n, c, h, w\] or tokens \[n, t, c\].*found shape \[2, 5\]"):
        GeM()(torch.ones(2, 5))


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
