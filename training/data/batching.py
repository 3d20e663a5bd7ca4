"""The batches of a run, made in threads or worker processes during the previous step.

Decides what a batch holds and which thread or process makes it. Every random choice is a function of seed, step and
position in the batch, and does not depend on the number of workers or of training processes.
"""

import os
import signal
import sys
from collections import deque
from collections.abc import Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from types import TracebackType
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from retrieval.contract.preprocessing import Preprocessing
from retrieval.errors import InvalidInput, TooManyFailures
from training.config import TrainingConfig
from training.data.augmentation import Change, apply_change, draw_changes
from training.data.decoding import Unreadable, refuse_too_many
from training.data.images import TrainingImages
from training.data.sampling import StepSampler

_AHEAD = 2  # batches that the threads, or each worker, make in advance
_SUBSTITUTES = 20  # images of any class to try if no image of the drawn class can be read
_CHANGES, _REPLACEMENTS = 1, 2  # streams of random numbers, next to that of the sampler


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Batch:
    """This process's share of the batch of one step, in the order of the batch.

    pixels: [n, 3, crop, crop] float32, channels last in memory; labels: [n] int64; ids: of the items, for messages.
    unreadable: items that were found unreadable in this batch; other images of their classes replace them.
    """

    step: int
    pixels: Tensor
    labels: Tensor
    ids: tuple[str, ...]
    unreadable: tuple[Unreadable, ...]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Plan:
    """The rows of a batch, and their positions in the whole batch."""

    step: int
    rows: NDArray[np.int64]
    positions: range


@dataclass(frozen=True, slots=True, eq=False)
class _Made:
    """A batch with all its unreadable rows, new or not; rows: those whose pixels it holds."""

    step: int
    pixels: Tensor
    rows: NDArray[np.int64]
    unreadable: dict[int, Unreadable]


