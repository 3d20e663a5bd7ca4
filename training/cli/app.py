"""The command line of training: which commands there are, and how errors end them."""

import os
import sys

import typer

from retrieval.errors import InvalidInput, InvalidSettings, RetrievalError
from training.cli import bundles, data, runs
from training.cli.terminal import COULD_NOT_RUN, USAGE_ERROR, messages

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Train an embedder for which one similarity threshold fits all classes, and export it as a model bundle.\n\n"
    "Images are named by a folder with one sub-folder per class, or by a .csv, .parquet or .jsonl table with the "
    "columns id, uri and label.",
)
for command in (
    data.emoji,
    data.split,
    data.duplicates,
    runs.train,
    bundles.evaluate,
    bundles.export,
    runs.embed,
    runs.experiment,
):
    app.command()(command)


def main() -> None:
    """Run the command line.

    Exit code: 0 done, 1 a check failed, 2 wrong usage or input, 3 could not run, 130 interrupted.
    """
    # Threads that spin while they wait make training up to three times slower wherever another process wants a core.
    # OpenMP looks once, when torch is imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        app()
    except RetrievalError as error:
        messages.print(f"error: {error}", style="bold red", markup=False)
        sys.exit(USAGE_ERROR if isinstance(error, InvalidInput | InvalidSettings) else COULD_NOT_RUN)
    except OSError as error:  # a folder that may not be written to, a full disk: its own text names the file
        messages.print(f"error: {error}", style="bold red", markup=False)
        sys.exit(COULD_NOT_RUN)
