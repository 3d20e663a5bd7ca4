"""Output, progress bars and exit codes of the commands `retrieval` and `training`.

Results go to stdout, everything else to stderr. Tables and bars are imported at first use, because most commands do not
use them. Only this module imports rich.
"""

import contextlib
import json
import math
import re
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Annotated, Any, NoReturn, Protocol

import typer
from rich.console import Console

from retrieval.errors import InvalidInput, InvalidSettings, RetrievalError


class MoveBar(Protocol):
    """Moves the bar of a description to `done` of `total` (0 if unknown), followed by a note."""

    def __call__(self, description: str, done: int, total: int, note: str = "") -> None: ...  # noqa: D102


OK, VERDICT_FAILED, WRONG_USAGE, COULD_NOT_RUN, INTERRUPTED = 0, 1, 2, 3, 130

_SURROGATE = re.compile("[\ud800-\udfff]")  # Python's stand-in for a byte of a name that is not UTF-8 text
_FILE_WIDTH = 140  # of tables that go to a file or another program; rich would assume 80 columns
_on_terminal = sys.stdout is not None and sys.stdout.isatty()  # None if the command starts with stdout closed
out = Console(soft_wrap=True, width=None if _on_terminal else _FILE_WIDTH)
err = Console(stderr=True, soft_wrap=True, highlight=False)


def _print_version(wanted: bool) -> None:
    """Print the installed version and end the command, if `--version` was given."""
    if wanted:
        from importlib.metadata import version

        out.print(version("threshold-retrieval"), highlight=False)
        raise typer.Exit


Version = Annotated[
    bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
]


def print_json(value: Any) -> None:
    """Print one JSON document on stdout. A file name that is not UTF-8 is escaped.

    Numbers are numbers, also those of NumPy and torch; NaN and infinity, which JSON does not have, are null.
    """
    text = json.dumps(_plain(value), indent=2, ensure_ascii=False, allow_nan=False)
    out.out(_SURROGATE.sub(lambda found: f"\\u{ord(found[0]):04x}", text), highlight=False)


def _plain(value: Any) -> Any:
    """Return a value in the types of JSON; what has none as text."""
    if isinstance(value, Mapping):
        return {str(name): _plain(member) for name, member in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(member) for member in value]
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if value is None or isinstance(value, str | int):
        return value
    return _plain(value.tolist()) if hasattr(value, "tolist") else str(value)


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print a table on stdout. Text of users is printed literally, without markup or control characters."""
    from rich.table import Table
    from rich.text import Text

    table = Table(title=title, title_justify="left")
    for column in columns:
        table.add_column(column, no_wrap=column == "id", overflow="fold")  # people copy ids
    for row in rows:
        table.add_row(*(Text(_printable(value)) for value in row))
    out.print(table)


def print_error(error: object) -> None:
    """Print an error on stderr as one line, in red on a terminal."""
    err.print(f"error: {_printable(' '.join(str(error).splitlines()))}", style="red", markup=False)


def _printable(value: object) -> str:
    """Return the text of a value with a replacement for each character that could control the terminal."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in str(value))


@contextlib.contextmanager
def progress_bars(*, keep: bool = False) -> Iterator[MoveBar]:
    """Show bars on stderr during the block, one for each description that the yielded function is called with.

    Without `keep` they vanish at the end and are not shown if stderr is not a terminal. With `keep`, a stderr that is
    no terminal, such as a log, gets a line for every tenth of each work.
    """
    if keep and not err.is_terminal:
        yield _lines()
        return
    from rich import progress as rich_progress

    columns = (
        rich_progress.TextColumn("{task.description}", markup=False),
        rich_progress.BarColumn(bar_width=20),
        rich_progress.MofNCompleteColumn(),
        rich_progress.TimeElapsedColumn(),
        rich_progress.TimeRemainingColumn(),
        rich_progress.TextColumn("{task.fields[note]}", markup=False),
    )
    tasks: dict[str, rich_progress.TaskID] = {}
    with rich_progress.Progress(
        *columns, console=err, transient=not keep, disable=not (keep or err.is_terminal)
    ) as display:

        def update(description: str, done: int, total: int, note: str = "") -> None:
            if description not in tasks:
                tasks[description] = display.add_task(description, total=None, note="")
            display.update(tasks[description], completed=done, total=total or None, note=note)

        yield update


def _lines() -> MoveBar:
    """Return a function that prints a line when another tenth of a work is done."""
    tenths: dict[str, int] = {}

    def update(description: str, done: int, total: int, note: str = "") -> None:
        tenth = 10 * done // total if total else 0
        before = tenths.get(description, 0)
        if tenth > (0 if tenth < before else before):  # it falls when the same work begins again
            err.print(f"{description} {done} of {total}" + (f", {note}" if note else ""), markup=False)
        tenths[description] = tenth

    return update


@contextlib.contextmanager
def progress_bar(description: str) -> Iterator[Callable[[int, int], None]]:
    """Show one bar on stderr during the block; call the yielded function with (done, total)."""
    with progress_bars() as update:
        update(description, 0, 0)
        yield lambda done, total: update(description, done, total)


def exit_code_of(error: BaseException) -> int:
    """Return the exit code of an error: 2 if the command or its settings must change, 130 for Ctrl-C, else 3."""
    if isinstance(error, KeyboardInterrupt):
        return INTERRUPTED
    return WRONG_USAGE if isinstance(error, InvalidInput | InvalidSettings) else COULD_NOT_RUN


def run(app: Callable[[], object]) -> NoReturn:
    """Run a typer application and end the process with its exit code.

    A known error is one line on stderr. An unknown one, which is a defect, also prints its trace, and its code is 3,
    because 1 means that a verdict failed.
    """
    try:
        app()
    except (RetrievalError, OSError) as error:  # OSError: a full disk, a folder without permission; its text names it
        print_error(error)
        sys.exit(exit_code_of(error))
    except UnicodeEncodeError as error:  # an argument for a message, which carries UTF-8, or text for a terminal
        near = error.object[max(0, error.start - 50) : error.end + 50]
        print_error(f"{near!a} cannot be written as {error.encoding}")
        sys.exit(WRONG_USAGE)
    except KeyboardInterrupt as interrupt:
        sys.exit(exit_code_of(interrupt))
    except SystemExit as end:
        if isinstance(end.__context__, BrokenPipeError):  # typer and rich both end with 1 if the reader has gone
            sys.exit(COULD_NOT_RUN)
        raise
    except Exception as error:  # noqa: BLE001  # Python itself would end with 1
        traceback.print_exc()
        print_error(f"{type(error).__name__}: {error}. This is a defect of the program")
        sys.exit(exit_code_of(error))
    sys.exit(OK)
