"""What people see of a job while they wait for it."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from retrieval.edge.cli.replies import followed, print_job
from retrieval.v1 import jobs_pb2


def waiting(reason: str) -> jobs_pb2.Job:
    at = Timestamp()
    at.FromDatetime(datetime(2026, 3, 4, 5, 6, 7, tzinfo=UTC))
    return jobs_pb2.Job(
        id="ab12", kind="reindex", catalog="shop", n_done=1, n_total=4, waiting_for=reason, next_try_at=at
    )


def test_each_new_reason_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    """A job that waits for long does not fill the screen; a reason with line breaks is still one line."""
    seen: list[tuple[int, int]] = []
    show = followed(lambda done, total: seen.append((done, total)))
    reasons = ["the store\ndoes not answer"] * 3 + [""] + ["the store\ndoes not answer", "a system error: EIO"]
    for reason in reasons:
        show(waiting(reason))
    assert seen == [(1, 4)] * 6
    assert capsys.readouterr().err.splitlines() == [
        "job ab12 waits, next try at 2026-03-04 05:06:07 UTC: the store does not answer",
        "job ab12 waits, next try at 2026-03-04 05:06:07 UTC: a system error: EIO",
    ]


def test_a_job_that_waits_is_printed_with_its_reason(capsys: pytest.CaptureFixture[str]) -> None:
    print_job(waiting("the store does not answer"), as_json=False)
    assert capsys.readouterr().out == (
        "reindex of shop, job ab12, waits, next try at 2026-03-04 05:06:07 UTC: the store does not answer\n"
    )
