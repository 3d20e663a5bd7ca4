"""A training run: first the head alone, then all steps, with evaluations in between or at the end.

`runs.py` handles the files, `course.py` the steps, `training.data` the pixels. Every random choice is a function of
seed and step, so that a resumed run has the same result as an uninterrupted one.
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
    Run,
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
    folder: Path,
    *,
    device: str = "cpu",
    resume: bool = False,
    observers: Observers = SILENT,
) -> Evaluation:
    """Train an embedder on `items` and evaluate it on `validation`, which should share no class with them.

    `folder` is new, or with `resume` the folder of an earlier run with the same configuration and items; a finished run
    is not changed. If `torchrun` or `accelerate launch` started several processes, call this in each of them: they
    train together, as one process would with the same batch. All of them need access to the folder; only the main
    process calls the observers.

    Raises InvalidInput if the folder or its checkpoint does not fit or an item has no label, InvalidSettings if the
    configuration contradicts itself or does not fit the device, NotEnoughEvidence if there are too few training or
    validation images, TooManyFailures if too many of them cannot be read, TrainingDiverged if loss or gradient is not
    finite, OutOfSpace if a checkpoint cannot be written, Unavailable if another process has ended.
    """
    processes = Processes(device, config.loop.precision)
    observers = observers if processes.is_main else SILENT
    fingerprint = Fingerprint(training=describe_items(items).digest, validation=describe_items(validation).digest)
    run = Run(folder=folder, config=config, fingerprint=fingerprint)
    _require_measurable(validation)
    with processes.together():
        processes.on_main(lambda: open_run(run, resume=resume))
        if (finished := read_evaluation(folder)) is not None:
            observers.message(f"{folder} is already finished")
            return finished
        saved = read_checkpoint(folder)

        torch.manual_seed(config.seed)
        embedder, preprocessing = create_embedder(config.model, config.input)
        prepare_batch_norms(embedder, processes, chunk_images=config.loop.chunk_images)
        images = open_images_together(
            items,
            preprocessing,
            config.data,
            cache=folder,
            progress=observers.read,
            on_each_machine=processes.on_each_machine,
        )
        _require_same(images, processes)
        run = replace(run, fingerprint=replace(fingerprint, read=images.digest))
        if saved is not None:
            require_continuation(run, saved)
        _describe(images, config, validation, observers.message)
        _check_batch(images, config, processes)
        n_classes, dimension = len(images.classes), config.model.dimension
        loss = TrainingLoss(config.loss, n_classes=n_classes, dimension=dimension, steps=config.schedule.steps)
        embedder.to(processes.device)
        loss.to(processes.device)
        if saved is None:
            train_head(embedder, loss, images, preprocessing, config, processes, progress=observers.head)
        state = _begin(embedder, loss, config, processes)

        course = Course(state, run, preprocessing, validation, processes, observers)
        if saved is None:
            course.save()
        else:
            state.load_state_dict(saved, folder / CHECKPOINT)
            observers.message(f"resumed after step {state.step}")
        evaluation = course.run(images)
        processes.on_main(lambda: _finish(folder, items, validation, evaluation))
        return evaluation


def _begin(embedder: Embedder, loss: TrainingLoss, config: TrainingConfig, processes: Processes) -> TrainingState:
    """Create the state before the first step."""
    decay = config.loop.ema_decay
    return TrainingState(
        embedder=embedder,
        loss=loss,
        optimizer=create_optimizer(embedder, loss, config.schedule),
        scaler=processes.accelerator.scaler,
        average=average_weights(embedder, decay=decay) if decay else None,
    )


def _finish(folder: Path, items: Sequence[Item], validation: Sequence[Item], evaluation: Evaluation) -> None:
    record_data(folder, items, validation)
    write_evaluation(folder, evaluation)


def _require_measurable(validation: Sequence[Item]) -> None:
    """Raise the errors of the evaluation before hours of training, not after them."""
    if unlabelled := [item.id for item in validation if not item.label]:
        raise InvalidInput(
            f"every image to validate on needs a label, {len(unlabelled)} have none, for instance {unlabelled[0]!r}: "
            "add labels, or remove these images"
        )
    try:
        require_evidence([item.label for item in validation])
    except NotEnoughEvidence as error:
        raise NotEnoughEvidence(f"the images to validate on: {error}") from error


def _require_same(images: TrainingImages, processes: Processes) -> None:
    """Raise InvalidInput if processes would draw from different rows."""
    digests = processes.collect([images.digest])
    if len(set(digests)) > 1:
        different = next(rank for rank, digest in enumerate(digests) if digest != digests[0])
        raise InvalidInput(
            f"process {different} reads other training images than process 0: check that all processes see the same "
            "files and use the same versions of the libraries, then resume with --resume"
        )


def _check_batch(images: TrainingImages, config: TrainingConfig, processes: Processes) -> None:
    """Raise InvalidSettings if the processes cannot share a batch evenly, or the memory is smaller than a batch."""
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


def _rows_in_all_steps(config: TrainingConfig, n_classes: int) -> int:
    schedule = config.schedule
    n_batches = schedule.head_steps + schedule.steps * config.loop.accumulate
    return n_batches * batch_size(schedule, n_classes)


def _describe(
    images: TrainingImages, config: TrainingConfig, validation: Sequence[Item], message: Callable[[str], None]
) -> None:
    for line in remarks(images, config.schedule):
        message(line)
    if config.schedule.warmup_steps > config.schedule.steps:
        message(
            f"schedule.warmup_steps: {config.schedule.warmup_steps} of {config.schedule.steps} steps: the "
            "learning rates never reach their peak"
        )
    n_rows = _rows_in_all_steps(config, len(images.classes))
    if config.loss.tcm.score == "cohort" and 4 * (n_rows - n_rows // config.schedule.steps) < config.loss.tcm.cohort:
        message(
            f"loss.tcm.cohort: {config.loss.tcm.cohort} embeddings, but all steps together give {n_rows}, less than a "
            "quarter: TCM stays off; lower it"
        )
    if shared := sorted({item.label for item in validation} & set(images.classes)):
        message(
            f"{len(shared)} classes are used for training and for validation, for instance {shared[0]!r}: "
            "the result will look better than it is on new classes"
        )
