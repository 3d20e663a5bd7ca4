"""Leases and counts in a real Valkey: one process at a task, and what counts as a death."""

from __future__ import annotations

import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from retrieval.edge.jobs.attempts import Attempts
from retrieval.edge.jobs.embedded import socket_path
from retrieval.edge.jobs.records import Job, Jobs

TASK = "embed:0"
BEGIN = """
import sys
from retrieval.edge.jobs.attempts import Attempts
print(Attempts(sys.argv[1], lease_s=60).begin(sys.argv[2], sys.argv[3]), flush=True)
sys.stdin.read()
"""


@pytest.fixture
def url(state_dir: Path) -> str:
    return f"unix://{socket_path(state_dir)}"


@pytest.fixture
def attempts(url: str) -> Attempts:
    return Attempts(url, lease_s=60)


@pytest.fixture
def job(jobs: Jobs) -> Job:
    return jobs.start("reindex", "shoes", {"manifest_uri": "images"})


def test_a_lease_that_is_given_back_is_no_death(attempts: Attempts, job: Job) -> None:
    """Twenty tries that ended in order, for instance because the store was away, count nothing."""
    for _ in range(20):
        begun = attempts.begin(job.id, TASK)
        assert begun is not None
        lease, n_deaths = begun
        assert n_deaths == 0
        assert attempts.begin(job.id, TASK) is None
        attempts.release(job.id, TASK, lease)


@pytest.mark.slow
def test_the_lease_of_a_dead_process_is_taken_at_once(attempts: Attempts, job: Job, url: str) -> None:
    """The one of a living process is not; each death is counted until a success."""
    for n_deaths in (1, 2):
        command = [sys.executable, "-c", BEGIN, url, job.id, TASK]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
            assert other.stdout is not None
            assert f", {n_deaths - 1})" in other.stdout.readline()
            assert attempts.begin(job.id, TASK) is None
            other.kill()
            time.sleep(0.2)  # a process that is dead but not waited for holds nothing either
            begun = attempts.begin(job.id, TASK)
            assert begun is not None
            assert begun[1] == n_deaths
            attempts.release(job.id, TASK, begun[0])
    attempts.succeed(job.id, TASK)
    begun = attempts.begin(job.id, TASK)
    assert begun is not None
    assert begun[1] == 0


def test_a_lease_ends_unless_it_is_renewed(url: str, job: Job) -> None:
    """A machine that is gone cannot give its lease back."""
    first, second = Attempts(url, lease_s=0.2), Attempts(url, lease_s=0.2)
    begun = first.begin(job.id, TASK)
    assert begun is not None
    with first.renewing(job.id, TASK, begun[0]):
        time.sleep(0.5)
        assert second.begin(job.id, TASK) is None
    time.sleep(0.3)
    assert second.begin(job.id, TASK) is not None


def test_the_earliest_try_is_shown_until_it_begins(attempts: Attempts, jobs: Jobs, job: Job) -> None:
    """Of several tasks that wait, the job shows the one that is next; a task that begins waits no more."""
    soon, late = (datetime.now(UTC) + timedelta(seconds=s) for s in (5, 50))
    attempts.wait(job.id, "embed:1", "the store does not answer", late)
    attempts.wait(job.id, TASK, "the disk answers slowly", soon)
    seen = jobs.get(job.id)
    assert (seen.waiting_for, datetime.fromisoformat(seen.next_try_at) - soon < timedelta(seconds=1)) == (
        "the disk answers slowly",
        True,
    )
    attempts.begin(job.id, TASK)
    assert jobs.get(job.id).waiting_for == "the store does not answer"
    jobs.fail(job.id, "it ended")
    assert jobs.get(job.id).waiting_for == ""


def test_a_job_is_idle_if_nothing_works_waits_or_is_queued(url: str, job: Job) -> None:
    """Only then its first step is sent again."""
    attempts = Attempts(url, lease_s=0.1)
    assert attempts.is_idle(job.id, "retrieval")
    attempts.begin(job.id, TASK)
    assert not attempts.is_idle(job.id, "retrieval")
    time.sleep(0.2)
    assert attempts.is_idle(job.id, "retrieval")
    attempts.wait(job.id, TASK, "the store does not answer", datetime.now(UTC) + timedelta(seconds=5))
    assert not attempts.is_idle(job.id, "retrieval")
