"""The worker's steps over a real Valkey and a real store; the test delivers the messages itself."""

from __future__ import annotations

import csv
import dataclasses
import errno
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import redis
import structlog
from structlog.testing import capture_logs

from retrieval.contract.operating_point import OperatingPoint
from retrieval.contract.score import Score
from retrieval.edge.jobs import worker as worker_module
from retrieval.edge.jobs.embedded import embedded_valkey, socket_path
from retrieval.edge.jobs.queue import AUDIT, BUILD, EMBED, PLAN, make_app, submit
from retrieval.edge.jobs.records import Job, JobState, redis_url
from retrieval.edge.jobs.worker import Worker, run_beat
from retrieval.edge.settings import load_settings
from retrieval.engine.store import Store
from retrieval.errors import FailedPrecondition, InvalidSettings, JobsUnavailable, Unavailable
from retrieval.flows.audit import AuditRequest
from retrieval.flows.reindex import ReindexRequest
from tests.edge.jobs.conftest import Message, waiting
from tests.pictures import class_picture, encoded, write_class_folders
from tests.stores import activate

CATALOG = "shop"
N_CLASSES, N_IMAGES = 33, 4  # 132 images: two shards
N_ATTEMPTS = 6


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures for two shards; read only."""
    return write_class_folders(tmp_path_factory.mktemp("images"), n_classes=N_CLASSES, n_images=N_IMAGES)


@pytest.fixture(scope="module")
def labelled_images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """30 new classes of 4 pictures, with a column of groups; read only."""
    folder = tmp_path_factory.mktemp("audit")
    with (folder / "manifest.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "uri", "label", "camera"])
        for number in range(3000, 3030):
            for variant in range(4):
                name = f"{number}-{variant}.png"
                (folder / name).write_bytes(encoded(class_picture(number, variant, spread=70)))
                writer.writerow([name, name, f"class {number}", variant % 2])
    return folder / "manifest.csv"


@pytest.fixture
def worker(calibrated: Store, state_dir: Path) -> Iterator[Worker]:
    """A worker over a calibrated store and an empty queue; it runs what the tests deliver."""
    worker = Worker(load_settings(state_dir=state_dir, store_url=calibrated.url, threads=1, worker_processes=1))
    yield worker
    worker.parts.embedder.pool.shutdown()


@pytest.fixture
def reindexing(worker: Worker, images: Path) -> Job:
    """A reindex of two shards whose first message waits."""
    return submit(worker.app, worker.jobs, "reindex", ReindexRequest(catalog=CATALOG, manifest_uri=str(images)))


def deliver(worker: Worker, message: Message) -> None:
    """Run one task in this process as Celery does; retries follow at once."""
    result = worker.app.tasks[message.task].apply(args=message.arguments)
    assert result.state in ("SUCCESS", "RETRY"), result.traceback


def refused_retry(*, exc: Exception, countdown: int) -> None:
    """Stand in for Celery's own: in this process it would try again at once."""
    raise RuntimeError(f"retry in {countdown} s") from exc


def work_off(worker: Worker, client: redis.Redis, *, times: int = 1) -> list[str]:
    """Deliver messages, each so many times, until none waits; returns the tasks in their order."""
    done = []
    while messages := waiting(client):
        for message in messages:
            done.append(message.task)
            for _ in range(times):
                deliver(worker, message)
    return done


def staged(store: Store, job: Job) -> list[str]:
    return store.objects.names(f"staging/{job.id}")


def test_a_reindex_goes_from_message_to_live_snapshot(
    worker: Worker, reindexing: Job, client: redis.Redis, calibrated: Store
) -> None:
    """One plan, one task per shard, one build; afterwards the snapshot is live and no working file is left."""
    assert work_off(worker, client) == [PLAN, EMBED, EMBED, BUILD]
    job = worker.jobs.get(reindexing.id)
    assert (job.state, job.n_done, job.n_total) == (JobState.SUCCEEDED, 2, 2)
    assert job.result_id == calibrated.current(CATALOG)
    assert calibrated.snapshot_manifest(CATALOG, calibrated.current(CATALOG)).n_items == N_CLASSES * N_IMAGES
    assert staged(calibrated, job) == []
    assert worker.jobs.running() == []


