"""Converts jobs to the messages of protos/retrieval/v1/jobs.proto: for the server, and for a job without one."""

from datetime import datetime

from google.protobuf.timestamp_pb2 import Timestamp

from retrieval.edge.jobs.records import Job, JobState
from retrieval.v1 import jobs_pb2

_STATES = {
    JobState.QUEUED: jobs_pb2.JOB_STATE_QUEUED,
    JobState.RUNNING: jobs_pb2.JOB_STATE_RUNNING,
    JobState.SUCCEEDED: jobs_pb2.JOB_STATE_SUCCEEDED,
    JobState.FAILED: jobs_pb2.JOB_STATE_FAILED,
}


def job_message(job: Job) -> jobs_pb2.Job:
    """Convert a job."""
    return jobs_pb2.Job(
        id=job.id,
        kind=job.kind,
        catalog=job.catalog,
        state=_STATES[job.state],
        n_done=job.n_done,
        n_total=job.n_total,
        result_id=job.result_id,
        error=job.error,
        created_at=timestamp(job.created_at),
        finished_at=timestamp(job.finished_at),
        passed_over=job.passed_over,
        warnings=job.warnings,
        waiting_for=job.waiting_for,
        next_try_at=timestamp(job.next_try_at),
    )


def timestamp(text: str) -> Timestamp | None:
    """Convert a time in ISO 8601; None for "", a time that is not known yet."""
    if not text:
        return None
    converted = Timestamp()
    converted.FromDatetime(datetime.fromisoformat(text))
    return converted
