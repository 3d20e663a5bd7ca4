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
    connected,
    report_passed_over,
)
from retrieval.edge.cli.replies import followed, print_job
from retrieval.terminal import progress_bar

if TYPE_CHECKING:
    from retrieval.v1.jobs_pb2 import Job


def reindex(  # noqa: PLR0913  # the options of a command are its parameters
    catalog: Catalog,
    manifest: Manifest,
    index: Annotated[
        str,
        typer.Option(help="Flat (exact), or IVF with the numbers of lists and of lists searched: IVF1024,nprobe=16."),
    ] = "Flat",
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
    """Embed the images of a manifest, build an index and make it live."""
    wanted: dict[str, Any] = {
        "catalog": catalog,
        "manifest_uri": absolute(manifest),
        "bundle_digest": bundle,
        "index_spec": index,
        "max_failed_share": max_failed_share,
    }
    if embedded:
        job = _reindex_here(wanted, state_dir=state_dir, store_url=store)
    else:
        from retrieval.v1 import catalogs_pb2

        with connected(address) as client:
            job = client.call(client.catalogs.StartReindex, catalogs_pb2.StartReindexRequest(**wanted))
            if wait:
                with progress_bar(f"reindexing {catalog}") as progress:
                    job = client.wait(job, followed(progress))
    report_passed_over(job.passed_over)
    print_job(job, as_json)


def _reindex_here(wanted: Mapping[str, Any], **overrides: object) -> "Job":
    """Reindex with a queue and a worker of this machine; return the job as a server would."""
    from retrieval.edge.jobs.local import reindex_here
    from retrieval.edge.jobs.messages import job_message
    from retrieval.edge.settings import load_settings
    from retrieval.flows.reindex import ReindexRequest

    settings = load_settings(**overrides)
    with progress_bar(f"reindexing {wanted['catalog']}") as progress:
        show = followed(progress)
        return job_message(reindex_here(settings, ReindexRequest(**wanted), lambda job: show(job_message(job))))
