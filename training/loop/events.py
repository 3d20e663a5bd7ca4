"""Writes the reports of a run for TensorBoard: curves of losses, rates, speed and evaluations over the steps."""

from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from training.evaluation import Evaluation
from training.loop.monitoring import StepReport

if TYPE_CHECKING:
    from torch.utils.tensorboard.writer import SummaryWriter


class EventLog:
    """Writes events for TensorBoard into a folder, from the step after `first` on.

    Events of later steps that an earlier process wrote are marked as invalid. A log that cannot be written does not end
    a run: logging stops with one message.
    """

    def __init__(self, folder: Path, *, first: int, message: Callable[[str], None]) -> None:
        self._message = message
        self._writer: SummaryWriter | None = None
        try:
            # Imported here because it takes a second, and only the process that writes needs it.
            from torch.utils.tensorboard import SummaryWriter as Writer

            self._writer = Writer(str(folder), purge_step=first + 1)
        except ImportError:
            message("no events for TensorBoard: they need pip install tensorboard")
        except OSError as error:
            message(f"no events for TensorBoard: {folder} cannot be written: {error}")

    def step(self, report: StepReport) -> None:
        """Add the values of a step."""
        values = {
            "loss/total": report.loss,
            "loss/base": report.base,
            "loss/margin": report.margin,
            "active/positives": report.active_positives,
            "active/negatives": report.active_negatives,
            "margin/positive": report.positive_margin,
            "margin/negative": report.negative_margin,
            "gradient_norm": report.gradient_norm,
            "speed/images_per_s": report.images_per_s,
            "speed/waited_for_data": report.waited,
        }
        rates = {f"learning_rate/{name}": rate for name, rate in report.learning_rates.items()}
        self._add(report.step, values | rates)

    def evaluation(self, step: int, evaluation: Evaluation) -> None:
        """Add the numbers of an evaluation after `step` steps."""
        values = asdict(evaluation)
        self._add(step, {f"validation/{name}": v for name, v in values.items() if isinstance(v, int | float)})

    def close(self) -> None:
        """Write the events that are still in memory."""
        self._try(lambda writer: writer.close())

    def _add(self, step: int, values: Mapping[str, float]) -> None:
        def add(writer: "SummaryWriter") -> None:
            for name, value in values.items():
                writer.add_scalar(name, value, step)

        self._try(add)

    def _try(self, work: "Callable[[SummaryWriter], None]") -> None:
        if self._writer is None:
            return
        try:
            work(self._writer)
        except OSError as error:
            self._writer = None
            self._message(f"no more events for TensorBoard: {error}")
