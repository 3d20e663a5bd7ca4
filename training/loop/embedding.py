"""Turns an embedder into a function of arrays, which the rest of the product uses."""

import numpy as np
import torch
from numpy.typing import NDArray

from training.evaluation import Embed
from training.model import Embedder


def embedding_function(embedder: Embedder) -> Embed:
    """Return the embedder as a function of arrays, without gradients: [n, 3, h, w] float32 -> [n, d], unit rows."""
    device = embedder.device
    embedder.eval()

    def embed(pixels: NDArray[np.float32]) -> NDArray[np.float32]:
        with torch.inference_mode():
            batch = torch.from_numpy(pixels).to(device).contiguous(memory_format=torch.channels_last)
            embeddings: NDArray[np.float32] = embedder(batch).cpu().numpy()
        return embeddings

    return embed
