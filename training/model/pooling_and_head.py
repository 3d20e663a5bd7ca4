"""From the features of a backbone to an embedding before its normalisation: the pooling, then the head.

At inference neither depends on the rest of the batch.
"""

import torch
from torch import Tensor, nn

from retrieval.errors import InvalidSettings
from training.config import ModelConfig

_SMALLEST = 1e-6  # a power of 0 has no gradient, and a power of a negative number has no value


class Average(nn.Module):
    """Mean over all places. features: [n, c, h, w] or [n, t, c] -> [n, c]."""

    def forward(self, features: Tensor) -> Tensor:
        """Compute the mean of each channel."""
        return _by_channel(features).mean(dim=2)


class GeM(nn.Module):
    """Generalised mean over all places, `mean(x^p)^(1/p)`, with a learnable p of at least 1: mean to maximum.

    features: [n, c, h, w] or [n, t, c] -> [n, c] float32, positive. Negative features count as (almost) 0, as in the
    source: GeM suits feature maps that end with a ReLU.

    Source: Radenović et al., "Fine-tuning CNN Image Retrieval with No Human Annotation", TPAMI 2019, eq. 3.

    >>> GeM(p=2.0)(torch.tensor([[[[1.0, 7.0]]]])).item()
    5.0
    """

    def __init__(self, p: float = 3.0) -> None:
        super().__init__()
        self.p = nn.Parameter(torch.tensor([p]))

    def forward(self, features: Tensor) -> Tensor:
        """Compute the generalised mean of each channel."""
        values = _by_channel(features).float().clamp(min=_SMALLEST)
        # The mean is homogeneous: dividing by the largest value changes only that no power overflows.
        largest = values.amax(dim=2, keepdim=True).detach()
        p = self.p.clamp(min=1.0)
        return (values / largest).pow(p).mean(dim=2).pow(1 / p) * largest.squeeze(2)


def create_pooling(name: str) -> nn.Module:
    """Create the pooling "average" or "gem"."""
    return GeM() if name == "gem" else Average()


def create_head(config: ModelConfig, n_features: int) -> nn.Module:
    """Create the head of the configuration. features: [n, n_features] -> [n, config.dimension].

    "linear": one layer. "mlp": a hidden layer of size `config.hidden`, ReLU, a second layer. "bnneck": a batch norm,
    then a layer, both without shift, so that embeddings are centred at the origin, as the cosine needs. The batch norm
    uses the batch in training and running statistics at inference.

    Source of "bnneck": Luo et al., "Bag of Tricks and A Strong Baseline for Deep Person Re-identification", CVPRW
    2019, section 3.5. There the triplet loss acts before the norm; here all losses act on the embedding that is served.
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
    """Return [n, c, places] from a feature map or from tokens."""
    if features.ndim == 4:
        return features.flatten(2)
    if features.ndim == 3:
        return features.transpose(1, 2)
    raise InvalidSettings(
        f"model.pooling: expected a map [n, c, h, w] or tokens [n, t, c] of this backbone, found shape "
        f'{list(features.shape)}: use pooling = "native"'
    )
