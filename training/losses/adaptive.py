"""The margins of TCM at each step: fixed, running quantiles of the model, or a schedule from these to the target.

Decides the values of the margins; `margin.py` computes the loss.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from training.config import MarginConfig

# Quantiles of larger batches use their first rows only: sorting all pairs would take longer than the loss.
_ROWS = 512


class AdaptiveMargins(nn.Module):
    """The margins of each step, as described by the section `loss.tcm` of the configuration.

    The whole state is in `state_dict`: the running quantiles, or those of the first step. An unknown quantile is
    infinite, which, unlike NaN, equals itself.

    Source: Zhang et al., ICLR 2024 (arXiv 2307.04047), propose margins that adapt as an extension for shifted data.
    """

    def __init__(self, config: MarginConfig, *, steps: int) -> None:
        super().__init__()
        self._config = config
        self._last_step = max(steps - 1, 1)
        self.register_buffer("quantiles", torch.full((2,), torch.inf))
        self.quantiles: Tensor

    @torch.no_grad()
    def forward(
        self, embeddings: Tensor, labels: Tensor, *, step: int, offsets: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return the margins of positives and negatives at `step` (from 0), [] float32; in training, update the state.

        embeddings: [n, d] floating, unit rows; labels: [n]; the same on every process. offsets: [n], subtracted from
        the similarity of a pair at both ends. If no batch has had a positive (or negative) pair yet, its margin is that
        of the configuration.
        """
        config = self._config
        targets = self.targets
        if config.margins == "fixed":
            return targets[0], targets[1]
        quantiles = self._quantiles_at(embeddings, labels, step, offsets)
        if self.training:
            self.quantiles.copy_(quantiles)
        quantiles = torch.where(quantiles.isinf(), targets, quantiles)
        if config.margins == "schedule":
            quantiles = torch.lerp(quantiles, targets, min(step / self._last_step, 1.0))
        return quantiles[0], quantiles[1]

    @property
    def targets(self) -> Tensor:
        """Return the margins of the configuration, positive and negative, [2] float32."""
        return self.quantiles.new_tensor([self._config.positive_margin, self._config.negative_margin])

    def _quantiles_at(self, embeddings: Tensor, labels: Tensor, step: int, offsets: Tensor | None) -> Tensor:
        old = self.quantiles
        if self._config.margins == "schedule" and step > 0:
            return old
        new = similarity_quantiles(
            embeddings,
            labels,
            positive=self._config.positive_quantile,
            negative=self._config.negative_quantile,
            offsets=offsets,
        )
        if self._config.margins == "quantiles":
            new = torch.where(old.isinf(), new, torch.lerp(new, old, self._config.momentum))
        return torch.where(new.isnan(), old, new)


def similarity_quantiles(
    embeddings: Tensor, labels: Tensor, *, positive: float, negative: float, offsets: Tensor | None = None
) -> Tensor:
    """Return two quantiles, [2] float32: of the similarities of positive and of negative pairs; NaN without such pairs.

    embeddings: [n, d] floating, unit rows; labels: [n]; offsets: [n], subtracted from the similarity of a pair at both
    ends. Quantiles are interpolated linearly. For a batch of more than 512 rows, only the pairs of the first 512 rows
    count.

    >>> rows = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0], [-1.0, 0.0]])
    >>> similarity_quantiles(rows, torch.tensor([0, 0, 0, 1]), positive=0.5, negative=0.5).tolist()
    [0.6, -0.6]
    """
    rows, labels = embeddings[:_ROWS].float(), labels[:_ROWS]
    similarities = rows @ rows.T
    if offsets is not None:
        similarities -= offsets[:_ROWS, None] + offsets[:_ROWS]
    same = labels[:, None] == labels
    once = torch.ones_like(same).triu_(1)
    # NaN in place of the other pairs keeps the shape fixed, so that the host need not wait for a count of pairs.
    sides = [torch.where(mask, similarities, torch.nan).flatten() for mask in (same & once, ~same & once)]
    return torch.stack(
        [torch.nanquantile(side, share) for side, share in zip(sides, (positive, negative), strict=True)]
    )