def test_old_snapshots_are_pruned_after_each_publish(
    calibrated: Store, state_dir: Path, client: redis.Redis, tmp_path: Path
) -> None:
    """As many as the settings say stay, with their embeddings."""
    worker = Worker(load_settings(state_dir=state_dir, store_url=calibrated.url, threads=1, keep_snapshots=2))
    made = []
    for number in range(4):
        folder = write_class_folders(tmp_path / f"images{number}", n_classes=2 + number, n_images=1)
        request = ReindexRequest(catalog=CATALOG, manifest_uri=str(folder))
        job = submit(worker.app, worker.jobs, "reindex", request)
        work_off(worker, client)
        made.append(worker.jobs.get(job.id).result_id)
    worker.parts.embedder.pool.shutdown()
    assert sorted(calibrated.snapshot_ids(CATALOG)) == sorted(made[2:])
    assert len(calibrated.embedding_keys(calibrated.only_bundle())) == 2


def test_plan_sends_a_task_for_each_shard(worker: Worker, reindexing: Job, client: redis.Redis) -> None:
    """The number of shards is known from then on."""
    waiting(client)
    deliver(worker, Message(PLAN, (reindexing.id,)))
    assert waiting(client) == [Message(EMBED, (reindexing.id, 0)), Message(EMBED, (reindexing.id, 1))]
    job = worker.jobs.get(reindexing.id)
    assert (job.state, job.n_done, job.n_total) == (JobState.RUNNING, 0, 2)


def test_only_the_last_shard_starts_the_build(worker: Worker, reindexing: Job, client: redis.Redis) -> None:
    """The shards may end in any order."""
    deliver(worker, *waiting(client))
    first, second = waiting(client)
    deliver(worker, second)
    assert waiting(client) == []
    assert worker.jobs.get(reindexing.id).n_done == 1
    deliver(worker, first)
    assert waiting(client) == [Message(BUILD, (reindexing.id,))]


def test_a_plan_delivered_again_sends_only_what_is_missing(
    worker: Worker, reindexing: Job, client: redis.Redis
) -> None:
    """A worker that died after the first shard costs that job nothing but time."""
    (planning,) = waiting(client)
    deliver(worker, planning)
    deliver(worker, waiting(client)[0])
    deliver(worker, planning)
    assert waiting(client) == [Message(EMBED, (reindexing.id, 1))]
    deliver(worker, Message(EMBED, (reindexing.id, 1)))
    waiting(client)  # the build is lost
    deliver(worker, planning)
    assert waiting(client) == [Message(BUILD, (reindexing.id,))]


def test_every_message_delivered_twice_gives_one_snapshot(
    worker: Worker, reindexing: Job, client: redis.Redis, calibrated: Store
) -> None:
    """A broker may deliver again what was done; the job counts each shard once."""
    work_off(worker, client, times=2)
    job = worker.jobs.get(reindexing.id)
    assert (job.state, job.n_done, job.n_total) == (JobState.SUCCEEDED, 2, 2)
    assert [manifest.id for manifest in calibrated.snapshots(CATALOG).readable] == [job.result_id]
    assert staged(calibrated, job) == []


def test_a_late_delivery_does_not_touch_a_job_that_has_ended(
    worker: Worker, reindexing: Job, client: redis.Redis, calibrated: Store
) -> None:
    """It removes the working files that a killed worker left, and nothing else."""
    work_off(worker, client)
    done = worker.jobs.get(reindexing.id)
    calibrated.objects.put(f"staging/{done.id}/left-over", b"x")
    for message in (Message(PLAN, (done.id,)), Message(EMBED, (done.id, 1)), Message(BUILD, (done.id,))):
        deliver(worker, message)
    assert worker.jobs.get(done.id) == done
    assert waiting(client) == []
    assert staged(calibrated, done) == []


def test_a_known_error_fails_the_job_at_once(
    worker: Worker, client: redis.Redis, calibrated: Store, tmp_path: Path
) -> None:
    """The client sees the error's own message; the catalogue is free; nothing is retried."""
    (tmp_path / "empty").mkdir()
    request = ReindexRequest(catalog=CATALOG, manifest_uri=str(tmp_path / "empty"))
    job = submit(worker.app, worker.jobs, "reindex", request)
    with capture_logs() as logs:
        assert work_off(worker, client) == [PLAN]
    failed = worker.jobs.get(job.id)
    assert failed.state is JobState.FAILED
    assert "expected at least one image" in failed.error
    assert [log["event"] for log in logs] == ["job_failed"]
    assert worker.jobs.running() == []
    assert staged(calibrated, job) == []
    assert submit(worker.app, worker.jobs, "reindex", request).id != job.id


