"""The course of a run from its first step to its last: batches, steps, evaluations and checkpoints."""

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from itertools import islice

from retrieval.contract.manifest import Item
from retrieval.contract.preprocessing import Preprocessing
from training.data import Batch, TrainingImages, Unreadable, batch_size, batches, refuse_too_many
from training.evaluation import Evaluation, evaluate_items
from training.loop.divergence import Guard, TakenStep
from training.loop.embedding import embedding_function
from training.loop.events import EventLog
from training.loop.interrupts import noted_interrupts
from training.loop.monitoring import Observers, StepMonitor
from training.loop.processes import Processes
from training.loop.runs import EVENTS, Run, write_checkpoint
from training.loop.state import TrainingState
from training.loop.steps import Stepper


class Course:
    """Takes the remaining steps, evaluates on `validation`, and saves into the folder of the run.

    All processes follow the same course; only the main process evaluates, saves and reports.
    """

    def __init__(
        self,
        state: TrainingState,
        run: Run,
        preprocessing: Preprocessing,
        validation: Sequence[Item],
        processes: Processes,
        observers: Observers,
    ) -> None:
        self._state = state
        self._run = run
        self._config = run.config
        self._preprocessing = preprocessing
        self._validation = validation
        self._processes = processes
        self._observers = observers
        self._unreadable: list[Unreadable] = []  # found by this process and not yet reported
        self._reported: set[str] = set()

    def run(self, images: TrainingImages) -> Evaluation:
        """Train to the end of the schedule, or until evaluations stop improving; evaluate the final weights."""
        with closing(self._draw(images)) as drawn, self._monitor(images) as monitor:
            with noted_interrupts(self._observers.message) as interrupted:
                self._take_steps(drawn, monitor, n_images=len(images.labels), interrupted=interrupted)
            if self._processes.agree_on_any(interrupted()):
                self._observers.message(f"a checkpoint was written after step {self._state.step}")
                raise KeyboardInterrupt
            return self._processes.on_main(lambda: self._conclude(monitor))

    def save(self) -> None:
        """Replace the checkpoint, in the main process. Raises OutOfSpace in all of them."""
        self._processes.on_main(lambda: write_checkpoint(self._run, self._state.state_dict()))

    def _take_steps(
        self, drawn: Iterator[Batch], monitor: StepMonitor, *, n_images: int, interrupted: Callable[[], bool]
    ) -> None:
        """Take steps to the end of the schedule, or until evaluations or the user end them; the last one is saved.

        After Ctrl-C, in one process or in all, all end after the same step: the next one whose values they read.
        """
        state, loop, n_steps = self._state, self._config.loop, self._config.schedule.steps
        stepper = Stepper(state, self._processes, self._config)
        guard = Guard(self._processes, self._run.folder, gradient_may_overflow=state.scaler is not None)
        while state.step < n_steps and not state.stopping.over:
            with monitor.waiting():
                parts = list(islice(drawn, loop.accumulate))
            self._unreadable += [failure for part in parts for failure in part.unreadable]
            rates = stepper.set_learning_rates()
            values = stepper.measure(parts)
            number = state.step + 1
            must_evaluate = loop.evaluate_every > 0 and (number % loop.evaluate_every == 0 or number == n_steps)
            must_save = number % loop.checkpoint_every == 0 or number == n_steps
            must_read = must_evaluate or must_save or (self._processes.world == 1 and interrupted())
            taken = TakenStep(step=number, learning_rates=rates, ids=[name for part in parts for name in part.ids])
            known = guard.check(taken, values, now=must_read)
            ends = bool(known) and self._processes.agree_on_any(interrupted())
            must_save = must_save or ends
            stepper.descend(values.gradient_norm)
            state.step = number
            monitor.report(known)
            with monitor.pausing():
                if must_evaluate or must_save or self._processes.world == 1:
                    self._report_unreadable(n_images)
                if must_evaluate:
                    state.stopping.over = self._processes.on_main(lambda: self._consider(monitor))
                    state.embedder.train()
                if must_save or state.stopping.over:
                    self.save()
            if ends:
                return

    def _evaluate(self, *, in_full: bool) -> Evaluation:
        return evaluate_items(
            self._validation,
            embedding_function(self._state.evaluated),
            self._preprocessing,
            max_unreadable=self._config.data.max_unreadable,
            progress=self._observers.evaluated,
            in_full=in_full,
        )

    def _consider(self, monitor: StepMonitor) -> bool:
        """Evaluate, and return whether the run ends."""
        state, evaluation = self._state, self._evaluate(in_full=False)
        monitor.evaluated(state.step, evaluation)
        state.stopping.consider(state.step, evaluation, state.evaluated, self._config.loop)
        return state.stopping.over

    def _conclude(self, monitor: StepMonitor) -> Evaluation:
        """Evaluate the final weights."""
        state = self._state
        if state.stopping.weights is not None:
            state.evaluated.load_state_dict(state.stopping.weights)
            return self._evaluate(in_full=True)
        evaluation = self._evaluate(in_full=True)
        monitor.evaluated(state.step, evaluation)
        return evaluation

    def _draw(self, images: TrainingImages) -> Generator[Batch]:
        """Draw this process's shares of the batches of the next steps, `accumulate` batches for each step."""
        schedule, n = self._config.schedule, self._config.loop.accumulate
        long = replace(self._config, schedule=replace(schedule, steps=n * schedule.steps))
        rank, world = self._processes.rank, self._processes.world
        return batches(images, long, self._preprocessing, first=n * self._state.step, rank=rank, world=world)

    def _report_unreadable(self, n_images: int) -> None:
        """Report the unreadable images of all processes, which wait for each other to collect them.

        Raises TooManyFailures if the processes together found too many; each process checks its own count itself.
        """
        for failure in self._processes.collect(self._unreadable):
            if failure.item.id not in self._reported:
                self._reported.add(failure.item.id)
                self._observers.message(f"skipped {failure.item.uri}: {failure.reason}")
                refuse_too_many(len(self._reported), n_images, self._config.data.max_unreadable, failure)
        self._unreadable.clear()

    @contextmanager
    def _monitor(self, images: TrainingImages) -> Iterator[StepMonitor]:
        """Report to the observers and TensorBoard in the main process, and to nobody in the others."""
        schedule = self._config.schedule
        n_images = batch_size(schedule, len(images.classes)) * self._config.loop.accumulate
        if not self._processes.is_main:
            yield StepMonitor([], steps=schedule.steps, n_images=n_images)
            return
        log = EventLog(self._run.folder / EVENTS, first=self._state.step, message=self._observers.message)
        with closing(log) as events:
            yield StepMonitor([self._observers, events], steps=schedule.steps, n_images=n_images)
