"""What people and machines read on a terminal, and how a command ends: shared by `retrieval` and `training`.

Results go to stdout, everything else to stderr. Tables and bars are imported at first use, because most commands end
without them. Hides rich.
"""

import contextlib
import json
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

from rich.console import Console

from retrieval.errors import InvalidInput, InvalidSettings, RetrievalError

if TYPE_CHECKING:
    from rich.progress import Progress, ProgressColumn

OK, VERDICT_FAILED, WRONG_USAGE, COULD_NOT_RUN, INTERRUPTED = 0, 1, 2, 3, 130

_FILE_WIDTH = 140  # of tables that go to a file or another program, where rich would assume 80 columns
out = Console(soft_wrap=True, width=None if sys.stdout.isatty() else _FILE_WIDTH)
err = Console(stderr=True, soft_wrap=True, highlight=False)


def print_json(value: Any) -> None:
    """Print one JSON document on stdout."""
    out.out(json.dumps(value, indent=2, ensure_ascii=False, default=str), highlight=False)


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print a table on stdout. Text of users is shown as it is, without markup or control characters."""
    from rich.table import Table
    from rich.text import Text

    table = Table(title=title, title_justify="left")
    for column in columns:
        table.add_column(column, no_wrap=column == "id", overflow="fold")  # people copy ids
    for row in rows:
        table.add_row(
            *(Text("".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in str(v))) for v in row)
        )
    out.print(table)


def print_error(error: object) -> None:
    """Print an error on stderr as one line, in red on a terminal."""
    err.print(f"error: {error}", style="red", markup=False)


@contextlib.contextmanager
def progress_bar(description: str) -> Iterator[Callable[[int, int], None]]:
    """Show a bar on stderr during the block; call the yielded function with (done, total).

    Shows nothing if stderr is no terminal.
    """
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with progress_display(*columns, transient=True, disable=not err.is_terminal) as progress:
        task = progress.add_task(description, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total or None)


def progress_display(*columns: "ProgressColumn", transient: bool = False, disable: bool = False) -> "Progress":
    """Return a display of progress bars on stderr, with these columns; it shows them inside its `with` block."""
    from rich.progress import Progress

    return Progress(*columns, console=err, transient=transient, disable=disable)


def exit_code_of(error: BaseException) -> int:
    """Return the exit code of an error: 2 if the command or its settings must change, 130 for Ctrl-C, else 3."""
    if isinstance(error, KeyboardInterrupt):
        return INTERRUPTED
    return WRONG_USAGE if isinstance(error, InvalidInput | InvalidSettings) else COULD_NOT_RUN


def run(app: Callable[[], object]) -> NoReturn:
    """Run a typer application and end the process with its exit code.

    A known error is one line on stderr. An unknown one, which is a defect, also prints its trace. Exit code 1 is left to
    commands whose verdict failed, so a crash never looks like one.
    """
    try:
        app()
    except (RetrievalError, OSError) as error:  # of the system: a full disk or a refused folder, named in its text
        print_error(error)
        sys.exit(exit_code_of(error))
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
