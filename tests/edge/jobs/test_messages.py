"""A job as a message keeps what its record holds."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from retrieval.edge.jobs.messages import job_message
from retrieval.edge.jobs.records import Job, JobId, JobState
from retrieval.v1 import jobs_pb2

TEXT = st.text(max_size=10)
COUNT = st.integers(0, 2**31 - 1)
TIME = st.integers(0, 4_000_000_000_000).map(lambda ms: datetime.fromtimestamp(ms / 1000, UTC))


@given(
    id=TEXT, kind=TEXT, catalog=TEXT, state=st.sampled_from(JobState), n_done=COUNT, n_total=COUNT, result_id=TEXT,
    error=TEXT, created=TIME, finished=st.none() | TIME,
)  # fmt: skip
def test_a_job_keeps_every_value(created: datetime, finished: datetime | None, **values: Any) -> None:
    """All but the request, which clients know; a job that has not ended has no time of its end."""
    job = Job(
        **values,
        request={"catalog": "shop"},
        created_at=created.isoformat(),
        finished_at=finished.isoformat() if finished else "",
    )
    message = job_message(job)
    for name in ("id", "kind", "catalog", "n_done", "n_total", "result_id", "error"):
        assert getattr(message, name) == getattr(job, name), name
    assert jobs_pb2.JobState.Name(message.state) == f"JOB_STATE_{job.state.name}"
    assert message.created_at.ToDatetime(UTC) == created
    assert message.HasField("finished_at") == (finished is not None)
    if finished:
        assert message.finished_at.ToDatetime(UTC) == finished


def test_every_state_of_a_job_has_its_own_message() -> None:
    """None becomes UNSPECIFIED."""
    job = Job(id=JobId("a"), kind="audit", catalog="shop", request={}, state=JobState.QUEUED, created_at="2026-01-01")
    states = [job_message(replace(job, state=state)).state for state in JobState]
    assert sorted(states) == sorted(set(jobs_pb2.JobState.values()) - {jobs_pb2.JOB_STATE_UNSPECIFIED})
