"""What becomes of steps that fail, over a real Valkey and a real store; the test delivers the messages itself."""

from __future__ import annotations

import dataclasses
import errno
import re
import resource
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import redis
import structlog
from structlog.testing import capture_logs

from retrieval.edge.jobs import attempts
from retrieval.edge.jobs.connection import redis_url
from retrieval.edge.jobs.queue import BUILD, EMBED, PLAN, submit
from retrieval.edge.jobs.records import Job, JobState
from retrieval.edge.jobs.tasks import Tasks
from retrieval.edge.settings import load_settings
from retrieval.engine.store import Store
from retrieval.errors import FailedPrecondition, JobsUnavailable, Unavailable
from retrieval.flows import reindex
from retrieval.flows.reindex import ReindexRequest
from tests.edge.jobs.conftest import CATALOG, Message, deliver, waiting, work_off

N_ATTEMPTS = 6


def refused_retry(*, exc: Exception, countdown: int) -> None:
    """Stand in for Celery's own: in this process it would try again at once."""
    raise RuntimeError(f"retry in {countdown} s") from exc


def test_a_known_error_fails_the_job_at_once(
    tasks: Tasks, client: redis.Redis, calibrated: Store, tmp_path: Path
) -> None:
    """The client sees the error's own message; the catalogue is free; nothing is retried."""
    (tmp_path / "empty").mkdir()
    request = ReindexRequest(catalog=CATALOG, manifest_uri=str(tmp_path / "empty"))
    job = submit(tasks.app, tasks.jobs, "reindex", request)
    with capture_logs() as logs:
        assert work_off(tasks, client) == [PLAN]
    failed = tasks.jobs.get(job.id)
    assert failed.state is JobState.FAILED
    assert "expected at least one image" in failed.error
    assert [log["event"] for log in logs] == ["job_failed"]
    assert tasks.jobs.running() == []
    assert calibrated.objects.names(f"staging/{job.id}") == []
    assert submit(tasks.app, tasks.jobs, "reindex", request).id != job.id


