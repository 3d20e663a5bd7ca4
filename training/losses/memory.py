"""Embeddings of earlier batches, stored to be paired with the current batch.

Decides which rows are stored and for how long.
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

    The whole state is in `state_dict`. Every process holds the same rows if each adds the batch of all processes.

    Source: Wang et al., "Cross-Batch Memory for Embedding Learning", CVPR 2020.
    """

    def __init__(self, size: int, dimension: int) -> None:
        super().__init__()
        self.register_buffer("embeddings", torch.zeros(size, dimension))
        self.register_buffer("labels", torch.full((size,), -1))
        self.embeddings: Tensor
        self.labels: Tensor
        # A plain number, so that no step waits for a device.
        self._n_added = 0

    @property
    def n_remembered(self) -> int:
        """Return the number of rows in the memory, without waiting for a device."""
        return min(self._n_added, len(self.labels))

    @property
    def remembered(self) -> Remembered:
        """Return copies of the rows that were added and not yet overwritten, in no particular order."""
        filled = self.n_remembered
        return Remembered(self.embeddings[:filled].clone(), self.labels[:filled].clone())

    @torch.no_grad()
    def add(self, embeddings: Tensor, labels: Tensor) -> None:
        """Add embeddings [n, d], converted to float32, and labels [n] int64; of more than `size` rows, the last.

        Raises InvalidInput if labels and embeddings do not fit each other or the memory.
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
        """Return the number of rows that were ever added; with the buffers it is the whole state."""
        return self._n_added

    def set_extra_state(self, state: Any) -> None:
        """Restore the value of `get_extra_state`."""
        self._n_added = int(state)
