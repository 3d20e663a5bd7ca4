"""The embedder as the rest of the product sees one: a function of arrays."""

import numpy as np
import torch
from numpy.typing import NDArray

from training.evaluation import Embed
from training.model import Embedder


def embedding_function(embedder: Embedder) -> Embed:
    """The embedder as a function of arrays, [n, 3, h, w] float32 -> [n, d] float32, unit rows; nothing is learnt."""
    device = embedder.device
    embedder.eval()

    def embed(pixels: NDArray[np.float32]) -> NDArray[np.float32]:
        with torch.inference_mode():
            batch = torch.from_numpy(pixels).to(device).contiguous(memory_format=torch.channels_last)
            embeddings: NDArray[np.float32] = embedder(batch).cpu().numpy()
        return embeddings

    return embed