def batches(
    images: TrainingImages,
    config: TrainingConfig,
    preprocessing: Preprocessing,
    *,
    first: int,
    rank: int = 0,
    world: int = 1,
) -> Generator[Batch]:
    """Make the batches of the steps from `first` to the end of the schedule.

    Process `rank` of `world` gets a contiguous share; the concatenated shares equal the batch of a single process.
    Close the iterator (or exhaust it) to end the workers. Raises InvalidInput if the batch is too small to share,
    TooManyFailures if more images than `config.data.max_unreadable` allows cannot be read.
    """
    sampler = StepSampler(images.labels, config.schedule, config.data.sampler, seed=config.seed)
    if sampler.batch_size < world:
        raise InvalidInput(
            f"a batch of {sampler.batch_size} images cannot be shared by {world} processes: raise schedule.classes"
        )
    share = range(rank * sampler.batch_size // world, (rank + 1) * sampler.batch_size // world)
    plans = (
        _Plan(step=step, rows=sampler.rows(step)[share.start : share.stop], positions=share)
        for step in range(first, config.schedule.steps)
    )
    maker = _Maker(images, config, preprocessing, sampler.batch_size)
    made: Generator[_Made | TooManyFailures] = (
        _by_workers(maker, plans, config.data.workers) if config.data.workers else _by_threads(maker, plans)
    )
    met: set[int] = set()
    with closing(made):  # now, not when the traceback of an error in the caller is freed
        for batch in made:
            if isinstance(batch, TooManyFailures):
                raise batch
            news = {row: failure for row, failure in batch.unreadable.items() if row not in met}
            for row, failure in news.items():
                met.add(row)
                refuse_too_many(len(met), len(images.labels), config.data.max_unreadable, failure)
            yield Batch(
                step=batch.step,
                pixels=batch.pixels,
                labels=torch.from_numpy(images.labels[batch.rows]),
                ids=tuple(images.items[row].id for row in batch.rows),
                unreadable=tuple(news.values()),
            )


class _Maker(Dataset["_Made | TooManyFailures"]):
    """Makes each batch from its plan alone."""

    def __init__(
        self, images: TrainingImages, config: TrainingConfig, preprocessing: Preprocessing, batch_size: int
    ) -> None:
        self._images = images
        self._members = images.members
        self._config = config
        self._preprocessing = preprocessing
        self._batch_size = batch_size

    def __getitem__(self, plan: _Plan) -> "_Made | TooManyFailures":
        """Make the batch, or return the error: raised in a worker, it would lose its message among tracebacks."""
        try:
            shown = [self.show(plan, place, change) for place, change in enumerate(self.changes(plan))]
        except TooManyFailures as error:
            return error
        return self.gather(plan, shown)

    def changes(self, plan: _Plan) -> list[Change]:
        rng = np.random.default_rng((self._config.seed, plan.step, _CHANGES))
        all_changes = draw_changes(self._config.augmentation, self._batch_size, rng)
        return all_changes[plan.positions.start : plan.positions.stop]

    def show(self, plan: _Plan, place: int, change: Change) -> "_Shown":
        row = int(plan.rows[place])
        square = self._images.square(row)
        unreadable: dict[int, Unreadable] = {}
        if isinstance(square, Unreadable):
            unreadable[row] = square
            for row in self._substitutes(plan, place):
                square = self._images.square(row)
                if not isinstance(square, Unreadable):
                    break
                unreadable[row] = square
            else:
                raise TooManyFailures(
                    f"step {plan.step}: {len(unreadable)} images in a row cannot be read, the last is "
                    f"{self._images.items[row].uri}: {unreadable[row].reason}. Repair or remove them"
                )
        return _Shown(row, apply_change(square, change, self._preprocessing), unreadable)

    def gather(self, plan: _Plan, shown: list["_Shown"]) -> _Made:
        crop = self._preprocessing.crop
        pixels = torch.empty((len(shown), 3, crop, crop), memory_format=torch.channels_last)
        for place, one in enumerate(shown):
            pixels[place] = one.pixels
        unreadable = {row: failure for one in shown for row, failure in one.unreadable.items()}
        return _Made(plan.step, pixels, np.array([one.row for one in shown], dtype=np.int64), unreadable)

    def _substitutes(self, plan: _Plan, place: int) -> list[int]:
        """Return the rows to try instead of an unreadable one: the rest of its class, then some of any class."""
        row = int(plan.rows[place])
        rng = np.random.default_rng((self._config.seed, plan.step, _REPLACEMENTS, plan.positions[place]))
        same_class = rng.permutation(self._members[self._images.labels[row]])
        anywhere = rng.integers(len(self._images.labels), size=_SUBSTITUTES)
        return [int(other) for other in (*same_class, *anywhere) if other != row]


@dataclass(frozen=True, slots=True, eq=False)
class _Shown:
    """The image at one place of a batch; row: the drawn one, or its substitute."""

    row: int
    pixels: Tensor
    unreadable: dict[int, Unreadable]


def _by_threads(maker: _Maker, plans: Iterator[_Plan]) -> Generator[_Made]:
    waiting: deque[tuple[_Plan, list[Future[_Shown]]]] = deque()
    pool = ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="images")
    try:
        for plan in plans:
            waiting.append(
                (plan, [pool.submit(maker.show, plan, place, c) for place, c in enumerate(maker.changes(plan))])
            )
            if len(waiting) > _AHEAD:
                yield _gathered(maker, *waiting.popleft())
        while waiting:
            yield _gathered(maker, *waiting.popleft())
    finally:
        pool.shutdown(cancel_futures=True)


def _gathered(maker: _Maker, plan: _Plan, shown: list[Future[_Shown]]) -> _Made:
    return maker.gather(plan, [future.result() for future in shown])


def _by_workers(maker: _Maker, plans: Iterator[_Plan], n_workers: int) -> Generator[_Made | TooManyFailures]:
    loader = DataLoader(
        maker,
        batch_size=None,  # the sampler yields the plan of a whole batch
        sampler=plans,
        num_workers=n_workers,
        prefetch_factor=_AHEAD,
        # The loader draws seeds for its workers; it must not draw them from the random numbers of the run.
        generator=torch.Generator(),
        worker_init_fn=_begin_worker,
        # A forked worker shares the images, including the file without a name.
        multiprocessing_context="fork",
    )
    iterator = cast(_MultiProcessingDataLoaderIter, iter(loader))
    try:
        yield from iterator
    finally:
        # The iterator ends them only when it is freed, and a traceback may keep it alive until the process ends.
        iterator._shutdown_workers()


def _begin_worker(worker: int) -> None:
    """Ignore Ctrl-C, which reaches every process of the terminal: the main process ends its workers."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    sys.excepthook = _report_unless_disconnected


def _report_unless_disconnected(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Report an error in a thread of a worker, unless the main process ended while it received a batch."""
    if not issubclass(kind, ConnectionError):
        sys.__excepthook__(kind, error, trace)
