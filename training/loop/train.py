"""The training run: first the head alone, then step after step, evaluations on the way or at the end.

Leaves what is on disk to `runs.py`, the steps to `course.py`, pixels to `training.data`. Every random choice is a
function of seed and step, so that a resumed run ends where an uninterrupted one would.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from retrieval.contract.manifest import Item
from retrieval.errors import InvalidInput, InvalidSettings, NotEnoughEvidence
from training.config import TrainingConfig
from training.data import TrainingImages, batch_size, open_images_together, remarks
from training.evaluation import Evaluation, require_evidence
from training.loop.course import Course
from training.loop.head import train_head
from training.loop.monitoring import SILENT, Observers
from training.loop.processes import Processes
from training.loop.runs import (
    CHECKPOINT,
    Fingerprint,
    open_run,
    read_checkpoint,
    read_evaluation,
    require_continuation,
    write_evaluation,
)
from training.loop.schedule import create_optimizer
from training.loop.state import TrainingState, average_weights
from training.loop.steps import prepare_batch_norms
from training.losses import TrainingLoss
from training.model import Embedder, create_embedder
from training.provenance import describe_items, record_data


def train_embedder(
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
    is left as it is. Called in each of the processes that `torchrun` or `accelerate launch` started, it trains in all
    of them together, as one process would with the same batch; only the main one calls the observers, and all of them
    reach the folder.

    Raises InvalidInput where the folder or its checkpoint does not fit or an item has no label, InvalidSettings where
    the configuration does not fit itself or the device, NotEnoughEvidence where there are too few images to train on or
    to validate on, TooManyFailures where too many of them cannot be read, TrainingDiverged where loss or gradient is
    not finite, OutOfSpace where a checkpoint cannot be written, Unavailable where another process is gone.
    """
    processes = Processes(device, config.loop.precision)
    observers = observers if processes.is_main else SILENT
    fingerprint = Fingerprint(training=describe_items(items).digest, validation=describe_items(validation).digest)
    _require_measurable(validation)
    with processes.together():
        processes.on_main(lambda: open_run(run, config, fingerprint, resume=resume))
        if (finished := read_evaluation(run)) is not None:
            observers.message(f"{run} is finished already")
            return finished
        saved = read_checkpoint(run)

        torch.manual_seed(config.seed)
        embedder, preprocessing = create_embedder(config.model, config.input)
        prepare_batch_norms(embedder, processes, chunk_images=config.loop.chunk_images)
        images = open_images_together(
            items,
            preprocessing,
            config.data,
            cache=run,
            progress=observers.read,
            on_each_machine=processes.on_each_machine,
        )
        _require_same(images, processes)
        fingerprint = replace(fingerprint, read=images.digest)
        if saved is not None:
            require_continuation(run, saved, config, fingerprint)
        _describe(images, config, validation, observers.message)
        _check_batch(images, config, processes)
        n_classes, dimension = len(images.classes), config.model.dimension
        loss = TrainingLoss(config.loss, n_classes=n_classes, dimension=dimension, steps=config.schedule.steps)
        embedder.to(processes.device)
        loss.to(processes.device)
        if saved is None:
            train_head(embedder, loss, images, preprocessing, config, processes, progress=observers.head)
        state = _begin(embedder, loss, config, processes)

        course = Course(state, config, preprocessing, validation, run, fingerprint, processes, observers)
        if saved is None:
            course.save()
        else:
            state.load_state_dict(saved, run / CHECKPOINT)
            observers.message(f"resumed after step {state.step}")
        evaluation = course.run(images)
        processes.on_main(lambda: _finish(run, items, validation, evaluation))
        return evaluation


def _begin(embedder: Embedder, loss: TrainingLoss, config: TrainingConfig, processes: Processes) -> TrainingState:
    """The state before the first step."""
    decay = config.loop.ema_decay
    return TrainingState(
        embedder=embedder,
        loss=loss,
        optimizer=create_optimizer(embedder, loss, config.schedule),
        scaler=processes.accelerator.scaler,
        average=average_weights(embedder, decay=decay) if decay else None,
    )


def _finish(run: Path, items: Sequence[Item], validation: Sequence[Item], evaluation: Evaluation) -> None:
    record_data(run, items, validation)
    write_evaluation(run, evaluation)


def _require_measurable(validation: Sequence[Item]) -> None:
    """Raises what the evaluation would, before hours of training instead of after them."""
    if unlabelled := [item.id for item in validation if not item.label]:
        raise InvalidInput(
            f"every image to validate on needs a label, {len(unlabelled)} have none, for instance {unlabelled[0]!r}: "
            "add labels, or leave these images out"
        )
    try:
        require_evidence([item.label for item in validation])
    except NotEnoughEvidence as error:
        raise NotEnoughEvidence(f"the images to validate on: {error}") from error


def _require_same(images: TrainingImages, processes: Processes) -> None:
    """Raises InvalidInput where processes would draw from different rows."""
    digests = processes.collect([images.digest])
    if len(set(digests)) > 1:
        different = next(rank for rank, digest in enumerate(digests) if digest != digests[0])
        raise InvalidInput(
            f"process {different} reads other images to train on than process 0: see that all of them reach the same "
            "files and have the same versions of the libraries, then go on with --resume"
        )


def _check_batch(images: TrainingImages, config: TrainingConfig, processes: Processes) -> None:
    """Raises InvalidSettings where the processes cannot share a batch evenly, or a memory would hold less than one."""
    batch, memory = batch_size(config.schedule, len(images.classes)), config.loss.tcm.memory
    if batch % processes.world:
        raise InvalidSettings(
            f"a batch of {batch} images cannot be shared evenly by {processes.world} processes: change "
            "schedule.classes or schedule.images, or the number of processes"
        )
    if 0 < memory < batch:
        raise InvalidSettings(
            f"loss.tcm.memory: expected room for a batch of {batch} images or more, found {memory}: raise it, or "
            "set it to 0 for none"
        )


def _describe(
    images: TrainingImages, config: TrainingConfig, validation: Sequence[Item], message: Callable[[str], None]
) -> None:
    for line in remarks(images, config.schedule):
        message(line)
    if config.schedule.warmup_steps > config.schedule.steps:
        message(
            f"schedule.warmup_steps: {config.schedule.warmup_steps} of {config.schedule.steps} steps, so that the "
            "learning rates never reach their peak"
        )
    if shared := sorted({item.label for item in validation} & set(images.classes)):
        message(
            f"{len(shared)} classes are trained on and validated on, for instance {shared[0]!r}: "
            "the result will look better than it is on new classes"
        )
