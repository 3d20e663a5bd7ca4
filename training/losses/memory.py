"""Embeddings of earlier batches, kept to be paired with the present one.

Decides which rows are kept and for how long; leaves what the pairs are worth to the loss.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from retrieval.errors import InvalidInput


@dataclass(frozen=True, slots=True)
class Remembered:
    """embeddings [m, d] float32, without gradient; labels [m] int64."""

    embeddings: Tensor
    labels: Tensor


class CrossBatchMemory(nn.Module):
    """The last `size` rows that were added, the oldest overwritten first.

    All of its state is in `state_dict`. It holds the same on every process if each adds the batch of all of them.

    Source: Wang et al., "Cross-GatheredBatch Memory for Embedding Learning", CVPR 2020.
    """

    def __init__(self, size: int, dimension: int) -> None:
        super().__init__()
        self.register_buffer("embeddings", torch.zeros(size, dimension))
        self.register_buffer("labels", torch.full((size,), -1))
        self.embeddings: Tensor
        self.labels: Tensor
        # A plain number, so that no step waits for a device to tell it.
        self._n_added = 0

    @property
    def remembered(self) -> Remembered:
        """What has been added and not yet overwritten, in no particular order; copies, and no rows at first."""
        filled = min(self._n_added, len(self.labels))
        return Remembered(self.embeddings[:filled].clone(), self.labels[:filled].clone())

    @torch.no_grad()
    def add(self, embeddings: Tensor, labels: Tensor) -> None:
        """Keep embeddings [n, d], raised or lowered to float32, and labels [n] int64; of more than `size`, the last.

        Raises InvalidInput where labels and embeddings do not fit each other, or the memory.
        """
        size, dimension = self.embeddings.shape
        if labels.dtype != torch.int64 or labels.shape != embeddings.shape[:1] or embeddings.shape[1:] != (dimension,):
            raise InvalidInput(
                f"cross-batch memory: expected embeddings [n, {dimension}] and labels [n] int64, "
                f"found {list(embeddings.shape)} and {list(labels.shape)} {labels.dtype}"
            )
        n_kept = min(len(labels), size)
        first = self._n_added + len(labels) - n_kept
        places = (first + torch.arange(n_kept, device=labels.device)) % size
        self.embeddings[places] = embeddings[len(labels) - n_kept :].to(self.embeddings.dtype)
        self.labels[places] = labels[len(labels) - n_kept :]
        self._n_added += len(labels)

    def get_extra_state(self) -> Any:
        """How many rows were ever added: with the buffers the whole state."""
        return self._n_added

    def set_extra_state(self, state: Any) -> None:
        """Take over what `get_extra_state` gave."""
        self._n_added = int(state)
