"""The head's start: what it learns from, how fast, and what it leaves alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from retrieval.contract.manifest import Item
from training.config import TrainingConfig
from training.data import TrainingImages, open_training_images, unchanged
from training.loop.head import train_head
from training.loop.processes import Processes
from training.losses import TrainingLoss
from training.model import Embedder, create_embedder


def ignore(done: int, total: int) -> None: ...


def started(
    config: TrainingConfig, items: list[Item], folder: Path
) -> tuple[Embedder, TrainingLoss, TrainingImages, list[torch.Tensor]]:
    """After the head's start, with the weights of the head and of the loss before it."""
    torch.manual_seed(0)
    embedder, preprocessing = create_embedder(config.model, config.input)
    images = open_training_images(items, preprocessing, config.data, cache=folder, progress=ignore)
    loss = TrainingLoss(config.loss, n_classes=len(images.classes), dimension=config.model.dimension, steps=4)
    before = [p.detach().clone() for p in (*embedder.head.parameters(), *loss.parameters())]
    train_head(embedder, loss, images, preprocessing, config, Processes("cpu", "no"), progress=ignore)
    return embedder, loss, images, before


def test_only_matrices_of_the_head_decay_and_as_much_as_configured(
    small_config: TrainingConfig, training_items: list[Item], tmp_path: Path
) -> None:
    """Without the decay, AdamW moves each value by at most its rate; a large decay dominates."""
    schedule = replace(
        small_config.schedule, head_steps=1, head_learning_rate=1e-3, loss_learning_rate=1e-3, weight_decay=500.0
    )
    embedder, loss, _, before = started(replace(small_config, schedule=schedule), training_items, tmp_path)
    after = [*embedder.head.parameters(), *loss.parameters()]
    for old, new, kept in zip(before, after, (0.5, 1.0, 1.0), strict=True):
        torch.testing.assert_close(new.detach(), kept * old, rtol=0, atol=1.01e-3)


def test_only_the_head_and_the_loss_learn(
    small_config: TrainingConfig, training_items: list[Item], tmp_path: Path
) -> None:
    torch.manual_seed(0)
    fresh, _ = create_embedder(small_config.model, small_config.input)
    embedder, loss, _, before = started(small_config, training_items, tmp_path)
    for (name, old), new in zip(
        fresh.backbone.state_dict().items(), embedder.backbone.state_dict().values(), strict=True
    ):
        assert torch.equal(old, new), name
    after = [*embedder.head.parameters(), *loss.parameters()]
    assert not any(torch.equal(old, new) for old, new in zip(before, after, strict=True))


@pytest.mark.parametrize("n_lost", [1, 5])
def test_an_image_that_cannot_be_read_teaches_nothing(
    small_config: TrainingConfig, training_items: list[Item], tmp_path: Path, n_lost: int
) -> None:
    """One of a class of five, and a whole class: the features shown are those of images that were read."""
    config = replace(small_config, data=replace(small_config.data, cache="none"))
    lost = [replace(item, uri="file:///nowhere/lost.png") for item in training_items[:n_lost]]
    shown: list[torch.Tensor] = []

    class Recording(torch.nn.Linear):
        def forward(self, rows: torch.Tensor) -> torch.Tensor:
            shown.append(rows)
            return super().forward(rows)

    torch.manual_seed(0)
    embedder, preprocessing = create_embedder(config.model, config.input)
    embedder.head = Recording(embedder.head.in_features, config.model.dimension)
    images = open_training_images(
        lost + training_items[n_lost:], preprocessing, config.data, cache=tmp_path, progress=ignore
    )
    loss = TrainingLoss(config.loss, n_classes=len(images.classes), dimension=config.model.dimension, steps=4)
    many = replace(config, schedule=replace(config.schedule, classes=8, images=4, head_steps=2))
    train_head(embedder, loss, images, preprocessing, many, Processes("cpu", "no"), progress=ignore)
    embedder.eval()
    with torch.no_grad():
        read = torch.cat([embedder.features(pixels) for _, pixels in unchanged(images, preprocessing)])
    for rows in shown:
        distances = torch.cdist(rows, read).min(dim=1).values
        assert distances.max() < 1e-3 * read.norm(dim=1).mean()
