"""`retrieval jobs`: reindexes and audits that wait, run or have ended."""

from typing import TYPE_CHECKING, Annotated

import typer

from retrieval.edge.cli.options import Address, Json, connected
from retrieval.edge.cli.replies import as_dict, moment, name_of, waiting
from retrieval.terminal import out, print_json, print_table

if TYPE_CHECKING:
    from retrieval.v1.jobs_pb2 import Job


def list_jobs(
    catalog: Annotated[str, typer.Option(help="Only jobs of this catalogue.")] = "",
    limit: Annotated[int, typer.Option(min=1, max=1000, help="Largest number of jobs.")] = 50,
    address: Address = None,
    as_json: Json = False,
) -> None:
    """List jobs, newest first. Finished ones are kept for 30 days."""
    from retrieval.v1 import jobs_pb2

    with connected(address) as client:
        reply = client.call(client.jobs.ListJobs, jobs_pb2.ListJobsRequest(catalog=catalog, limit=limit))
    if as_json:
        print_json([as_dict(job) for job in reply.jobs])
        return
    rows = [
        (
            job.id,
            job.kind,
            job.catalog,
            name_of(job, "state"),
            _progress(job),
            moment(job.created_at),
            job.error or job.result_id[:8] or (waiting(job) if job.waiting_for else ""),
        )
        for job in reply.jobs
    ]
    print_table("Jobs", ("id", "kind", "catalogue", "state", "done", "created", "result"), rows)


def show_job(
    job: Annotated[str, typer.Argument(help="Id of a job, or its start.")],
    address: Address = None,
    as_json: Json = False,
) -> None:
    """Show one job: its state, its progress, and its result or the reason why it failed."""
    from retrieval.v1 import jobs_pb2

    with connected(address) as client:
        found = client.call(client.jobs.GetJob, jobs_pb2.GetJobRequest(job_id=job))
    if as_json:
        print_json(as_dict(found))
        return
    ended = f", ended {moment(found.finished_at)}" if found.HasField("finished_at") else ""
    for line in (
        f"{found.kind} job {found.id} of {found.catalog}: {name_of(found, 'state')}",
        f"done: {_progress(found)}; created {moment(found.created_at)}{ended} (UTC)",
        _outcome(found),
        *(f"warning: {sentence}" for sentence in found.warnings),
    ):
        if line:
            out.print(line, markup=False)


def _progress(job: "Job") -> str:
    unit = "shards" if job.kind == "reindex" else "images"
    return f"{job.n_done} of {job.n_total} {unit}" if job.n_total else "not planned yet"


def _outcome(job: "Job") -> str:
    """Return the id of the result, the error, or the reason why the job waits."""
    if job.result_id:
        return f"{'snapshot' if job.kind == 'reindex' else job.kind} {job.result_id}"
    return job.error or (waiting(job) if job.waiting_for else "")
