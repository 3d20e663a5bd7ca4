"""Margins that follow what the model can do: fixed ones, running quantiles, or a way from its own to the target.

Decides where the margins are at a step; leaves what they do to the loss.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from training.config import MarginConfig

# Quantiles are those of the first rows of larger batches: sorting all their pairs would take longer than the loss.
_ROWS = 512


class AdaptiveMargins(nn.Module):
    """The margins of one step after the other, as the section `loss.tcm` of the configuration describes them.

    All of the state is in `state_dict`: the running quantiles, or those of the first step; what is not
    known is infinite, which unlike NaN equals itself.

    Source: Zhang et al., ICLR 2024 (arXiv 2307.04047), propose margins that adapt as an extension for shifted data.
    """

    def __init__(self, config: MarginConfig, *, steps: int) -> None:
        super().__init__()
        self._config = config
        self._last_step = max(steps - 1, 1)
        self.register_buffer("quantiles", torch.full((2,), torch.inf))
        self.quantiles: Tensor

    @torch.no_grad()
    def forward(self, embeddings: Tensor, labels: Tensor, *, step: int) -> tuple[Tensor, Tensor]:
        """The margins of positives and negatives at `step` (from 0), [] float32, and in training mode the new state.

        embeddings: [n, d] floating, unit rows; labels: [n]; the same on every process. A side whose quantile is
        not known, because no batch had a pair of it, has the margin of the configuration.
        """
        config = self._config
        targets = self.quantiles.new_tensor([config.positive_margin, config.negative_margin])
        if config.margins == "fixed":
            return targets[0], targets[1]
        quantiles = self._quantiles_at(embeddings, labels, step)
        if self.training:
            self.quantiles.copy_(quantiles)
        quantiles = torch.where(quantiles.isinf(), targets, quantiles)
        if config.margins == "schedule":
            quantiles = torch.lerp(quantiles, targets, min(step / self._last_step, 1.0))
        return quantiles[0], quantiles[1]

    def _quantiles_at(self, embeddings: Tensor, labels: Tensor, step: int) -> Tensor:
        old = self.quantiles
        if self._config.margins == "schedule" and step > 0:
            return old
        new = similarity_quantiles(
            embeddings, labels, positive=self._config.positive_quantile, negative=self._config.negative_quantile
        )
        if self._config.margins == "quantiles":
            new = torch.where(old.isinf(), new, torch.lerp(new, old, self._config.momentum))
        return torch.where(new.isnan(), old, new)


def similarity_quantiles(embeddings: Tensor, labels: Tensor, *, positive: float, negative: float) -> Tensor:
    """Two quantiles, [2] float32: of similarities of positive pairs, and of negative pairs; NaN for a side without any.

    embeddings: [n, d] floating, unit rows; labels: [n]. Interpolated linearly between neighbours; of batches of more
    than 512 rows, over the pairs of the first 512.

    >>> rows = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0], [-1.0, 0.0]])
    >>> similarity_quantiles(rows, torch.tensor([0, 0, 0, 1]), positive=0.5, negative=0.5).tolist()
    [0.6, -0.6]
    """
    rows, labels = embeddings[:_ROWS].float(), labels[:_ROWS]
    similarities = rows @ rows.T
    same = labels[:, None] == labels
    once = torch.ones_like(same).triu_(1)
    # Missing values keep the shape fixed, so that no step waits for a device to count pairs.
    sides = [torch.where(mask, similarities, torch.nan).flatten() for mask in (same & once, ~same & once)]
    return torch.stack(
        [torch.nanquantile(side, share) for side, share in zip(sides, (positive, negative), strict=True)]
    )
