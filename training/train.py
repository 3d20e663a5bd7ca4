"""The training run: first the head alone, then a loop of steps, an evaluation at the end.

Leaves what is on disk to `runs.py`, pixels to `data.py`. Every random choice is a function of seed and step, so that a
resumed run ends where an uninterrupted one would.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from retrieval.contract.canonical import digest_json
from retrieval.contract.manifest import Item
from retrieval.contract.preprocessing import Preprocessing
from retrieval.errors import DeviceUnavailable, InvalidInput
from training.config import ScheduleConfig, TrainingConfig, to_json
from training.data import Progress, TrainingImages, augment, draw_batch, load_training_images, normalise
from training.evaluation import Embed, Evaluation, evaluate_items
from training.losses import StepLoss, TrainingLoss
from training.model import Embedder, create_embedder
from training.runs import open_run, read_evaluation, write_checkpoint, write_evaluation

_EMBED_BATCH = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class StepReport:
    """One step, for people: losses, shares of pairs that TCM still moves, speed since this process began to train."""

    step: int
    steps: int
    loss: float
    base: float
    active_positives: float
    active_negatives: float
    images_per_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Observers:
    """Who is told what happens: items read, images seen by the head, items evaluated (done, of); steps; messages."""

    read: Progress = lambda done, total: None
    head: Progress = lambda done, total: None
    evaluated: Progress = lambda done, total: None
    step: Callable[[StepReport], None] = lambda report: None
    message: Callable[[str], None] = lambda text: None


SILENT = Observers()


def train(
    config: TrainingConfig,
    items: Sequence[Item],
    validation: Sequence[Item],
    run: Path,
    *,
    device: str = "cpu",
    resume: bool = False,
    observers: Observers = SILENT,
) -> Evaluation:
    """Train an embedder on `items` and evaluate it on `validation`, which should share no class with them.

    `run` is a new folder, or with `resume` that of an earlier run with the same configuration and items; a finished run
    is left as it is. Raises InvalidInput where it is neither, NotEnoughEvidence where there are too few images,
    TooManyFailures where too many of them cannot be read.
    """
    target = select_device(device)
    fingerprint = digest_json([[item.id, item.label] for item in items])
    saved = open_run(run, config, fingerprint, resume=resume)
    if (finished := read_evaluation(run)) is not None:
        observers.message(f"{run} is finished already")
        return finished

    torch.manual_seed(config.seed)
    embedder, preprocessing = create_embedder(config.model, config.input)
    images = load_training_images(
        items, preprocessing, run / ".pixels.npy", max_unreadable=config.data.max_unreadable, progress=observers.read
    )
    _describe(images, validation, observers.message)
    loss = TrainingLoss(config.loss, n_classes=len(images.classes), dimension=config.model.dimension)
    embedder.to(target)
    loss.to(target)
    optimizer = create_optimizer(embedder, loss, config.schedule)

    def save(step: int) -> None:
        state = {"embedder": embedder.state_dict(), "loss": loss.state_dict(), "optimizer": optimizer.state_dict()}
        write_checkpoint(run, {"step": step, "fingerprint": fingerprint, "config": to_json(config), **state})

    if saved is None:
        train_head(embedder, loss, images, preprocessing, config, progress=observers.head)
        save(0)
    else:
        embedder.load_state_dict(saved["embedder"])
        loss.load_state_dict(saved["loss"])
        optimizer.load_state_dict(saved["optimizer"])
        observers.message(f"resumed after step {saved['step']}")
    first = saved["step"] if saved else 0
    train_all(embedder, loss, optimizer, images, preprocessing, config, first=first, save=save, observe=observers.step)

    evaluation = evaluate_items(
        validation,
        embedding_function(embedder),
        preprocessing,
        max_unreadable=config.data.max_unreadable,
        progress=observers.evaluated,
    )
    write_evaluation(run, evaluation)
    return evaluation


def train_head(
    embedder: Embedder,
    loss: TrainingLoss,
    images: TrainingImages,
    preprocessing: Preprocessing,
    config: TrainingConfig,
    *,
    progress: Progress,
) -> None:
    """Train the head and what the loss owns on the features that the unchanged backbone gives for unchanged images.

    A random head sends the backbone gradients that spoil what it knows; one that fits it first does not.

    Source: Kumar et al., "Fine-Tuning can Distort Pretrained Features and Underperform Out-of-Distribution", ICLR 2022.
    """
    schedule = config.schedule
    if schedule.head_steps == 0:
        return
    features = _extract_features(embedder, images, preprocessing, progress)
    labels = torch.from_numpy(images.labels).to(features.device)
    optimizer = torch.optim.AdamW(
        [
            {"params": list(embedder.head.parameters()), "lr": schedule.head_learning_rate},
            {"params": list(loss.parameters()), "lr": schedule.loss_learning_rate},
        ]
    )
    members = images.members
    rng = np.random.default_rng(config.seed)
    for _ in range(schedule.head_steps):
        rows = torch.from_numpy(draw_batch(members, classes=schedule.classes, images=schedule.images, rng=rng))
        embeddings = functional.normalize(embedder.head(features[rows]), dim=1)
        _descend(loss(embeddings, labels[rows]), optimizer)


def train_all(
    embedder: Embedder,
    loss: TrainingLoss,
    optimizer: torch.optim.Optimizer,
    images: TrainingImages,
    preprocessing: Preprocessing,
    config: TrainingConfig,
    *,
    first: int,
    save: Callable[[int], None],
    observe: Callable[[StepReport], None],
) -> None:
    """Take the steps from `first` to the end of the schedule, on the device that holds the embedder."""
    schedule = config.schedule
    device = embedder.head.weight.device
    members = images.members
    embedder.train()
    started, n_images = time.perf_counter(), 0
    for step in range(first, schedule.steps):
        # A function of seed and step, whatever went before: this is what makes resuming exact.
        rng = np.random.default_rng((config.seed, step))
        torch.manual_seed(int(rng.integers(2**63)))

        rows = draw_batch(members, classes=schedule.classes, images=schedule.images, rng=rng)
        pixels = augment(torch.from_numpy(images.pixels[rows]).to(device), config.augmentation, preprocessing)
        labels = torch.from_numpy(images.labels[rows]).to(device)
        for group in optimizer.param_groups:
            group["lr"] = group["peak"] * learning_rate_factor(step, schedule)
        step_loss = loss(embedder(pixels), labels)
        _descend(step_loss, optimizer)

        n_images += len(rows)
        observe(_report(step + 1, schedule.steps, step_loss, n_images / (time.perf_counter() - started)))
        if (step + 1) % config.loop.checkpoint_every == 0 or step + 1 == schedule.steps:
            save(step + 1)


def learning_rate_factor(step: int, schedule: ScheduleConfig) -> float:
    """Share of the peak learning rate at `step` (from 0): linear rise over the warm-up, then a cosine down to 0.

    >>> [round(learning_rate_factor(step, ScheduleConfig(steps=6, warmup_steps=2)), 2) for step in range(6)]
    [0.5, 1.0, 1.0, 0.85, 0.5, 0.15]
    """
    if step < schedule.warmup_steps:
        return (step + 1) / schedule.warmup_steps
    done = (step - schedule.warmup_steps) / max(schedule.steps - schedule.warmup_steps, 1)
    return 0.5 * (1 + math.cos(math.pi * done))


def create_optimizer(embedder: Embedder, loss: TrainingLoss, schedule: ScheduleConfig) -> torch.optim.Optimizer:
    """AdamW with one learning rate for each of backbone, head and what the loss owns; `peak` in its groups keeps it."""
    backbone = [parameter for parameter in embedder.backbone.parameters() if parameter.requires_grad]
    groups: list[dict[str, Any]] = [
        {"params": backbone, "peak": schedule.learning_rate},
        {"params": list(embedder.head.parameters()), "peak": schedule.head_learning_rate},
        # Proxies are directions: decaying their length only changes how fast they turn.
        {"params": list(loss.parameters()), "peak": schedule.loss_learning_rate, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, weight_decay=schedule.weight_decay)


def embedding_function(embedder: Embedder) -> Embed:
    """The embedder as a function of arrays, [n, 3, h, w] float32 -> [n, d] float32, unit rows; nothing is learnt."""
    device = embedder.head.weight.device
    embedder.eval()

    def embed(pixels: NDArray[np.float32]) -> NDArray[np.float32]:
        with torch.inference_mode():
            batch = torch.from_numpy(pixels).to(device).contiguous(memory_format=torch.channels_last)
            embeddings: NDArray[np.float32] = embedder(batch).cpu().numpy()
        return embeddings

    return embed


def select_device(name: str) -> torch.device:
    """cpu, cuda, or auto: cuda where present. Raises DeviceUnavailable where cuda is asked for and missing."""
    if name not in ("cpu", "cuda", "auto"):
        raise InvalidInput(f"device: expected cpu, cuda or auto, found {name!r}")
    if name == "cuda" and not torch.cuda.is_available():
        raise DeviceUnavailable("device cuda was asked for, but torch finds none: use --device cpu or auto")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


def _extract_features(
    embedder: Embedder, images: TrainingImages, preprocessing: Preprocessing, progress: Progress
) -> Tensor:
    """Features [n, f] float32 of all training images."""
    device = embedder.head.weight.device
    embedder.eval()
    parts = []
    with torch.no_grad():
        for start in range(0, len(images.labels), _EMBED_BATCH):
            pixels = torch.from_numpy(images.pixels[start : start + _EMBED_BATCH]).to(device)
            parts.append(embedder.backbone(normalise(pixels, preprocessing)))
            progress(min(start + _EMBED_BATCH, len(images.labels)), len(images.labels))
    return torch.cat(parts)


def _descend(step_loss: StepLoss, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()
    step_loss.total.backward()  # type: ignore[no-untyped-call]
    optimizer.step()


def _report(step: int, steps: int, step_loss: StepLoss, images_per_s: float) -> StepReport:
    return StepReport(
        step=step,
        steps=steps,
        loss=step_loss.total.item(),
        base=step_loss.base,
        active_positives=step_loss.margin.active_positives,
        active_negatives=step_loss.margin.active_negatives,
        images_per_s=images_per_s,
    )


def _describe(images: TrainingImages, validation: Sequence[Item], message: Callable[[str], None]) -> None:
    message(f"{len(images.labels):,} images of {len(images.classes):,} classes to train on")
    for failure in images.unreadable:
        message(f"skipped {failure.item.uri}: {failure.reason}")
    if single := images.single_image_classes:
        message(f"{len(single)} classes have one image only and no true positive pair, for instance {single[0]!r}")
    if shared := sorted({item.label for item in validation} & set(images.classes)):
        message(
            f"{len(shared)} classes are trained on and validated on, for instance {shared[0]!r}: "
            "the result will look better than it is on new classes"
        )
