"""Replies as JSON, which a program reads, and what people see of a job while they wait for it."""

from __future__ import annotations

import json
from datetime import UTC, datetime

import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from retrieval.edge.cli.replies import as_dict, followed, print_job
from retrieval.v1 import audits_pb2, catalogs_pb2, jobs_pb2, search_pb2


def test_numbers_are_numbers() -> None:
    """64-bit integers too, which protobuf's own JSON writes as text; what is not finite is null."""
    audit = as_dict(audits_pb2.Audit(n_classes=2**40, n_images=7, far=float("nan"), tar=0.5))
    assert (audit["n_classes"], audit["n_images"], audit["far"], audit["tar"]) == (2**40, 7, None, 0.5)
    assert as_dict(search_pb2.SearchResponse(total_matches=3))["total_matches"] == 3
    listed = as_dict(catalogs_pb2.ListSnapshotsResponse(snapshots=[catalogs_pb2.Snapshot(n_items=5)]))
    assert listed["snapshots"][0]["n_items"] == 5
    json.dumps(audit, allow_nan=False)


def test_an_enum_is_its_name_without_that_of_the_enum() -> None:
    assert as_dict(audits_pb2.Audit(verdict=audits_pb2.VERDICT_PASSED))["verdict"] == "passed"
    assert as_dict(jobs_pb2.Job(state=jobs_pb2.JOB_STATE_SUCCEEDED))["state"] == "succeeded"
    assert as_dict(jobs_pb2.Job())["state"] == "unspecified"


def test_texts_stay_as_they_are() -> None:
    """Digits in a text, the entries of a map and a moment in time."""
    job = jobs_pb2.Job(id="007", error="NaN")
    job.created_at.FromSeconds(0)
    plain = as_dict(job)
    assert (plain["id"], plain["error"], plain["created_at"]) == ("007", "NaN", "1970-01-01T00:00:00Z")
    snapshot = catalogs_pb2.Snapshot(failures={"12": "34"})
    assert as_dict(snapshot)["failures"] == {"12": "34"}


def test_json_within_a_text_becomes_a_part_of_the_json() -> None:
    """What an index states about itself; nothing from a snapshot of an earlier version."""
    details = {"complete": True, "lists": 1024, "slack": 0.25}
    snapshots = [catalogs_pb2.Snapshot(index_details=text) for text in (json.dumps(details), "")]
    assert [as_dict(snapshot)["index_details"] for snapshot in snapshots] == [details, {}]
    listed = as_dict(catalogs_pb2.ListSnapshotsResponse(snapshots=snapshots))["snapshots"]
    assert [snapshot["index_details"] for snapshot in listed] == [details, {}]


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
