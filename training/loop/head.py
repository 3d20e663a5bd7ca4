"""The start of a run: the head alone learns, on features that the unchanged backbone gives once."""

import torch
from torch import Tensor

from retrieval.contract.preprocessing import Preprocessing
from retrieval.errors import TooManyFailures
from training.config import TrainingConfig
from training.data import Progress, StepSampler, TrainingImages, unchanged
from training.loop.processes import Processes
from training.loop.schedule import loss_group
from training.losses import TrainingLoss
from training.model import Embedder

_DRAWS = 3  # stream of random numbers beside those of the steps to come


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
    """Train the head and what the loss owns on the features that the unchanged backbone gives for unchanged images.

    A random head sends the backbone gradients that spoil what it knows; one that fits it first does not. Every process
    takes its share of each batch and ends with the same head.

    Source: Kumar et al., "Fine-Tuning can Distort Pretrained Features and Underperform Out-of-Distribution", ICLR 2022.
    """
    schedule = config.schedule
    if schedule.head_steps == 0:
        return
    features = _extract_features(embedder, images, preprocessing, processes.device, progress)
    labels = torch.from_numpy(images.labels).to(processes.device)
    owned = loss_group(loss, schedule)
    optimizer = torch.optim.AdamW(
        [
            {"params": list(embedder.head.parameters()), "lr": schedule.head_learning_rate},
            {"params": owned["params"], "lr": owned["peak"]},
        ]
    )
    embedder.train()
    torch.manual_seed(config.seed)
    sampler = StepSampler(images.labels, schedule, config.data.sampler, seed=config.seed, stream=_DRAWS)
    for step in range(schedule.head_steps):
        rows = torch.from_numpy(sampler.rows(step))
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
) -> Tensor:
    """Features [n, f] float32 of all training images."""
    embedder.eval()
    features: Tensor | None = None
    with torch.no_grad():
        for rows, pixels in unchanged(images, preprocessing):
            part = embedder.features(pixels.to(device))
            if features is None:
                features = part.new_zeros((len(images.labels), part.shape[1]))
            features[torch.from_numpy(rows).to(device)] = part
            progress(int(rows[-1]) + 1, len(images.labels))
    if features is None:
        raise TooManyFailures(f"none of the {len(images.labels)} images to train on can be read")
    return features
