"""The option for JSON and the progress bars that the commands of training share."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer

from retrieval.terminal import MoveBar, err, print_json, progress_bars

if TYPE_CHECKING:
    from retrieval.contract.manifest import Item
    from training.experiment import RunNews
    from training.loop import StepReport

AsJson = Annotated[bool, typer.Option("--json", help="Print the result as one JSON object.")]


def read_reporting(source: str, passed_over: list[str]) -> "list[Item]":
    """Read a manifest; print what it holds and is no item to stderr, and add it to `passed_over`."""
    from retrieval.contract.manifest import read_source

    found = read_source(source)
    report_passed_over(found.passed_over)
    passed_over += found.passed_over
    return found.items


def report_passed_over(sentences: Iterable[str]) -> None:
    """Print what a manifest holds and is no item to stderr."""
    for sentence in sentences:
        err.print(sentence, markup=False)


class Bars:
    """Progress bars that appear when their work begins."""

    def __init__(self, progress: MoveBar) -> None:
        self._progress = progress

    def watch(self, description: str) -> Callable[[int, int], None]:
        """Return a function that moves the bar of this description; call it with (done, total)."""
        return lambda done, total: self._progress(description, done, total)

    def step(self, report: "StepReport") -> None:
        """Show a step of training."""
        note = (
            f"loss {report.loss:.2f}, active {report.active_positives:.0%} {report.active_negatives:.1%}, "
            f"{report.images_per_s:.0f}/s"
        )
        if report.evaluation is not None:
            note += f", R@1 {report.evaluation.r_at_1:.3f}, OPIS {report.evaluation.opis:.1e}"
        self._progress("training", report.step, report.steps, note)

    def run(self, news: "RunNews") -> None:
        """Show the new state of a run of an experiment."""
        note = f"{news.arm}, seed {news.seed}: {news.what}"
        err.print(note, markup=False)
        self._progress("runs", news.done, news.total, note)


@contextmanager
def bars() -> Iterator[Bars]:
    """Draw bars on stderr during the block; they stay when it ends."""
    with progress_bars(keep=True) as progress:
        yield Bars(progress)


def print_result(result: dict[str, Any], text: str, as_json: bool) -> None:
    """Print the result as JSON or as text."""
    print_json(result) if as_json else typer.echo(text)