@pytest.mark.slow
def test_an_unknown_error_is_tried_again_and_then_fails_the_job(
    tasks: Tasks, reindexing: Job, client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A defect gets six attempts; its text stays in the log of the worker."""
    calls = []

    def broken(*arguments: object, **_: object) -> None:
        calls.append(arguments)
        raise KeyError("secret path /etc/shadow")

    monkeypatch.setattr(reindex, "build_and_publish", broken)
    work_off(tasks, client)
    job = tasks.jobs.get(reindexing.id)
    assert len(calls) == N_ATTEMPTS
    assert job.state is JobState.FAILED
    assert f"{BUILD} failed {N_ATTEMPTS} times, the last time with an unexpected KeyError" in job.error
    assert "secret" not in job.error


def test_an_error_that_passes_does_not_count_afterwards(
    tasks: Tasks, reindexing: Job, client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A store that is away for two attempts delays a job; it does not fail it."""
    build, left = reindex.build_and_publish, [2]

    def away(*arguments: Any, **options: Any) -> Any:
        if left[0]:
            left[0] -= 1
            raise Unavailable("the store does not answer")
        return build(*arguments, **options)

    monkeypatch.setattr(reindex, "build_and_publish", away)
    work_off(tasks, client)
    assert tasks.jobs.get(reindexing.id).state is JobState.SUCCEEDED


def die_at(tasks: Tasks, job: Job, task: str) -> None:
    """Begin a task in another process, which dies."""
    program = (
        "import sys; from retrieval.edge.jobs.attempts import Attempts; from retrieval.edge.jobs.records import JobId\n"
        "print(Attempts(sys.argv[1], lease_s=60).begin(JobId(sys.argv[2]), sys.argv[3]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, redis_url(tasks._settings), job.id, task],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert "None" not in done.stdout


@pytest.mark.slow
def test_a_shard_that_kills_its_worker_fails_the_job(tasks: Tasks, reindexing: Job, client: redis.Redis) -> None:
    """A killed process cannot count, so an attempt is counted before it begins, for each shard on its own."""
    deliver(tasks, *waiting(client))
    first, second = waiting(client)
    for _ in range(N_ATTEMPTS):
        die_at(tasks, reindexing, f"{EMBED}:0")
    deliver(tasks, second)
    assert tasks.jobs.get(reindexing.id).state is JobState.RUNNING
    deliver(tasks, first)
    assert f"{EMBED}:0 was started {N_ATTEMPTS} times and each time its process ended" in (
        tasks.jobs.get(reindexing.id).error
    )


def test_a_task_that_is_delivered_again_while_it_works_runs_once(
    tasks: Tasks, reindexing: Job, client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ten deliveries to another process of a task that is alive are dropped, and none counts as a death."""
    embed, begun = reindex.embed_planned_shard, []
    other = Tasks(tasks._settings)

    def slow(*arguments: Any, **options: Any) -> Any:
        begun.append(arguments[3])
        if len(begun) == 1:
            for _ in range(10):
                deliver(other, Message(EMBED, (reindexing.id, arguments[3])))
        return embed(*arguments, **options)

    monkeypatch.setattr(reindex, "embed_planned_shard", slow)
    work_off(tasks, client)
    assert sorted(begun) == [0, 1]
    assert tasks.jobs.get(reindexing.id).state is JobState.SUCCEEDED


@pytest.mark.slow
def test_a_task_at_work_renews_its_lease(
    calibrated: Store, state_dir: Path, client: redis.Redis, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A task may take longer than its lease: another process still does not get it."""
    settings = load_settings(state_dir=state_dir, store_url=calibrated.url, redelivery_s=10, threads=1)
    monkeypatch.setattr(attempts, "_LEASE_S", 0.4)
    tasks, other = Tasks(settings), Tasks(settings)
    job = submit(tasks.app, tasks.jobs, "reindex", ReindexRequest(catalog=CATALOG, manifest_uri=str(images)))
    plan, begun = reindex.plan, []

    def slow(*arguments: Any) -> Any:
        begun.append(arguments)
        time.sleep(1.2)
        if len(begun) == 1:
            deliver(other, Message(PLAN, (job.id,)))
        return plan(*arguments)

    monkeypatch.setattr(reindex, "plan", slow)
    deliver(tasks, *waiting(client))
    assert len(begun) == 1


def test_a_job_that_waits_shows_why_and_until_when(
    tasks: Tasks, reindexing: Job, client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the store is away the job states it with the time of the next try; it goes on for longer than any count."""
    left, seen = [9], []
    load = reindex.load_plan

    def away(*arguments: Any) -> Any:
        seen.append(tasks.jobs.get(reindexing.id))
        if left[0]:
            left[0] -= 1
            raise Unavailable("cannot access bucket/plan.json: it does not answer")
        return load(*arguments)

    deliver(tasks, *waiting(client))
    first, second = waiting(client)
    monkeypatch.setattr(reindex, "load_plan", away)
    monkeypatch.setattr(tasks.app.tasks[EMBED], "retry", refused_retry)
    for _ in range(9):
        before = datetime.now(UTC)
        with pytest.raises(RuntimeError, match="retry in 2 s"):
            tasks.app.tasks[EMBED].apply(args=first.arguments, throw=True)
        job = tasks.jobs.get(reindexing.id)
        assert job.state is JobState.RUNNING
        assert job.waiting_for == "cannot access bucket/plan.json: it does not answer"
        assert 1.9 <= (datetime.fromisoformat(job.next_try_at) - before).total_seconds() <= 3
        other = ReindexRequest(catalog=CATALOG, manifest_uri="other")
        with pytest.raises(FailedPrecondition, match=r"It waits, next try at .*: cannot access bucket"):
            submit(tasks.app, tasks.jobs, "reindex", dataclasses.replace(other, bundle_digest="b" * 32))
    deliver(tasks, first)
    deliver(tasks, second)
    work_off(tasks, client)
    done = tasks.jobs.get(reindexing.id)
    assert (done.state, done.waiting_for, done.next_try_at) == (JobState.SUCCEEDED, "", "")


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (
            OSError(errno.ENOSPC, "No space left on device", "/store/x"),
            "disk full: .*No space left on device.*/store/x",
        ),
        (OSError("Couldn't deserialize thrift"), "cannot read .*: Couldn't deserialize thrift"),
    ],
)
def test_a_cause_that_stays_fails_the_job_with_its_text(
    tasks: Tasks, reindexing: Job, client: redis.Redis, monkeypatch: pytest.MonkeyPatch, error: OSError, expected: str
) -> None:
    """The job ends at the first try with what really went wrong, not with a count of attempts."""

    def fails(*_: object) -> None:
        raise error

    monkeypatch.setattr(reindex, "plan", fails)
    assert work_off(tasks, client) == [PLAN]
    failed = tasks.jobs.get(reindexing.id)
    assert failed.state is JobState.FAILED
    assert re.search(expected, failed.error)


def test_a_full_disk_under_the_index_is_named(
    tasks: Tasks, reindexing: Job, client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """FAISS reports a full disk as a RuntimeError or not at all; the job names the disk."""
    put_snapshot = Store.put_snapshot

    def small_disk(*arguments: Any) -> Any:
        _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
        try:
            return put_snapshot(*arguments)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))

    monkeypatch.setattr(Store, "put_snapshot", small_disk)
    work_off(tasks, client)
    failed = tasks.jobs.get(reindexing.id)
    assert failed.state is JobState.FAILED
    assert failed.error.startswith("disk full: ")


@pytest.mark.slow
def test_pauses_between_attempts_grow_to_a_minute(tasks: Tasks, monkeypatch: pytest.MonkeyPatch) -> None:
    """An outage of seconds is over at the next attempt; a long one is not hammered."""

    class Task:
        """Celery's side of a task, with so many attempts behind it."""

        def __init__(self, retries: int) -> None:
            self.request = type("Request", (), {"retries": retries})
            self.pauses: list[int] = []

        def retry(self, *, exc: Exception, countdown: int) -> Exception:
            self.pauses.append(countdown)
            return exc

    def away(*_: object) -> None:
        raise JobsUnavailable("no Redis")

    monkeypatch.setattr(tasks.jobs, "get", away)
    run = tasks.guard.guarded(PLAN, tasks.plan)
    pauses = []
    for retries in range(8):
        task = Task(retries)
        with pytest.raises(JobsUnavailable, match="no Redis"):
            run(task, "job")
        pauses += task.pauses
    assert pauses == [2, 4, 8, 16, 32, 64, 64, 64]


def test_a_message_of_an_unknown_job_is_dropped(tasks: Tasks) -> None:
    """Its record expired or was lost: the log has it, and the queue goes on."""
    with capture_logs() as logs:
        deliver(tasks, Message(PLAN, ("0" * 32,)))
    assert [(log["event"], log["log_level"]) for log in logs] == [("task_of_unknown_job", "error")]


def test_a_job_that_another_delivery_ended_is_not_failed(tasks: Tasks, reindexing: Job) -> None:
    """The first ending counts."""
    tasks.jobs.succeed(reindexing.id, "snapshot")
    tasks.guard.give_up(reindexing, "too late")
    job = tasks.jobs.get(reindexing.id)
    assert (job.state, job.error) == (JobState.SUCCEEDED, "")


@pytest.mark.slow
def test_logs_of_a_task_carry_job_and_task(tasks: Tasks, reindexing: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    """An operator finds all lines of a job by its id."""
    seen = {}
    monkeypatch.setattr(reindex, "plan", lambda *_: seen.update(structlog.contextvars.get_contextvars()) or 1 / 0)
    deliver(tasks, Message(PLAN, (reindexing.id,)))
    assert seen == {"job": reindexing.id, "task": PLAN}
    assert structlog.contextvars.get_contextvars() == {}
