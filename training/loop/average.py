"""The running mean of the weights: often better, and steadier, than the weights of the last step."""

import torch
from torch import Tensor
from torch.optim.swa_utils import AveragedModel

from training.model import Embedder

Tensors = tuple[Tensor, ...] | list[Tensor]


def average_weights(embedder: Embedder, *, decay: float) -> AveragedModel:
    """A copy of the embedder that follows it: at each update, `decay` of itself and the rest of the embedder.

    Early on it forgets faster, at update n (from 1) with the decay min(decay, (1 + n) / (10 + n)), or a short run would
    end near where it began. Running statistics of batch norms are averaged alike.

    Source: the schedule of TensorFlow's ExponentialMovingAverage with num_updates.
    """

    def follow(means: Tensors, weights: Tensors, n_averaged: Tensor | int) -> None:
        """For all tensors of one type at once: a call for each of them takes longer than the sums."""
        if not weights[0].is_floating_point():
            torch._foreach_copy_(means, weights)
            return
        n = torch.as_tensor(n_averaged, device=weights[0].device, dtype=weights[0].dtype)
        differences = torch._foreach_sub(weights, means)  # exactly 0 where weights are frozen
        torch._foreach_mul_(differences, 1 - torch.clamp((1 + n) / (10 + n), max=decay))
        torch._foreach_add_(means, differences)

    # Its first update copies; made here, what it copies are the weights before the first step.
    average = AveragedModel(embedder, multi_avg_fn=follow, use_buffers=True)
    average.update_parameters(embedder)
    return average
