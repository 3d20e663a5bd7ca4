"""Average and generalised mean over maps and tokens."""

import pytest
import torch
from torch import Tensor, nn

from retrieval.errors import InvalidSettings
from training.model.pooling_and_head import Average, GeM

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
