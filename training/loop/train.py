"""The training run: first the head alone, then step after step, evaluations on the way or at the end.

Leaves what is on disk to `runs.py`, a step to `steps.py`, pixels to `training.data`. Every random choice is a function
of seed and step, so that a resumed run ends where an uninterrupted one would.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from itertools import islice
from pathlib import Path

import torch

from retrieval.contract.canonical import digest_json
from retrieval.contract.manifest import Item
from retrieval.errors import InvalidSettings
from training.config import LoopConfig, TrainingConfig
from training.data import TrainingImages, load_training_images
from training.evaluate import Evaluation, evaluate_items
from training.loop.average import average_weights
from training.loop.batches import Batch, batches
from training.loop.divergence import Guard, TakenStep
from training.loop.embedding import embedding_function
from training.loop.events import EventLog
from training.loop.head import train_head
from training.loop.processes import Processes
from training.loop.runs import (
    CHECKPOINT,
    EVENTS,
    open_run,
    read_checkpoint,
    read_evaluation,
    write_checkpoint,
    write_evaluation,
)
from training.loop.schedule import create_optimizer
from training.loop.state import TrainingState
from training.loop.steps import Stepper, prepare_batch_norms
from training.loop.watching import SILENT, Observers, Watch
from training.losses import TrainingLoss
from training.model import Embedder, create_embedder


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
    is left as it is. Called in each of the processes that `torchrun` or `accelerate launch` started, it trains in all
    of them together, as one process would with the same batch; only the main one calls the observers.

    Raises InvalidInput where the folder or its checkpoint does not fit, InvalidSettings where the configuration does
    not fit itself or the device, NotEnoughEvidence where there are too few images, TooManyFailures where too many of
    them cannot be read, TrainingDiverged where loss or gradient is not finite, OutOfSpace where a checkpoint cannot
    be written, Unavailable where another process is gone.
    """
    processes = Processes(device, config.loop.precision)
    with processes.together():
        return _train(config, items, validation, run, processes, resume, observers if processes.is_main else SILENT)


def _train(
    config: TrainingConfig,
    items: Sequence[Item],
    validation: Sequence[Item],
    run: Path,
    processes: Processes,
    resume: bool,
    observers: Observers,
) -> Evaluation:
    fingerprint = digest_json([[item.id, item.label] for item in items])
    processes.on_main(lambda: open_run(run, config, fingerprint, resume=resume))
    if (finished := read_evaluation(run)) is not None:
        observers.message(f"{run} is finished already")
        return finished
    saved = read_checkpoint(run)

    torch.manual_seed(config.seed)
    embedder, preprocessing = create_embedder(config.model, config.input)
    prepare_batch_norms(embedder, processes, chunk_images=config.loop.chunk_images)
    cache = run / f".pixels-{processes.rank}.npy"
    images = load_training_images(
        items, preprocessing, cache, max_unreadable=config.data.max_unreadable, progress=observers.read
    )
    _describe(images, validation, observers.message)
    n_images = _count_images(images, config, processes)
    loss = TrainingLoss(config.loss, n_classes=len(images.classes), dimension=config.model.dimension)
    embedder.to(processes.device)
    loss.to(processes.device)
    if saved is None:
        train_head(embedder, loss, images, preprocessing, config, processes, progress=observers.head)
    state = _begin(embedder, loss, config, processes)

    def save() -> None:
        processes.on_main(lambda: write_checkpoint(run, state.state_dict(), config, fingerprint))

    def evaluate() -> Evaluation:
        embed = embedding_function(state.evaluated)
        limit = config.data.max_unreadable
        return evaluate_items(validation, embed, preprocessing, max_unreadable=limit, progress=observers.evaluated)

    if saved is None:
        save()
    else:
        state.load_state_dict(saved, run / CHECKPOINT)
        observers.message(f"resumed after step {state.step}")
    drawn = batches(
        images,
        items,
        config,
        preprocessing,
        first=state.step * config.loop.accumulate,
        rank=processes.rank,
        world=processes.world,
    )
    with _watch(run, state.step, observers, processes, steps=config.schedule.steps, n_images=n_images) as watch:
        train_all(state, drawn, config, processes, run, watch=watch, save=save, evaluate=evaluate)
        evaluation = processes.on_main(lambda: state.stopping.evaluation or _tell(watch, state.step, evaluate()))
    processes.on_main(lambda: write_evaluation(run, evaluation))
    return evaluation


def train_all(
    state: TrainingState,
    drawn: Iterator[Batch],
    config: TrainingConfig,
    processes: Processes,
    run: Path,
    *,
    watch: Watch,
    save: Callable[[], None],
    evaluate: Callable[[], Evaluation],
) -> None:
    """Take the steps from the state's to the end of the schedule, or until evaluations stop getting better."""
    loop, n_steps = config.loop, config.schedule.steps
    stepper = Stepper(state, processes, config)
    guard = Guard(processes, run, gradient_may_overflow=state.scaler is not None)
    while state.step < n_steps and not state.stopping.over:
        with watch.waiting():
            parts = list(islice(drawn, loop.accumulate))
        rates = stepper.set_learning_rates()
        values = stepper.measure(parts)
        number = state.step + 1
        must_evaluate = loop.evaluate_every > 0 and (number % loop.evaluate_every == 0 or number == n_steps)
        must_save = number % loop.checkpoint_every == 0 or number == n_steps
        taken = TakenStep(step=number, learning_rates=rates, ids=[name for part in parts for name in part.ids])
        known = guard.check(taken, values, now=must_evaluate or must_save)
        stepper.descend(values[-1])
        state.step = number
        watch.report(known)
        with watch.pausing():
            if must_evaluate:
                state.stopping.over = processes.on_main(
                    lambda: _consider(state, _tell(watch, state.step, evaluate()), loop)
                )
                state.embedder.train()
            if must_save or state.stopping.over:
                save()


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


def _tell(watch: Watch, step: int, evaluation: Evaluation) -> Evaluation:
    watch.evaluated(step, evaluation)
    return evaluation


def _consider(state: TrainingState, evaluation: Evaluation, loop: LoopConfig) -> bool:
    """Whether this evaluation, in the main process, ends the run."""
    state.stopping.consider(state.step, evaluation, state.evaluated, loop)
    return state.stopping.over


@contextmanager
def _watch(
    run: Path, first: int, observers: Observers, processes: Processes, *, steps: int, n_images: int
) -> Iterator[Watch]:
    """Tell the observers and TensorBoard, in the main process; nobody in the others."""
    if not processes.is_main:
        yield Watch([], steps=steps, n_images=n_images)
        return
    with closing(EventLog(run / EVENTS, first=first, message=observers.message)) as events:
        yield Watch([observers, events], steps=steps, n_images=n_images)


def _count_images(images: TrainingImages, config: TrainingConfig, processes: Processes) -> int:
    """Images of one step. Raises InvalidSettings where the processes cannot share a batch evenly."""
    schedule = config.schedule
    batch = min(schedule.classes, len(images.classes)) * schedule.images
    if batch % processes.world:
        raise InvalidSettings(
            f"a batch of {batch} images cannot be shared evenly by {processes.world} processes: change "
            "schedule.classes or schedule.images, or the number of processes"
        )
    return batch * config.loop.accumulate


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
