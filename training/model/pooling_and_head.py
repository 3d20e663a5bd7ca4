"""From the features of a backbone to an embedding before its normalisation: the pooling, then the head.

At inference neither depends on the rest of the batch.
"""

import torch
from torch import Tensor, nn

from retrieval.errors import InvalidSettings
from training.config import ModelConfig

_SMALLEST = 1e-6  # a power of 0 has no gradient, and of a negative number no value


class Average(nn.Module):
    """Mean over all places. features: [n, c, h, w] or [n, t, c] -> [n, c]."""

    def forward(self, features: Tensor) -> Tensor:
        """The mean of each channel."""
        return _by_channel(features).mean(dim=2)


class GeM(nn.Module):
    """Generalised mean over all places, `mean(x^p)^(1/p)`, with a learnable p of at least 1: mean to maximum.

    features: [n, c, h, w] or [n, t, c] -> [n, c] float32, positive. Negative features count as (almost) 0, as in the
    source: it suits maps that end in a ReLU better than others.

    Source: Radenović et al., "Fine-tuning CNN Image Retrieval with No Human Annotation", TPAMI 2019, eq. 3.

    >>> GeM(p=2.0)(torch.tensor([[[[1.0, 7.0]]]])).item()
    5.0
    """

    def __init__(self, p: float = 3.0) -> None:
        super().__init__()
        self.p = nn.Parameter(torch.tensor([p]))

    def forward(self, features: Tensor) -> Tensor:
        """The generalised mean of each channel."""
        values = _by_channel(features).float().clamp(min=_SMALLEST)
        # Homogeneous in its input: dividing by the largest changes nothing but that no power overflows.
        largest = values.amax(dim=2, keepdim=True).detach()
        p = self.p.clamp(min=1.0)
        return (values / largest).pow(p).mean(dim=2).pow(1 / p) * largest.squeeze(2)


def create_pooling(name: str) -> nn.Module:
    """The pooling "average" or "gem"."""
    return GeM() if name == "gem" else Average()


def create_head(config: ModelConfig, n_features: int) -> nn.Module:
    """The head that the configuration names. features: [n, n_features] -> [n, config.dimension].

    "linear": one layer. "mlp": a hidden layer of `config.hidden`, ReLU, one more layer. "bnneck": batch norm, then a
    layer, both without shift, so that the embeddings lie around the origin, from where the cosine sees them; the loss
    acts behind the norm. In training it normalises by the batch, at inference by running statistics.

    Source of "bnneck": Luo et al., "Bag of Tricks and A Strong Baseline for Deep Person Re-identification", CVPRW
    2019, section 3.5; there the loss of triplets acts before the norm, here all losses see the one embedding served.
    """
    if config.head == "mlp":
        return nn.Sequential(
            nn.Linear(n_features, config.hidden), nn.ReLU(), nn.Linear(config.hidden, config.dimension)
        )
    if config.head == "bnneck":
        norm = nn.BatchNorm1d(n_features)
        norm.bias.requires_grad_(False)
        return nn.Sequential(norm, nn.Linear(n_features, config.dimension, bias=False))
    return nn.Linear(n_features, config.dimension)


def _by_channel(features: Tensor) -> Tensor:
    """[n, c, places], of a map or of tokens."""
    if features.ndim == 4:
        return features.flatten(2)
    if features.ndim == 3:
        return features.transpose(1, 2)
    raise InvalidSettings(
        f"model.pooling: expected a map [n, c, h, w] or tokens [n, t, c] of this backbone, found shape "
        f'{list(features.shape)}: use pooling = "native"'
    )
