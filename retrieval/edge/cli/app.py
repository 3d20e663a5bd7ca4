"""The command `retrieval`: nouns and verbs equal to the flows.

Decides options, output and exit codes (0 ok, 1 verdict failed, 2 wrong usage, 3 could not run); leaves the work to the
flows, here or behind the server.
"""

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from retrieval.client import connect
from retrieval.client.statuses import EXIT_COULD_NOT_RUN, EXIT_VERDICT_FAILED, exit_code_of
from retrieval.consistency.thresholds.targets import Target, parse_target
from retrieval.edge import offline
from retrieval.edge.cli.demo import run_demo
from retrieval.edge.cli.search import look_up
from retrieval.edge.jobs.embedded import embedded_valkey
from retrieval.edge.settings import Settings, load_settings
from retrieval.errors import InvalidInput, RetrievalError
from retrieval.flows.calibrate import COHORT_K, CalibrationTarget
from retrieval.terminal import as_dict, err, out, print_json, print_table, progress_bar
from retrieval.v1 import audits_pb2, catalogs_pb2, jobs_pb2, operating_points_pb2

app = typer.Typer(
    help="Image retrieval with one calibrated threshold. Settings: environment variables RETRIEVAL_*, see the README.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
snapshots_app = typer.Typer(help="The states of a catalogue: list them, go back to one.", no_args_is_help=True)
points_app = typer.Typer(help="Thresholds with their evidence: list, show, activate.", no_args_is_help=True)
app.add_typer(snapshots_app, name="snapshots")
app.add_typer(points_app, name="operating-points")

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document for machines.")]
Store = Annotated[
    str | None, typer.Option("--store", help="Where artefacts live: a path or URL. [RETRIEVAL_STORE_URL]")
]
Address = Annotated[
    str | None, typer.Option("--address", help="host:port of the server. [RETRIEVAL_ADDRESS, 127.0.0.1:50051]")
]
StateDir = Annotated[
    Path | None, typer.Option("--state-dir", help="This machine's own state. [RETRIEVAL_STATE_DIR, .retrieval]")
]
Catalog = Annotated[str, typer.Argument(help="Name of the catalogue.")]
Manifest = Annotated[
    str, typer.Argument(help="A folder (one sub-folder per class) or a .csv, .parquet or .jsonl with id, uri, label.")
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what would change, change nothing.")]
Bundle = Annotated[str, typer.Option("--bundle", help="Digest of a bundle; needed where the store holds several.")]


def main() -> None:
    """Run the command line; a known error is one line on stderr and its exit code."""
    try:
        app()
    except RetrievalError as error:
        err.print(f"error: {error}", style="red", markup=False, highlight=False)
        sys.exit(exit_code_of(error))
    except OSError as error:  # a full disk, a folder that may not be written: nothing that a trace would explain
        err.print(f"error: {error}", style="red", markup=False, highlight=False)
        sys.exit(EXIT_COULD_NOT_RUN)


@app.command()
def calibrate(
    bundle: Annotated[str, typer.Option(help="A folder that `training export` wrote, or a digest in the store.")],
    data: Annotated[str, typer.Option(help="Labelled images of classes that were never trained on.")],
    cohort: Annotated[
        str, typer.Option(help="Images of further classes of the same kind: also tries the cohort score.")
    ] = "",
    k: Annotated[int, typer.Option(min=1, help="Nearest cohort images that make the density.")] = COHORT_K,
    far: Annotated[
        float | None, typer.Option(help="Target: pooled pairwise false accept rate, short for --target far=... [0.01]")
    ] = None,
    target: Annotated[
        str,
        typer.Option(
            help="Another target: class-far=0.01 (mean over classes of FAR), frr=0.1 (share of true pairs rejected), "
            "precision=0.9@0.01 (where a share 0.01 of compared pairs match), f1@0.01 (largest F1 there), utility "
            "(largest mean over classes of the utility of OPIS), false-matches=1@1000000 (expected for a query in a "
            "gallery of a million)."
        ),
    ] = "",
    prevalence: Annotated[float, typer.Option(help="Share of matches that probabilities assume.")] = 0.01,
    confidence: Annotated[float, typer.Option(help="Level of the intervals.")] = 0.95,
    certified_far: Annotated[float, typer.Option(help="Certificate: FAR that a new class will not exceed ...")] = 0.1,
    certified_delta: Annotated[float, typer.Option(help="... except with this probability.")] = 0.05,
    certified_mean_far: Annotated[
        float, typer.Option(help="Certificate: FAR that a new class will not exceed on average.")
    ] = 0.05,
    certified_strict: Annotated[
        bool, typer.Option(help="Certificates that hold exactly; without, they may fall short by about 1 / classes.")
    ] = True,
    seed: Annotated[int, typer.Option(min=0, help="Seed of resampling.")] = 0,
    activate: Annotated[bool, typer.Option("--activate", help="Also put the new threshold into use.")] = False,
    store: Store = None,
    state_dir: StateDir = None,
    as_json: Json = False,
) -> None:
    """Choose one threshold for an error target, on labelled images, with its uncertainty.

    Says what the target costs in true pairs and, where a threshold is in use for the bundle and score, which decisions
    on these images would change.
    """
    if far is not None and target:
        raise InvalidInput(f"expected --far or --target, found both: --far {far:g} and --target {target}")
    settings = load_settings(store_url=store, state_dir=state_dir)
    wanted = CalibrationTarget(
        target=parse_target(target) if target else Target("far", 0.01 if far is None else far),
        prevalence=prevalence,
        confidence=confidence,
        certified_far=certified_far,
        certified_delta=certified_delta,
        certified_mean_far=certified_mean_far,
        certified_strict=certified_strict,
    )
    result = offline.calibrate_and_store(
        settings, bundle=bundle, data=data, cohort=cohort, k=k, target=wanted, seed=seed, activate=activate
    )
    print_json(result.to_json()) if as_json else result.print()


@app.command()
def reindex(
    catalog: Catalog,
    manifest: Manifest,
    index: Annotated[str, typer.Option(help="Flat (exact) or IVF<lists>,nprobe=<n>.")] = "Flat",
    bundle: Bundle = "",
    max_failed_share: Annotated[float, typer.Option(help="Largest share of unreadable images.")] = 0.01,
    embedded: Annotated[
        bool, typer.Option("--embedded", help="Needs no server: starts Valkey and a worker, and ends them.")
    ] = False,
    wait: Annotated[bool, typer.Option(help="Wait for the job to end.")] = True,
    address: Address = None,
    state_dir: StateDir = None,
    store: Store = None,
    as_json: Json = False,
) -> None:
    """Embed the images of a manifest, build an index and make it live."""
    request = catalogs_pb2.StartReindexRequest(
        catalog=catalog,
        manifest_uri=_absolute(manifest),
        bundle_digest=bundle,
        index_spec=index,
        max_failed_share=max_failed_share,
    )
    settings = load_settings(address=address, state_dir=state_dir, store_url=store)
    if embedded:
        job = offline.reindex_embedded(settings, request)
    else:
        with connect(settings.address) as client:
            job = client.call(client.catalogs.StartReindex, request)
            if wait:
                with progress_bar(f"reindexing {catalog}") as progress:
                    job = client.wait(job, lambda seen: progress(seen.n_done, seen.n_total))
    _print_job(job, as_json)


@app.command()
def search(
    catalog: Annotated[str, typer.Option(help="Catalogue to search in.")],
    image: Annotated[list[Path] | None, typer.Option(help="An image to look for; may be given several times.")] = None,
    manifest: Annotated[str, typer.Option(help="Or images of a manifest; their labels judge the matches.")] = "",
    limit: Annotated[int, typer.Option(help="Most matches to return for each image, 1 to 10,000.")] = 100,
    sheet: Annotated[Path | None, typer.Option(help="Also draw a contact sheet (PNG) here.")] = None,
    sheet_rows: Annotated[int, typer.Option(min=1, help="Queries on the sheet and in the table.")] = 12,
    address: Address = None,
    as_json: Json = False,
) -> None:
    """Find everything in a catalogue that shows the same thing as an image."""
    settings = load_settings(address=address)
    with connect(settings.address) as client:
        result = look_up(client, catalog, images=image or [], manifest=manifest, limit=limit, limits=settings.limits)
    if sheet is not None:
        result.draw(sheet, n_rows=sheet_rows, limits=settings.limits)
    print_json(result.to_json()) if as_json else result.print(n_rows=sheet_rows)


@app.command()
def audit(
    catalog: Catalog,
    manifest: Manifest,
    group_by: Annotated[list[str] | None, typer.Option(help="A column that names groups; may be repeated.")] = None,
    report: Annotated[Path | None, typer.Option(help="Copy report.html and report.json into this folder.")] = None,
    wait: Annotated[bool, typer.Option(help="Wait for the job to end.")] = True,
    address: Address = None,
    as_json: Json = False,
) -> None:
    """Measure the threshold in use on new labelled images. Exit code 1 where the verdict is failed."""
    request = audits_pb2.StartAuditRequest(catalog=catalog, manifest_uri=_absolute(manifest), group_by=group_by or [])
    settings = load_settings(address=address)
    with connect(settings.address) as client:
        job = client.call(client.audits.StartAudit, request)
        if not wait:
            _print_job(job, as_json)
            return
        with progress_bar(f"auditing {catalog}") as progress:
            job = client.wait(job, lambda seen: progress(seen.n_done, seen.n_total))
        found = client.call(client.audits.GetAudit, audits_pb2.GetAuditRequest(catalog=catalog, audit_id=job.result_id))
    if report is not None:
        offline.copy_report(found, report)
    _print_audit(found, as_json)
    if found.verdict != audits_pb2.VERDICT_PASSED:
        raise typer.Exit(EXIT_VERDICT_FAILED)


@app.command()
def serve(address: Address = None, store: Store = None, state_dir: StateDir = None) -> None:
    """Answer queries over gRPC until stopped. Needs no Redis; jobs do."""
    from retrieval.edge.server import serve as run_server  # after the settings are known to be right

    run_server(load_settings(address=address, store_url=store, state_dir=state_dir))


@app.command()
def worker(store: Store = None, state_dir: StateDir = None) -> None:
    """Do jobs until stopped; without RETRIEVAL_REDIS_URL, an embedded Valkey is started too."""
    from retrieval.edge.worker import run_worker

    settings = load_settings(store_url=store, state_dir=state_dir)
    with _queue(settings):
        run_worker(settings)


@app.command()
def beat(store: Store = None, state_dir: StateDir = None) -> None:
    """Start the scheduled audits (RETRIEVAL_AUDIT_*) until stopped. Run one of these."""
    from retrieval.edge.worker import run_beat

    run_beat(load_settings(store_url=store, state_dir=state_dir))


@app.command()
def health(address: Address = None) -> None:
    """Exit with 0 where the server answers, 3 where it does not."""
    offline.check_health(load_settings(address=address).address)
    out.print("serving")


@app.command()
def demo(
    folder: Annotated[Path, typer.Option(help="Where data, model, store and reports go.")] = Path("demo"),
    seed: Annotated[int, typer.Option(min=0, help="Seed of the split, training and resampling.")] = 0,
    as_json: Json = False,
) -> None:
    """The whole line on real images with nothing but public commands: train, calibrate, index, search, audit."""
    run_demo(folder, seed=seed, as_json=as_json)


@snapshots_app.command("list")
def list_snapshots(catalog: Catalog, address: Address = None, as_json: Json = False) -> None:
    """All snapshots of a catalogue, newest first."""
    with connect(load_settings(address=address).address) as client:
        reply = client.call(client.catalogs.ListSnapshots, catalogs_pb2.ListSnapshotsRequest(catalog=catalog))
    if as_json:
        print_json(as_dict(reply)["snapshots"])
        return
    rows = [
        (
            s.id,
            "live" if s.live else "",
            s.n_items,
            s.n_failed,
            s.index_spec,
            f"{s.index_recall:.3f}",
            _when(s.created_at),
        )
        for s in reply.snapshots
    ]  # fmt: skip
    print_table(f"Snapshots of {catalog}", ("id", "", "items", "failed", "index", "recall", "created"), rows)


@snapshots_app.command("rollback")
def rollback(
    catalog: Catalog,
    snapshot: Annotated[str, typer.Argument(help="Where to go back to; the one before the live one if left out.")] = "",
    address: Address = None,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Make an older snapshot live again."""
    if dry_run:
        would = f"would make snapshot {snapshot or '(the one before the live one)'} of {catalog} live"
        print_json({"dry_run": would}) if as_json else out.print(would, markup=False)
        return
    with connect(load_settings(address=address).address) as client:
        request = catalogs_pb2.RollbackRequest(catalog=catalog, snapshot_id=snapshot)
        reply = client.call(client.catalogs.Rollback, request)
    print_json(as_dict(reply)) if as_json else out.print(f"snapshot {reply.id} of {catalog} is live")


@points_app.command("list")
def list_points(bundle: Bundle = "", address: Address = None, as_json: Json = False) -> None:
    """All operating points of a bundle, newest first."""
    with connect(load_settings(address=address).address) as client:
        request = operating_points_pb2.ListOperatingPointsRequest(bundle_digest=bundle)
        reply = client.call(client.operating_points.ListOperatingPoints, request)
    if as_json:
        print_json(as_dict(reply)["operating_points"])
        return
    rows = [
        (p.id, "active" if p.active else "", p.score_kind, f"{p.threshold:.4f}", p.target, f"{p.tar:.3f}",
         p.n_classes, _when(p.created_at))
        for p in reply.operating_points
    ]  # fmt: skip
    columns = ("id", "", "score", "threshold", "target", "TAR", "classes", "created")
    print_table("Operating points", columns, rows)


@points_app.command("show")
def show_point(
    point: Annotated[str, typer.Argument(help="Operating point; the active one if left out.")] = "",
    bundle: Bundle = "",
    address: Address = None,
    as_json: Json = False,
) -> None:
    """One operating point with its evidence."""
    with connect(load_settings(address=address).address) as client:
        request = operating_points_pb2.GetOperatingPointRequest(bundle_digest=bundle, operating_point_id=point)
        reply = client.call(client.operating_points.GetOperatingPoint, request)
    fields = as_dict(reply)
    print_json(fields) if as_json else print_table("Operating point", ("field", "value"), list(fields.items()))


@points_app.command("activate")
def activate_point(
    point: Annotated[str, typer.Argument(help="Operating point to put into use.")],
    bundle: Bundle = "",
    address: Address = None,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Put an operating point into use for every catalogue of its bundle; going back is activating the older one."""
    with connect(load_settings(address=address).address) as client:
        service = client.operating_points
        if dry_run:
            wanted = operating_points_pb2.GetOperatingPointRequest(bundle_digest=bundle, operating_point_id=point)
            reply = client.call(service.GetOperatingPoint, wanted)
            would = f"would put operating point {reply.id} (threshold {reply.threshold:.4f}) into use"
            print_json({"dry_run": would}) if as_json else out.print(would)
            return
        request = operating_points_pb2.ActivateOperatingPointRequest(bundle_digest=bundle, operating_point_id=point)
        reply = client.call(service.ActivateOperatingPoint, request)
    print_json(as_dict(reply)) if as_json else out.print(
        f"operating point {reply.id} is in use: threshold {reply.threshold:.4f}"
    )


@contextlib.contextmanager
def _queue(settings: Settings) -> Iterator[None]:
    """The job queue: the configured one, else an embedded one that runs as long as the block."""
    if settings.redis_url.get_secret_value():
        yield
        return
    with embedded_valkey(settings.state_dir):
        yield


def _print_job(job: jobs_pb2.Job, as_json: bool) -> None:
    if as_json:
        print_json(as_dict(job))
    elif job.result_id:
        out.print(f"{job.kind} of {job.catalog} done: {job.result_id}")
    else:
        out.print(f"{job.kind} of {job.catalog} accepted as job {job.id}")


def _print_audit(found: audits_pb2.Audit, as_json: bool) -> None:
    if as_json:
        print_json(as_dict(found))
        return
    verdict = "PASSED" if found.verdict == audits_pb2.VERDICT_PASSED else "FAILED"
    rows = [("ok" if finding.passed else "FAILED", finding.limit, finding.explanation) for finding in found.findings]
    print_table(f"Audit of {found.catalog}: {verdict}", ("", "limit", "found"), rows)
    out.print(
        f"R@1 {found.recall_at_1:.3f}, OPIS {found.opis:.3g} (noise floor {found.opis_floor:.3g}), "
        f"{found.n_classes} classes, {found.n_images} images\nreport: {found.report_html_uri}",
        markup=False,
    )


def _absolute(manifest: str) -> str:
    """Workers run elsewhere: a local path is sent in full."""
    return manifest if "://" in manifest else str(Path(manifest).resolve())


def _when(timestamp: Any) -> str:
    return str(timestamp.ToDatetime().isoformat(sep=" ", timespec="seconds"))
