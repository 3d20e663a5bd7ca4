"""What people see of a run while it trains: a report of each step, its speed, and who is told."""

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

_WINDOW = 20  # answers over which a speed is a mean


@dataclass(frozen=True, slots=True, kw_only=True)
class StepReport(StepValues[float]):
    """One step, for people: its values, and speed over the last steps.

    step: from 1; learning_rates: the highest of each part; images_per_s: of all processes;
    waited: share of the time that went by waiting for data; evaluation: the last one of this process, None before the
    first.
    """

    step: int
    steps: int
    learning_rates: Mapping[str, float]
    images_per_s: float
    waited: float
    evaluation: Evaluation | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Observers:
    """Who is told what happens: items read, images seen by the head, items evaluated (done, of); steps; messages.

    evaluation: gets the number of steps taken and what they led to.
    """

    read: Progress = lambda done, total: None
    head: Progress = lambda done, total: None
    evaluated: Progress = lambda done, total: None
    step: Callable[[StepReport], None] = lambda report: None
    evaluation: Callable[[int, Evaluation], None] = lambda step, evaluation: None
    message: Callable[[str], None] = lambda text: None


SILENT = Observers()


class Listener(Protocol):
    """Who is told of steps and evaluations; Observers are one."""

    @property
    def step(self) -> Callable[[StepReport], None]:
        """Gets a report of each step."""

    @property
    def evaluation(self) -> Callable[[int, Evaluation], None]:
        """Gets what so many steps led to."""


class StepMonitor:
    """Times the steps and tells the listeners of them. n_images: of a step, over all processes."""

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
        """Within it, training waits for data."""
        started = time.perf_counter()
        yield
        self._waited += time.perf_counter() - started

    @contextmanager
    def pausing(self) -> Iterator[None]:
        """Within it, nothing is trained: no part of any step's time."""
        started = time.perf_counter()
        yield
        self._since += time.perf_counter() - started

    def report(self, known: Sequence[tuple[TakenStep, StepValues[float]]]) -> None:
        """Tell of the steps whose values have become known."""
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
        """Tell of an evaluation after `step` steps."""
        self._evaluation = evaluation
        for listener in self._listeners:
            listener.evaluation(step, evaluation)
