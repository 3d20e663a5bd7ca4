"""The command `retrieval`: the list of its commands. Nouns and verbs are those of the flows."""

import typer

from retrieval.edge.cli.audit import audit
from retrieval.edge.cli.calibrate import calibrate
from retrieval.edge.cli.demo import demo
from retrieval.edge.cli.operating_points import activate_point, list_points, show_point
from retrieval.edge.cli.prune import prune
from retrieval.edge.cli.reindex import reindex
from retrieval.edge.cli.search import search
from retrieval.edge.cli.serving import beat, health, serve, worker
from retrieval.edge.cli.snapshots import list_snapshots, roll_back
from retrieval.terminal import Version, run

app = typer.Typer(
    help="Image retrieval with one calibrated threshold. Settings are environment variables RETRIEVAL_*, see "
    "docs/settings.md.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)


@app.callback()
def _options(version: Version = False) -> None:
    """Declare the options of the command itself; each runs on its own."""


for command in (calibrate, reindex, search, audit, prune, serve, worker, beat, health, demo):
    app.command()(command)

snapshots = typer.Typer(help="List the snapshots of a catalogue, or go back to an older one.", no_args_is_help=True)
snapshots.command("list")(list_snapshots)
snapshots.command("rollback")(roll_back)
app.add_typer(snapshots, name="snapshots")

points = typer.Typer(
    help="List, show or activate operating points: thresholds with their evidence.", no_args_is_help=True
)
points.command("list")(list_points)
points.command("show")(show_point)
points.command("activate")(activate_point)
app.add_typer(points, name="operating-points")


def main() -> None:
    """Run the command line and end the process with its exit code."""
    run(app)
