"""The running mean of the weights: often better, and steadier, than the weights of the last step."""

import torch
from torch import Tensor
from torch.optim.swa_utils import AveragedModel

from training.model import Embedder


def average_weights(embedder: Embedder, *, decay: float) -> AveragedModel:
    """A copy of the embedder that follows it: at each update, `decay` of itself and the rest of the embedder.

    Early on it forgets faster, at update n (from 1) with the decay min(decay, (1 + n) / (10 + n)), or a short run would
    end near where it began. Running statistics of batch norms are averaged alike.

    Source: the schedule of TensorFlow's ExponentialMovingAverage with num_updates.
    """

    def follow(mean: Tensor, weights: Tensor, n_averaged: Tensor | int) -> Tensor:
        if not weights.is_floating_point():
            return weights
        n = torch.as_tensor(n_averaged, device=weights.device, dtype=weights.dtype)
        return torch.lerp(mean, weights, 1 - torch.clamp((1 + n) / (10 + n), max=decay))

    # Its first update copies; made here, what it copies are the weights before the first step.
    average = AveragedModel(embedder, avg_fn=follow, use_buffers=True)
    average.update_parameters(embedder)
    return average
