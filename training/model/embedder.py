"""The embedder: a backbone, a pooling, a head, unit norm."""

from typing import Literal

import torch
from torch import Tensor, nn

from retrieval.errors import InvalidSettings
from training.config import ModelConfig
from training.model.backbone import Backbone
from training.model.pooling_and_head import create_head, create_pooling


class Embedder(nn.Module):
    """pixels [n, 3, h, w], normalised -> embeddings [n, d] float32, unit rows.

    A row that is zero before its normalisation stays zero and passes on no gradient: it has no direction, and the
    production encoder rejects it.
    """

    def __init__(self, backbone: Backbone, config: ModelConfig, *, crop: int) -> None:
        super().__init__()
        self.dimension = config.dimension
        self._batch_norm: Literal["frozen", "trained"] = config.batch_norm
        if config.pooling != "native" and backbone.to_map is None:
            raise InvalidSettings(
                f'model.pooling: {config.backbone} has no known feature map to pool: use pooling = "native"'
            )
        self.backbone = backbone.network
        self._to_map = None if config.pooling == "native" else backbone.to_map
        self.pooling = nn.Identity() if config.pooling == "native" else create_pooling(config.pooling)
        self.head = create_head(config, self._count_features(crop))
        self.train()

    @property
    def device(self) -> torch.device:
        """Return the device of its parameters."""
        return next(self.head.parameters()).device

    def features(self, pixels: Tensor) -> Tensor:
        """Compute the features, [n, f], which are the input of the head."""
        features: Tensor = self.backbone(pixels) if self._to_map is None else self._to_map(self.backbone, pixels)
        pooled: Tensor = self.pooling(features)
        return pooled

    def embed_features(self, features: Tensor) -> Tensor:
        """Embed features [n, f]."""
        return unit_rows(self.head(features))

    def forward(self, pixels: Tensor) -> Tensor:
        """Embed pixels."""
        return self.embed_features(self.features(pixels))

    def train(self, mode: bool = True) -> "Embedder":
        """Switch training mode as any module does, but keep the pretrained statistics of the backbone's batch norms.

        A batch of few classes would shift them, and with them all similarities. With batch_norm = "trained" only batch
        norms with frozen parameters keep their statistics.
        """
        super().train(mode)
        for module in batch_norms(self.backbone):
            if self._batch_norm == "frozen" or not any(p.requires_grad for p in module.parameters()):
                module.eval()
        return self

    def _count_features(self, crop: int) -> int:
        """Count the features by a forward pass, because the numbers declared by libraries are wrong for some models."""
        self.eval()
        try:
            with torch.no_grad():
                features = self.features(torch.zeros(1, 3, crop, crop))
        except (AssertionError, RuntimeError) as error:  # networks reject a shape with one of the two
            raise InvalidSettings(f"input.crop: this backbone does not take {crop} x {crop} pixels: {error}") from error
        if features.ndim != 2:
            raise InvalidSettings(f"model.backbone: expected features [n, f], found shape {list(features.shape)}")
        return int(features.shape[1])


def unit_rows(rows: Tensor) -> Tensor:
    """Divide the rows [n, d] by their norms, in float32 or better; zero rows stay zero, with a gradient of 0.

    >>> unit_rows(torch.tensor([[3.0, 4.0], [0.0, 0.0]])).tolist()
    [[0.6, 0.8], [0.0, 0.0]]
    """
    rows = rows if rows.dtype == torch.float64 else rows.float()
    norms: Tensor = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
    return rows / norms.masked_fill(norms == 0, torch.inf)


def batch_norms(network: nn.Module) -> list[nn.Module]:
    """Return the batch norms inside a network, of any number of dimensions."""
    return [module for module in network.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
