"""The command `training`: the list of its commands."""

import os

import typer

from retrieval.terminal import Version, run
from training.cli import bundles, data, runs

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # the tables of rich cut the names of options at 80 columns
    help="Train an embedder for which one similarity threshold fits all classes, and export it as a model bundle.\n\n"
    "Images are named by a folder with one sub-folder per class, or by a .csv, .parquet or .jsonl table with the "
    "columns id, uri and label.",
)


@app.callback()
def _options(version: Version = False) -> None:
    """Declare the options of the command itself; each runs on its own."""


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
    """Run the command line and end the process with its exit code."""
    # Threads that spin while they wait make training up to three times slower if another process wants a core.
    # OpenMP looks once, when torch is imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    run(app)
