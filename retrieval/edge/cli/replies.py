"""Show the server's replies as JSON and as short lines."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from retrieval.terminal import err, out, print_json

if TYPE_CHECKING:
    from collections.abc import Sequence

    from google.protobuf.message import Message
    from google.protobuf.timestamp_pb2 import Timestamp

    from retrieval.v1.jobs_pb2 import Job


def as_dict(message: "Message") -> dict[str, Any]:
    """Return a message as plain JSON, fields named as in the .proto files, unset ones included."""
    from google.protobuf.json_format import MessageToDict

    return MessageToDict(message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True)


def print_job(job: "Job", as_json: bool) -> None:
    """Print a job that was accepted or is done."""
    if as_json:
        print_json(as_dict(job))
    elif job.result_id:
        out.print(f"{job.kind} of {job.catalog} done: {job.result_id}", markup=False)
    elif job.waiting_for:
        out.print(f"{job.kind} of {job.catalog}, job {job.id}, {_waiting(job)}", markup=False)
    else:
        out.print(f"{job.kind} of {job.catalog} accepted as job {job.id}", markup=False)


def print_needs_reindex(catalogs: "Sequence[str]", *, active: bool) -> None:
    """Print which catalogues wait for a reindex while an operating point is active; nothing if there is none."""
    if catalogs:
        verb = "wait" if active else "would wait"
        out.print(
            f"warning: the live snapshot of {', '.join(catalogs)} has another score: until `retrieval reindex`, these "
            f"catalogues {verb} and answer with the operating point that was active before",
            markup=False,
        )


def followed(progress: Callable[[int, int], None]) -> Callable[["Job"], None]:
    """Return a function that shows the progress of a job, and states on stderr when it begins to wait and why."""
    last = ""

    def show(job: "Job") -> None:
        nonlocal last
        progress(job.n_done, job.n_total)
        if job.waiting_for and job.waiting_for != last:
            err.print(f"job {job.id} {_waiting(job)}", markup=False)
        last = job.waiting_for or last

    return show


def _waiting(job: "Job") -> str:
    reason = " ".join(job.waiting_for.splitlines())
    return f"waits, next try at {moment(job.next_try_at)} UTC: {reason}"


def moment(timestamp: "Timestamp") -> str:
    """Return a timestamp as date and time in UTC, to the second."""
    return str(timestamp.ToDatetime().isoformat(sep=" ", timespec="seconds"))
