"""Heads: from features to an embedding before its normalisation. At inference none depends on the rest of the batch."""

from torch import nn

from training.config import ModelConfig


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
