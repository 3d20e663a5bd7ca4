"""Reports of a run while it trains: the values and the speed of each step, and the functions that receive them."""

import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Protocol

from training.data import Progress
from training.evaluation import Evaluation
from training.loop.divergence import TakenStep
from training.loop.values import StepValues

_WINDOW = 20  # number of reports over which the speed is averaged


@dataclass(frozen=True, slots=True, kw_only=True)
class StepReport(StepValues[float]):
    """The values of one step, and the speed over the last steps.

    step: from 1; learning_rates: the highest of each part; images_per_s: of all processes; waited: share of the time
    spent waiting for data; evaluation: the last one of this process, None before the first.
    """

    step: int
    steps: int
    learning_rates: Mapping[str, float]
    images_per_s: float
    waited: float
    evaluation: Evaluation | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Observers:
    """Functions that are called while a run trains.

    read, head, evaluated: progress (done, total) of reading items, of computing features for the head, of evaluating
    items. step: gets a report of each step; evaluation: gets the number of steps taken and their evaluation;
    message: gets a sentence for people.
    """

    read: Progress = lambda done, total: None
    head: Progress = lambda done, total: None
    evaluated: Progress = lambda done, total: None
    step: Callable[[StepReport], None] = lambda report: None
    evaluation: Callable[[int, Evaluation], None] = lambda step, evaluation: None
    message: Callable[[str], None] = lambda text: None


SILENT = Observers()


class Listener(Protocol):
    """Receives reports of steps and evaluations; Observers is an example."""

    @property
    def step(self) -> Callable[[StepReport], None]:
        """Return the function that gets a report of each step."""

    @property
    def evaluation(self) -> Callable[[int, Evaluation], None]:
        """Return the function that gets an evaluation and the number of steps before it."""


class StepMonitor:
    """Times the steps and reports them to the listeners. n_images: images per step, over all processes."""

    def __init__(self, listeners: Sequence[Listener], *, steps: int, n_images: int) -> None:
        self._listeners = listeners
        self._steps = steps
        self._n_images = n_images
        self._since = time.perf_counter()
        self._waited = 0.0
        self._window: deque[tuple[int, float, float]] = deque(maxlen=_WINDOW)
        self._evaluation: Evaluation | None = None

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Count the time in the context as waiting for data."""
        started = time.perf_counter()
        yield
        self._waited += time.perf_counter() - started

    @contextmanager
    def pausing(self) -> Iterator[None]:
        """Leave the time in the context out of the time of the steps."""
        started = time.perf_counter()
        yield
        self._since += time.perf_counter() - started

    def report(self, known: Sequence[tuple[TakenStep, StepValues[float]]]) -> None:
        """Report the steps whose values have become known."""
        if not known:
            return
        now = time.perf_counter()
        self._window.append((len(known), now - self._since, self._waited))
        self._since, self._waited = now, 0.0
        n_steps, seconds, waited = (sum(column) for column in zip(*self._window, strict=True))
        for taken, values in known:
            report = StepReport(
                **asdict(values),
                step=taken.step,
                steps=self._steps,
                learning_rates=taken.learning_rates,
                images_per_s=n_steps * self._n_images / seconds,
                waited=waited / seconds,
                evaluation=self._evaluation,
            )
            for listener in self._listeners:
                listener.step(report)

    def evaluated(self, step: int, evaluation: Evaluation) -> None:
        """Report an evaluation after `step` steps."""
        self._evaluation = evaluation
        for listener in self._listeners:
            listener.evaluation(step, evaluation)
