"""What commands say and how: results on stdout, messages and progress on stderr, exit codes."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

if TYPE_CHECKING:
    from training.experiment import RunNews
    from training.loop import StepReport

VERDICT_FAILED, USAGE_ERROR, COULD_NOT_RUN, INTERRUPTED = 1, 2, 3, 130

AsJson = Annotated[bool, typer.Option("--json", help="Print the result as one JSON object.")]

messages = Console(stderr=True, highlight=False)


class Bars:
    """Progress bars that appear when their work begins."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._tasks: dict[str, TaskID] = {}

    def watch(self, description: str) -> Callable[[int, int], None]:
        """What to tell of work described so: how much is done, of how much."""

        def update(done: int, total: int) -> None:
            self._update(description, done, total)

        return update

    def step(self, report: "StepReport") -> None:
        """Show a step of training."""
        note = (
            f"loss {report.loss:.2f}, active {report.active_positives:.0%} {report.active_negatives:.1%}, "
            f"{report.images_per_s:.0f}/s"
        )
        if report.evaluation is not None:
            note += f", R@1 {report.evaluation.r_at_1:.3f}, OPIS {report.evaluation.opis:.1e}"
        self._update("training", report.step, report.steps, note)

    def run(self, news: "RunNews") -> None:
        """Show what became of a run of an experiment."""
        self._progress.console.print(f"{news.arm}, seed {news.seed}: {news.what}", markup=False)
        self._update("runs", news.done, news.total, f"{news.arm}, seed {news.seed}: {news.what}")

    def _update(self, description: str, done: int, total: int, note: str = "") -> None:
        if description not in self._tasks:
            self._tasks[description] = self._progress.add_task(description, total=total, note="")
        self._progress.update(self._tasks[description], completed=done, total=total, note=note)


@contextmanager
def progress_bars() -> Iterator[Progress]:
    """Where bars are drawn, on stderr, until the work is done."""
    columns = (
        TextColumn("{task.description:<14}"),
        BarColumn(bar_width=12),
        MofNCompleteColumn(),
        TimeRemainingColumn(elapsed_when_finished=True),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=messages) as progress:
        yield progress


def print_result(result: dict[str, Any], text: str, as_json: bool) -> None:
    """Print the result for a machine, or its text for people."""
    typer.echo(json.dumps(result, indent=2) if as_json else text)
