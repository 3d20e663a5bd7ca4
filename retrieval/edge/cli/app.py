"""The command `retrieval`: the list of its commands. Nouns and verbs are those of the flows."""

import typer

from retrieval.edge.cli.audit import audit, list_audits, show_audit
from retrieval.edge.cli.bundles import list_bundles, name_bundle
from retrieval.edge.cli.calibrate import calibrate
from retrieval.edge.cli.catalogs import list_catalogs
from retrieval.edge.cli.demo import demo
from retrieval.edge.cli.jobs import list_jobs, show_job
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
    rich_markup_mode=None,  # the tables of rich cut the names of options at 80 columns
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


bundles = typer.Typer(help="List the model bundles of a store, or name one.", no_args_is_help=True)
bundles.command("list")(list_bundles)
bundles.command("name")(name_bundle)
app.add_typer(bundles, name="bundles")

catalogs = typer.Typer(help="List catalogues.", no_args_is_help=True)
catalogs.command("list")(list_catalogs)
app.add_typer(catalogs, name="catalogs")

jobs = typer.Typer(help="List or show jobs: reindexes and audits.", no_args_is_help=True)
jobs.command("list")(list_jobs)
jobs.command("show")(show_job)
app.add_typer(jobs, name="jobs")

audits = typer.Typer(help="List or show finished audits.", no_args_is_help=True)
audits.command("list")(list_audits)
audits.command("show")(show_audit)
app.add_typer(audits, name="audits")


def main() -> None:
    """Run the command line and end the process with its exit code."""
    run(app)