def test_a_build_that_fails_leaves_the_old_snapshot_live(
    worker: Worker, reindexing: Job, client: redis.Redis, calibrated: Store, tmp_path: Path
) -> None:
    """Too many unreadable images: the job says so, and the working files are gone."""
    work_off(worker, client)
    old = calibrated.current(CATALOG)
    (tmp_path / "broken" / "class").mkdir(parents=True)
    for number in range(5):
        (tmp_path / "broken" / "class" / f"{number}.png").write_bytes(b"no picture")
    request = ReindexRequest(catalog=CATALOG, manifest_uri=str(tmp_path / "broken"))
    job = submit(worker.app, worker.jobs, "reindex", request)
    assert work_off(worker, client) == [PLAN, EMBED, BUILD]
    assert worker.jobs.get(job.id).state is JobState.FAILED
    assert "5 of 5" in worker.jobs.get(job.id).error
    assert calibrated.current(CATALOG) == old
    assert staged(calibrated, job) == []


@pytest.mark.slow
def test_an_unknown_error_is_tried_again_and_then_fails_the_job(
    worker: Worker, reindexing: Job, client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A defect gets six attempts; its text stays in the log of the worker."""
    calls = []

    def broken(*arguments: object, **_: object) -> None:
        calls.append(arguments)
        raise KeyError("secret path /etc/shadow")

    monkeypatch.setattr(worker_module.reindex, "build_and_publish", broken)
    work_off(worker, client)
    job = worker.jobs.get(reindexing.id)
    assert len(calls) == N_ATTEMPTS
    assert job.state is JobState.FAILED
    assert f"{BUILD} failed {N_ATTEMPTS} times, the last time with an unexpected KeyError" in job.error
    assert "secret" not in job.error


def test_an_error_that_passes_does_not_count_afterwards(
    worker: Worker, reindexing: Job, client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A store that is away for two attempts delays a job; it does not fail it."""
    build, left = worker_module.reindex.build_and_publish, [2]

    def away(*arguments: Any, **options: Any) -> Any:
        if left[0]:
            left[0] -= 1
            raise Unavailable("the store does not answer")
        return build(*arguments, **options)

    monkeypatch.setattr(worker_module.reindex, "build_and_publish", away)
    work_off(worker, client)
    assert worker.jobs.get(reindexing.id).state is JobState.SUCCEEDED


def test_a_step_before_its_plan_asks_for_the_plan(worker: Worker, reindexing: Job, client: redis.Redis) -> None:
    """A step whose plan was lost neither runs for ever nor fails its job: the plan sends it again."""
    for step in (Message(EMBED, (reindexing.id, 0)), Message(BUILD, (reindexing.id,))):
        waiting(client)
        deliver(worker, step)
        assert waiting(client) == [Message(PLAN, (reindexing.id,))]
    deliver(worker, Message(PLAN, (reindexing.id,)))
    work_off(worker, client)
    assert worker.jobs.get(reindexing.id).state is JobState.SUCCEEDED


def die_at(worker: Worker, job: Job, task: str) -> None:
    """Begin a task in another process, which dies."""
    program = (
        "import sys; from retrieval.edge.jobs.attempts import Attempts; from retrieval.edge.jobs.records import JobId\n"
        "print(Attempts(sys.argv[1], lease_s=60).begin(JobId(sys.argv[2]), sys.argv[3]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, redis_url(worker._settings), job.id, task],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert "None" not in done.stdout


@pytest.mark.slow
def test_a_shard_that_kills_its_worker_fails_the_job(worker: Worker, reindexing: Job, client: redis.Redis) -> None:
    """A killed process cannot count, so an attempt is counted before it begins, for each shard on its own."""
    deliver(worker, *waiting(client))
    first, second = waiting(client)
    for _ in range(N_ATTEMPTS):
        die_at(worker, reindexing, f"{EMBED}:0")
    deliver(worker, second)
    assert worker.jobs.get(reindexing.id).state is JobState.RUNNING
    deliver(worker, first)
    assert f"{EMBED}:0 was started {N_ATTEMPTS} times and each time its process ended" in (
        worker.jobs.get(reindexing.id).error
    )


def test_a_task_that_is_delivered_again_while_it_works_runs_once(
    worker: Worker, reindexing: Job, client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ten deliveries to another process of a task that is alive are dropped, and none counts as a death."""
    embed, begun = worker_module.reindex.embed_planned_shard, []
    other = Worker(worker._settings)

    def slow(*arguments: Any, **options: Any) -> Any:
        begun.append(arguments[3])
        if len(begun) == 1:
            for _ in range(10):
                deliver(other, Message(EMBED, (reindexing.id, arguments[3])))
        return embed(*arguments, **options)

    monkeypatch.setattr(worker_module.reindex, "embed_planned_shard", slow)
    work_off(worker, client)
    assert sorted(begun) == [0, 1]
    assert worker.jobs.get(reindexing.id).state is JobState.SUCCEEDED


@pytest.mark.slow
def test_a_task_at_work_renews_its_lease(
    calibrated: Store, state_dir: Path, client: redis.Redis, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A task may take longer than its lease: another process still does not get it."""
    settings = load_settings(state_dir=state_dir, store_url=calibrated.url, redelivery_s=10, threads=1)
    monkeypatch.setattr(worker_module, "_LEASE_S", 0.4)
    worker, other = Worker(settings), Worker(settings)
    job = submit(worker.app, worker.jobs, "reindex", ReindexRequest(catalog=CATALOG, manifest_uri=str(images)))
    plan, begun = worker_module.reindex.plan, []

    def slow(*arguments: Any) -> Any:
        begun.append(arguments)
        time.sleep(1.2)
        if len(begun) == 1:
            deliver(other, Message(PLAN, (job.id,)))
        return plan(*arguments)

    monkeypatch.setattr(worker_module.reindex, "plan", slow)
    deliver(worker, *waiting(client))
    assert len(begun) == 1


def test_a_job_that_waits_shows_why_and_until_when(
    worker: Worker, reindexing: Job, client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the store is away the job states it with the time of the next try; it goes on for longer than any count."""
    left, seen = [9], []
    load = worker_module.reindex.load_plan

    def away(*arguments: Any) -> Any:
        seen.append(worker.jobs.get(reindexing.id))
        if left[0]:
            left[0] -= 1
            raise Unavailable("cannot access bucket/plan.json: it does not answer")
        return load(*arguments)

    deliver(worker, *waiting(client))
    first, second = waiting(client)
    monkeypatch.setattr(worker_module.reindex, "load_plan", away)
    monkeypatch.setattr(worker.app.tasks[EMBED], "retry", refused_retry)
    for _ in range(9):
        before = datetime.now(UTC)
        with pytest.raises(RuntimeError, match="retry in 2 s"):
            worker.app.tasks[EMBED].apply(args=first.arguments, throw=True)
        job = worker.jobs.get(reindexing.id)
        assert job.state is JobState.RUNNING
        assert job.waiting_for == "cannot access bucket/plan.json: it does not answer"
        assert 1.9 <= (datetime.fromisoformat(job.next_try_at) - before).total_seconds() <= 3
        other = ReindexRequest(catalog=CATALOG, manifest_uri="other")
        with pytest.raises(FailedPrecondition, match=r"It waits, next try at .*: cannot access bucket"):
            submit(worker.app, worker.jobs, "reindex", dataclasses.replace(other, bundle_digest="b" * 32))
    deliver(worker, first)
    deliver(worker, second)
    work_off(worker, client)
    done = worker.jobs.get(reindexing.id)
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
    worker: Worker, reindexing: Job, client: redis.Redis, monkeypatch: pytest.MonkeyPatch, error: OSError, expected: str
) -> None:
    """The job ends at the first try with what really went wrong, not with a count of attempts."""

    def fails(*_: object) -> None:
        raise error

    monkeypatch.setattr(worker_module.reindex, "plan", fails)
    assert work_off(worker, client) == [PLAN]
    failed = worker.jobs.get(reindexing.id)
    assert failed.state is JobState.FAILED
    assert re.search(expected, failed.error)


def test_a_full_disk_under_the_index_is_named(
    worker: Worker, reindexing: Job, client: redis.Redis, monkeypatch: pytest.MonkeyPatch
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
    work_off(worker, client)
    failed = worker.jobs.get(reindexing.id)
    assert failed.state is JobState.FAILED
    assert failed.error.startswith("disk full: ")


@pytest.mark.slow
def test_a_job_whose_message_was_lost_is_resumed(
    calibrated: Store, state_dir: Path, client: redis.Redis, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A broker may drop a message, or its holder may die elsewhere: a worker that watches sends the first step."""
    monkeypatch.setattr(worker_module, "_LEASE_S", 0.1)
    settings = load_settings(state_dir=state_dir, store_url=calibrated.url, threads=1)
    worker = Worker(settings)
    job = submit(worker.app, worker.jobs, "reindex", ReindexRequest(catalog=CATALOG, manifest_uri=str(images)))
    ended = threading.Event()
    watching = threading.Thread(target=worker.watch, args=(ended,))
    watching.start()
    try:
        assert waiting(client)
        deadline = time.monotonic() + 20
        while not client.llen("retrieval"):
            assert time.monotonic() < deadline
            time.sleep(0.1)
    finally:
        ended.set()
        watching.join()
    assert waiting(client)[0] == Message(PLAN, (job.id,))


@pytest.mark.slow
def test_pauses_between_attempts_grow_to_a_minute(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
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

    monkeypatch.setattr(worker.jobs, "get", away)
    run = worker._guarded(PLAN, worker.plan)
    pauses = []
    for retries in range(8):
        task = Task(retries)
        with pytest.raises(JobsUnavailable, match="no Redis"):
            run(task, "job")
        pauses += task.pauses
    assert pauses == [2, 4, 8, 16, 32, 64, 64, 64]


def test_a_message_of_an_unknown_job_is_dropped(worker: Worker) -> None:
    """Its record expired or was lost: the log has it, and the queue goes on."""
    with capture_logs() as logs:
        deliver(worker, Message(PLAN, ("0" * 32,)))
    assert [(log["event"], log["log_level"]) for log in logs] == [("task_of_unknown_job", "error")]


def test_a_job_that_another_delivery_ended_is_not_failed(worker: Worker, reindexing: Job) -> None:
    """The first ending counts."""
    worker.jobs.succeed(reindexing.id, "snapshot")
    worker._give_up(reindexing, "too late")
    job = worker.jobs.get(reindexing.id)
    assert (job.state, job.error) == (JobState.SUCCEEDED, "")


@pytest.mark.slow
def test_logs_of_a_task_carry_job_and_task(worker: Worker, reindexing: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    """An operator finds all lines of a job by its id."""
    seen = {}
    monkeypatch.setattr(
        worker_module.reindex, "plan", lambda *_: seen.update(structlog.contextvars.get_contextvars()) or 1 / 0
    )
    deliver(worker, Message(PLAN, (reindexing.id,)))
    assert seen == {"job": reindexing.id, "task": PLAN}
    assert structlog.contextvars.get_contextvars() == {}


def test_resume_sends_every_unfinished_job_again(worker: Worker, reindexing: Job, client: redis.Redis) -> None:
    """A queue that lost its messages loses no job; jobs that have ended are left alone."""
    work_off(worker, client)
    first = worker.jobs.start("reindex", "other", {})
    second = worker.jobs.start("audit", CATALOG, {})
    worker.resume()
    assert {(message.task, *message.arguments) for message in waiting(client)} == {
        (PLAN, first.id),
        (AUDIT, second.id),
    }


@pytest.mark.slow
def test_an_audit_stores_its_report_and_changes_nothing(
    worker: Worker,
    reindexing: Job,
    client: redis.Redis,
    calibrated: Store,
    labelled_images: Path,
) -> None:
    """The job names the audit; a verdict that failed is an alarm in the log, not a failed job."""
    work_off(worker, client)
    before = calibrated.active_id(calibrated.only_bundle()), calibrated.current(CATALOG)
    request = AuditRequest(catalog=CATALOG, manifest_uri=str(labelled_images), group_by=("camera",))
    job = submit(worker.app, worker.jobs, "audit", request)
    with capture_logs() as logs:
        assert work_off(worker, client) == [AUDIT]
    done = worker.jobs.get(job.id)
    assert (done.state, done.result_id, done.n_done, done.n_total) == (JobState.SUCCEEDED, job.id, 120, 120)
    report = calibrated.audit(CATALOG, job.id)
    (finished,) = [log for log in logs if log["event"] == "audit_finished"]
    assert finished["verdict"] == report["verdict"]
    assert finished["log_level"] == ("info" if report["verdict"] == "passed" else "error")
    assert finished["findings"] == [f["limit"] for f in report["findings"] if not f["passed"]]
    assert (calibrated.active_id(calibrated.only_bundle()), calibrated.current(CATALOG)) == before


@pytest.mark.slow
def test_an_audit_that_fails_its_limits_is_an_alarm(
    calibrated: Store,
    cosine_point: OperatingPoint,
    worker: Worker,
    reindexing: Job,
    client: redis.Redis,
    labelled_images: Path,
) -> None:
    """A threshold that accepts nearly everything fails; the job itself succeeds."""
    work_off(worker, client)
    loose = dataclasses.replace(cosine_point, choice=dataclasses.replace(cosine_point.choice, threshold=-0.99))
    activate(calibrated, loose, Score())
    job = submit(worker.app, worker.jobs, "audit", AuditRequest(catalog=CATALOG, manifest_uri=str(labelled_images)))
    with capture_logs() as logs:
        work_off(worker, client)
    assert worker.jobs.get(job.id).state is JobState.SUCCEEDED
    (finished,) = [log for log in logs if log["event"] == "audit_finished"]
    assert (finished["verdict"], finished["log_level"]) == ("failed", "error")
    assert finished["findings"]


def test_an_audit_of_unusable_images_fails_its_job(
    worker: Worker, reindexing: Job, client: redis.Redis, tmp_path: Path
) -> None:
    """A manifest without labels is the caller's to change."""
    work_off(worker, client)
    (tmp_path / "manifest.csv").write_text("id,uri\na,a.png\nb,b.png\n")
    job = submit(
        worker.app, worker.jobs, "audit", AuditRequest(catalog=CATALOG, manifest_uri=str(tmp_path / "manifest.csv"))
    )
    work_off(worker, client)
    assert worker.jobs.get(job.id).state is JobState.FAILED
    assert "label" in worker.jobs.get(job.id).error


def test_a_scheduled_audit_that_still_runs_is_not_started_again(
    calibrated: Store, state_dir: Path, client: redis.Redis
) -> None:
    """Two ticks give one job with the request that the scheduler sent; the worker has no settings of an audit."""
    scheduler = load_settings(
        audit_every_h=1.0,
        audit_catalog=CATALOG,
        audit_manifest="images",
        audit_group_by="maker, camera",
        audit_family="line",
    )
    (entry,) = make_app(scheduler).conf.beat_schedule.values()
    worker = Worker(load_settings(state_dir=state_dir, store_url=calibrated.url))
    for _ in range(2):
        worker.app.tasks[entry["task"]].apply(args=json.loads(json.dumps(entry["args"])), throw=True)
    (job,) = worker.jobs.running()
    assert waiting(client) == [Message(AUDIT, (job.id,))] * 2
    groups = ["maker", "camera"]
    assert job.request == {"catalog": CATALOG, "manifest_uri": "images", "group_by": groups, "family": "line"}
    other = {"catalog": CATALOG, "manifest_uri": "others", "group_by": []}
    with capture_logs() as logs:
        worker.app.tasks[entry["task"]].apply(args=[other], throw=True)
    assert [log["event"] for log in logs] == ["scheduled_audit_skipped"]


@pytest.mark.parametrize("missing", ["audit_every_h", "audit_catalog", "audit_manifest"])
def test_a_scheduler_without_a_schedule_does_not_start(missing: str) -> None:
    """All three settings are needed."""
    given: dict[str, object] = {"audit_every_h": 1.0, "audit_catalog": CATALOG, "audit_manifest": "images"}
    del given[missing]
    with pytest.raises(InvalidSettings, match="RETRIEVAL_AUDIT_EVERY_H"):
        run_beat(load_settings(**given))


@pytest.mark.slow
@pytest.mark.parametrize(("largest_file", "stop", "code"), [(1024, None, 3), (-1, signal.SIGINT, 0)])
def test_a_worker_that_breaks_is_no_worker_that_was_stopped(
    tmp_path: Path, largest_file: int, stop: signal.Signals | None, code: int
) -> None:
    """What starts it again after a failure needs the exit code; Celery's own command ends with 0."""
    environment = os.environ | {"RETRIEVAL_REDIS_URL": f"unix://{tmp_path}/none", "RETRIEVAL_STATE_DIR": str(tmp_path)}
    with subprocess.Popen(
        [sys.executable, "-m", "retrieval.edge.cli", "worker"],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file,) * 2),  # noqa: PLW1509  # one C call
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if stop and "Cannot connect" in line:
                process.send_signal(stop)
                stop = None
        assert process.wait(60) == code


def test_a_job_reads_inside_the_roots_only(
    calibrated: Store, state_dir: Path, images: Path, labelled_images: Path, tmp_path: Path, client: redis.Redis
) -> None:
    """Who starts a job over gRPC reads what RETRIEVAL_IMAGE_ROOTS lists; other rows fail, another table is refused."""
    settings = load_settings(
        state_dir=state_dir, store_url=calibrated.url, threads=1, worker_processes=1, image_roots=str(tmp_path)
    )
    worker = Worker(settings)
    outside = submit(worker.app, worker.jobs, "reindex", ReindexRequest(catalog=CATALOG, manifest_uri=str(images)))
    deliver(worker, *waiting(client))
    assert "RETRIEVAL_IMAGE_ROOTS" in worker.jobs.get(outside.id).error
    audit = submit(worker.app, worker.jobs, "audit", AuditRequest(catalog=CATALOG, manifest_uri=str(labelled_images)))
    for message in waiting(client):
        deliver(worker, message)
    assert "RETRIEVAL_IMAGE_ROOTS" in worker.jobs.get(audit.id).error
    (tmp_path / "table.csv").write_text("id,uri\na,/etc/passwd\nb,/etc/hosts\n")
    request = ReindexRequest(catalog="other", manifest_uri=str(tmp_path / "table.csv"))
    mixed = submit(worker.app, worker.jobs, "reindex", request)
    for _ in range(3):
        for message in waiting(client):
            deliver(worker, message)
    assert worker.jobs.get(mixed.id).state is JobState.FAILED
    worker.parts.embedder.pool.shutdown()


def test_what_a_folder_holds_and_is_no_item_is_in_the_job(
    worker: Worker, images: Path, tmp_path: Path, client: redis.Redis
) -> None:
    """Nothing disappears without a word."""
    shutil.copytree(images, tmp_path / "images")
    (tmp_path / "images" / ".hidden.png").write_bytes(b"")
    (tmp_path / "images" / "note.txt").write_text("note")
    request = ReindexRequest(catalog=CATALOG, manifest_uri=str(tmp_path / "images"))
    job = submit(worker.app, worker.jobs, "reindex", request)
    work_off(worker, client)
    assert worker.jobs.get(job.id).state is JobState.SUCCEEDED
    assert worker.jobs.get(job.id).passed_over == (
        "1 passed over (hidden, or left by another program): .hidden.png",
        "1 passed over (no images): note.txt",
    )


@pytest.mark.slow
@pytest.mark.e2e
@pytest.mark.timeout(120)
def test_a_worker_whose_queue_hangs_ends_within_seconds(tmp_path: Path) -> None:
    """Celery would wait for its queue for a minute."""
    with embedded_valkey(tmp_path / "other"):
        url = f"unix://{socket_path(tmp_path / 'other')}"
        environment = os.environ | {"RETRIEVAL_REDIS_URL": url, "RETRIEVAL_STATE_DIR": str(tmp_path)}
        client = redis.Redis(unix_socket_path=str(socket_path(tmp_path / "other")))
        server, deadline = client.info()["process_id"], time.monotonic() + 60
        with subprocess.Popen(
            [sys.executable, "-m", "retrieval.edge.cli", "worker"],
            env=environment | {"RETRIEVAL_WORKER_PROCESSES": "1"},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        ) as process:
            while not client.exists("_kombu.binding.retrieval"):
                assert time.monotonic() < deadline
                time.sleep(0.1)
            os.kill(server, signal.SIGSTOP)
            try:
                process.terminate()
                assert process.wait(15) == 0
            finally:
                os.kill(server, signal.SIGCONT)
                process.kill()
