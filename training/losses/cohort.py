"""The density of a training image: the mean of its largest similarities to embeddings of other classes.

Decides the reference embeddings (a queue of earlier steps), when there are enough of them, and the density. `margin.py`
subtracts it from the similarities.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from retrieval.contract.score import Score
from training.losses.memory import CrossBatchMemory, Remembered

_WEIGHT = Score().weight  # calibration gives the density the same weight
_FILLED = 4  # the queue is used from a quarter of its size on


class DensityQueue(nn.Module):
    """The cohort of a training run: the last `size` embeddings, and the density of an image among them.

    The cohort-normalised score of a pair is s(a, b) - w (r(a) + r(b)) with w = 0.5, as in `retrieval.contract.score`.
    There the cohort is fixed and has no labels; here it follows the model, and rows with the label of x do not count
    towards r(x). The whole state is in `state_dict`, and it is the same on every process.
    """

    def __init__(self, size: int, dimension: int, *, k: int, chunk: int = 4096) -> None:
        """Create an empty queue. k: similarities whose mean is the density; chunk: rows compared at a time."""
        super().__init__()
        self.queue = CrossBatchMemory(size, dimension)
        self._enough = -(-size // _FILLED)
        self._k = k
        self._chunk = chunk

    @property
    def is_ready(self) -> bool:
        """Return whether at least a quarter of the queue is filled: fewer rows would not describe the domain."""
        return self.queue.n_remembered >= self._enough

    def add(self, embeddings: Tensor, labels: Tensor) -> None:
        """Add embeddings [n, d] and labels [n] int64 after their step. Raises InvalidInput if they do not fit."""
        self.queue.add(embeddings, labels)

    @torch.no_grad()
    def offsets(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """Return w r(x) of each row, [n], without gradient; 0 for a row without any row of another class in the queue.

        embeddings: [n, d] floating, unit rows; labels: [n] int64.
        """
        queue = self.queue.remembered
        parts = zip(torch.split(embeddings, self._chunk), torch.split(labels, self._chunk), strict=True)
        return _WEIGHT * torch.cat([density(rows, names, queue, k=self._k) for rows, names in parts])


def density(embeddings: Tensor, labels: Tensor, reference: Remembered, *, k: int) -> Tensor:
    """Return the mean of the k largest similarities of each row to reference rows with other labels, [n].

    embeddings: [n, d] floating, unit rows; labels: [n]. If there are fewer than k such rows, it is the mean over them,
    and 0 if there is none. NaN gives NaN. Holds n x m similarities.

    >>> queue = Remembered(torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0]]), torch.tensor([0, 1, 2]))
    >>> density(torch.tensor([[1.0, 0.0], [1.0, 0.0]]), torch.tensor([0, 3]), queue, k=2).tolist()
    [0.30000001192092896, 0.800000011920929]
    """
    similarities = embeddings @ reference.embeddings.to(embeddings.dtype).T
    similarities = similarities.masked_fill(labels[:, None] == reference.labels, -torch.inf)
    largest = similarities.topk(min(k, similarities.shape[1]), dim=1).values
    counted = largest != -torch.inf
    return largest.where(counted, 0).sum(1) / counted.sum(1).clamp(min=1)
