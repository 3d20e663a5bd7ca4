"""What people and machines read on a terminal: results on stdout, everything else on stderr. Hides rich."""

import contextlib
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

_FILE_WIDTH = 140  # of tables that go to a file or another program, where rich would assume 80 columns
out = Console(soft_wrap=True, width=None if sys.stdout.isatty() else _FILE_WIDTH)
err = Console(stderr=True, soft_wrap=True)


def print_json(value: Any) -> None:
    """One JSON document on stdout."""
    out.out(json.dumps(value, indent=2, ensure_ascii=False, default=str), highlight=False)


def as_dict(message: Message) -> dict[str, Any]:
    """A message as plain JSON, fields named as in the .proto files, unset ones included."""
    return MessageToDict(message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True)


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """A table on stdout; text of users is shown as it is, without markup or control characters."""
    table = Table(title=title, title_justify="left")
    for column in columns:
        table.add_column(column, no_wrap=column == "id", overflow="fold")  # ids are there to be copied
    for row in rows:
        table.add_row(
            *(Text("".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in str(v))) for v in row)
        )
    out.print(table)


def _printable(text: str) -> str:
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)


@contextlib.contextmanager
def progress_bar(description: str) -> Iterator[Callable[[int, int], None]]:
    """A bar on stderr; call what is yielded with (done, total). Shows nothing where stderr is no terminal."""
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=err, transient=True, disable=not err.is_terminal) as progress:
        task = progress.add_task(description, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total or None)
