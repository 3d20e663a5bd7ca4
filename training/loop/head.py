"""The start of a run: trains the head alone, on features that the unchanged backbone computes once."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from retrieval.contract.preprocessing import Preprocessing
from retrieval.errors import TooManyFailures
from training.config import TrainingConfig
from training.data import Progress, StepSampler, TrainingImages, unchanged
from training.loop.processes import Processes
from training.loop.schedule import create_optimizer
from training.losses import TrainingLoss
from training.model import Embedder

_DRAWS = 3  # stream of random numbers, separate from those of the later steps


def train_head(
    embedder: Embedder,
    loss: TrainingLoss,
    images: TrainingImages,
    preprocessing: Preprocessing,
    config: TrainingConfig,
    processes: Processes,
    *,
    progress: Progress,
) -> None:
    """Train the head and the parameters of the loss on features of unchanged images from the unchanged backbone.

    The gradients of a random head would damage the pretrained backbone; a head that is trained first avoids this. Every
    process takes its share of each batch and ends with the same head.

    Source: Kumar et al., "Fine-Tuning can Distort Pretrained Features and Underperform Out-of-Distribution", ICLR 2022.
    """
    schedule = config.schedule
    if schedule.head_steps == 0:
        return
    features, shown = _extract_features(embedder, images, preprocessing, processes.device, progress)
    labels = torch.from_numpy(images.labels).to(processes.device)
    optimizer = create_optimizer(embedder, loss, schedule, parts=("head", "loss"))
    embedder.train()
    torch.manual_seed(config.seed)
    sampler = StepSampler(images.labels, schedule, config.data.sampler, seed=config.seed, stream=_DRAWS)
    for step in range(schedule.head_steps):
        rows = torch.from_numpy(shown[sampler.rows(step)])
        own = rows[processes.share(len(rows))].to(processes.device)
        optimizer.zero_grad()
        embeddings = embedder.embed_features(features[own])
        loss(embeddings, labels[own], step=0).total.backward()
        processes.average_gradients(embedder.head)
        processes.average_gradients(loss)
        optimizer.step()


def _extract_features(
    embedder: Embedder,
    images: TrainingImages,
    preprocessing: Preprocessing,
    device: torch.device,
    progress: Progress,
) -> tuple[Tensor, NDArray[np.int64]]:
    """Compute features [n, f] float32 of all training images; return with them the row to use for each row."""
    embedder.eval()
    features: Tensor | None = None
    is_read = np.zeros(len(images.labels), dtype=np.bool_)
    with torch.no_grad():
        for rows, pixels in unchanged(images, preprocessing):
            part = embedder.features(pixels.to(device))
            if features is None:
                features = part.new_zeros((len(images.labels), part.shape[1]))
            features[torch.from_numpy(rows).to(device)] = part
            is_read[rows] = True
            progress(int(rows[-1]) + 1, len(images.labels))
    if features is None:
        raise TooManyFailures(
            f"none of the {len(images.labels)} images to train on can be read, the first is {images.items[0].uri}: "
            "check that their paths are valid on this machine"
        )
    return features, _stand_ins(images, is_read)


def _stand_ins(images: TrainingImages, is_read: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Return each row or, if it cannot be read, the first readable row of its class, or else of any class."""
    shown = np.arange(len(images.labels))
    for members in images.members:
        readable = members[is_read[members]]
        shown[members[~is_read[members]]] = readable[0] if len(readable) else is_read.argmax()
    return shown
