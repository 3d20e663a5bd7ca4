"""`retrieval reindex`: index a manifest as a catalogue, on the server or, with --embedded, on this machine."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from retrieval.edge.cli.options import (
    Address,
    Bundle,
    Catalog,
    Json,
    Manifest,
    StateDir,
    Store,
    Wait,
    absolute,
    check_early,
    connected,
    report_passed_over,
    report_warnings,
)
from retrieval.edge.cli.replies import as_dict, choice_of, followed, print_job, recall_of
from retrieval.terminal import err, out, print_json, progress_bar

if TYPE_CHECKING:
    from retrieval.client import Client
    from retrieval.v1.catalogs_pb2 import Snapshot
    from retrieval.v1.jobs_pb2 import Job

_NAMED_FAILURES = 5


def reindex(  # noqa: PLR0913  # the options of a command are its parameters
    catalog: Catalog,
    manifest: Manifest,
    index: Annotated[
        str,
        typer.Option(
            help="Exact (complete), or an approximate kind, for instance IVF1024,nprobe=16: see docs/serve.md."
        ),
    ] = "Exact",
    bundle: Bundle = "",
    max_failed_share: Annotated[float, typer.Option(help="Largest share of images that may be unreadable.")] = 0.01,
    embedded: Annotated[
        bool,
        typer.Option("--embedded", help="Run without a server: start Valkey and a worker, and stop them at the end."),
    ] = False,
    wait: Wait = True,
    address: Address = None,
    state_dir: StateDir = None,
    store: Store = None,
    as_json: Json = False,
) -> None:
    """Embed the images of a manifest, build an index and make it live.

    At the end, prints the numbers of indexed and of unreadable images, whether the index is complete or its measured
    recall, and what it chose. If the score uses the labels, a warning names items whose label may be wrong.
    """
    check_early(manifest, urls=embedded, index=index)
    wanted: dict[str, Any] = {
        "catalog": catalog,
        "manifest_uri": absolute(manifest),
        "bundle_digest": bundle,
        "index_spec": index,
        "max_failed_share": max_failed_share,
    }
    if embedded:
        job, snapshot = _reindex_here(wanted, state_dir=state_dir, store_url=store)
    else:
        from retrieval.v1 import catalogs_pb2

        with connected(address) as client:
            job = client.call(client.catalogs.StartReindex, catalogs_pb2.StartReindexRequest(**wanted))
            if not wait:
                print_job(job, as_json)
                return
            with progress_bar(f"reindexing {catalog}") as progress:
                job = client.wait(job, followed(progress))
            snapshot = _snapshot_of(client, job)
    report_passed_over(job.passed_over)
    report_warnings(job.warnings)
    print_json({**as_dict(job), "snapshot": as_dict(snapshot)}) if as_json else _print_snapshot(snapshot)


def _snapshot_of(client: "Client", job: "Job") -> "Snapshot":
    """Return the snapshot that a reindex made."""
    from retrieval.errors import UnknownSnapshot
    from retrieval.v1 import catalogs_pb2

    listed = client.call(client.catalogs.ListSnapshots, catalogs_pb2.ListSnapshotsRequest(catalog=job.catalog))
    for snapshot in listed.snapshots:
        if snapshot.id == job.result_id:
            return snapshot
    raise UnknownSnapshot(f"snapshot {job.result_id} of {job.catalog} was made and is gone: see `retrieval jobs list`")


def _print_snapshot(snapshot: "Snapshot") -> None:
    """Print what a reindex made, and the first images that it left out."""
    for item, reason in sorted(snapshot.failures.items())[:_NAMED_FAILURES]:
        err.print(f"left out {item}: {reason}", markup=False)
    if snapshot.n_failed > _NAMED_FAILURES:
        err.print(f"left out {snapshot.n_failed - _NAMED_FAILURES:,} more: see `retrieval snapshots list --json`")
    index = f"index {snapshot.index_spec}"
    out.print(
        f"reindex of {snapshot.catalog} done: {snapshot.n_items:,} items, {snapshot.n_failed:,} failed, "
        f"{index} ({recall_of(snapshot)}), snapshot {snapshot.id}",
        markup=False,
        highlight=False,
    )
    if chosen := choice_of(snapshot):
        out.print(f"{index}: {chosen}", markup=False, highlight=False)
    if snapshot.HasField("labels"):
        found = snapshot.labels
        out.print(f"labels: {found.n_classes:,}; items without a label: {found.n_unlabelled:,}", highlight=False)


def _reindex_here(wanted: Mapping[str, Any], **overrides: object) -> "tuple[Job, Snapshot]":
    """Reindex with a queue and a worker of this machine; return the job and its snapshot as a server would."""
    from retrieval.edge.jobs.local import reindex_here
    from retrieval.edge.jobs.messages import job_message
    from retrieval.edge.messages import snapshot_message
    from retrieval.edge.settings import load_settings
    from retrieval.edge.wiring import open_store
    from retrieval.engine.snapshot import SnapshotId
    from retrieval.flows.reindex import ReindexRequest, labels_for, settle_bundle

    settings, request = load_settings(**overrides), ReindexRequest(**wanted)
    store = open_store(settings)
    needed = labels_for(store, settle_bundle(store, request))
    check_early(request.manifest_uri, urls=True, labels_for=needed)
    with progress_bar(f"reindexing {wanted['catalog']}") as progress:
        show = followed(progress)
        done = reindex_here(settings, request, lambda job: show(job_message(job)))
    job = job_message(done)
    manifest = store.snapshot_manifest(job.catalog, SnapshotId(job.result_id))
    return job, snapshot_message(manifest, live=True)
