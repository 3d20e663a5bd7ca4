"""The batches of a run's steps, made in threads or worker processes while the step before is computed.

Decides what a batch holds and who makes it. Every random choice is a function of seed, step and position in the batch,
whatever the number of workers and of training processes.
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

_AHEAD = 2  # batches made before they are asked for, by the threads or by each worker
_SUBSTITUTES = 20  # images of any class tried where none of the drawn one's class can be read
_CHANGES, _REPLACEMENTS = 1, 2  # streams of random numbers beside that of the sampler


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Batch:
    """What a step trains on: this process's share of the batch, in the batch's order.

    pixels: [n, 3, crop, crop] float32, channels last in memory; labels: [n] int64; ids: of the items, for people.
    unreadable: items met for the first time that cannot be read; others of their classes stand in for them.
    """

    step: int
    pixels: Tensor
    labels: Tensor
    ids: tuple[str, ...]
    unreadable: tuple[Unreadable, ...]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Plan:
    """What a batch is to hold: its rows and positions in the whole batch."""

    step: int
    rows: NDArray[np.int64]
    positions: range


@dataclass(frozen=True, slots=True, eq=False)
class _Made:
    """A batch before it is told apart which unreadable rows are new; rows: those that were shown."""

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
    """The batches of the steps from `first` to the end of the schedule.

    Process `rank` of `world` gets a contiguous share; the shares of all, one after another, are the batch of a single
    process. Close the iterator (or let it end) to end the workers. Raises InvalidInput where the batch is too small to
    share, TooManyFailures where more images than `config.data.max_unreadable` allows turn out unreadable.
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
    with closing(made):  # at once, rather than when the last trace of an error that left a batch unused is gone
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
    """Makes batches, each from its plan alone."""

    def __init__(
        self, images: TrainingImages, config: TrainingConfig, preprocessing: Preprocessing, batch_size: int
    ) -> None:
        self._images = images
        self._members = images.members
        self._config = config
        self._preprocessing = preprocessing
        self._batch_size = batch_size

    def __getitem__(self, plan: _Plan) -> "_Made | TooManyFailures":
        """The batch, or why there is none: raised in a worker, an error would lose its message among traces."""
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
                    f"{self._images.items[row].uri}: {unreadable[row].reason}. Mend or remove them"
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
        """Rows to try for one that cannot be read: the rest of its class, then some of any class."""
        row = int(plan.rows[place])
        rng = np.random.default_rng((self._config.seed, plan.step, _REPLACEMENTS, plan.positions[place]))
        same_class = rng.permutation(self._members[self._images.labels[row]])
        anywhere = rng.integers(len(self._images.labels), size=_SUBSTITUTES)
        return [int(other) for other in (*same_class, *anywhere) if other != row]


@dataclass(frozen=True, slots=True, eq=False)
class _Shown:
    """The image at one place of a batch; row: the drawn one, or that which stands in for the unreadable ones."""

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
        batch_size=None,  # what the sampler gives is the plan of a whole batch
        sampler=plans,
        num_workers=n_workers,
        prefetch_factor=_AHEAD,
        # Of its own: seeds of workers, which nothing here uses, must not be drawn from the run's random numbers.
        generator=torch.Generator(),
        worker_init_fn=_begin_worker,
        # Forked, a worker has the images at hand, the file without a name among them.
        multiprocessing_context="fork",
    )
    iterator = cast(_MultiProcessingDataLoaderIter, iter(loader))
    try:
        yield from iterator
    finally:
        # It would end them when it is forgotten, but the trace of an error remembers it to the end of the process.
        iterator._shutdown_workers()


def _begin_worker(worker: int) -> None:
    """Ctrl-C reaches every process of the terminal: the main one ends its workers, who have nothing to say of it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    sys.excepthook = _tell_unless_left


def _tell_unless_left(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Tell of an error in a worker's thread, unless it is that the main process went while it took over a batch."""
    if not issubclass(kind, ConnectionError):
        sys.__excepthook__(kind, error, trace)
