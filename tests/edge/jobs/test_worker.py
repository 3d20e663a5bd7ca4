"""The process of a worker: what it takes up again, and how it ends."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import redis

from retrieval.edge.jobs import attempts
from retrieval.edge.jobs.embedded import embedded_valkey, socket_path
from retrieval.edge.jobs.queue import AUDIT, PLAN, submit
from retrieval.edge.jobs.records import Job
from retrieval.edge.jobs.tasks import Tasks
from retrieval.edge.jobs.worker import resume, watch
from retrieval.edge.settings import load_settings
from retrieval.engine.store import Store
from retrieval.flows.reindex import ReindexRequest
from tests.edge.jobs.conftest import CATALOG, Message, waiting, work_off


@pytest.mark.slow
def test_a_job_whose_message_was_lost_is_resumed(
    calibrated: Store, state_dir: Path, client: redis.Redis, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A broker may drop a message, or its holder may die elsewhere: a worker that watches sends the first step."""
    monkeypatch.setattr(attempts, "_LEASE_S", 0.1)
    settings = load_settings(state_dir=state_dir, store_url=calibrated.url, threads=1)
    tasks = Tasks(settings)
    job = submit(tasks.app, tasks.jobs, "reindex", ReindexRequest(catalog=CATALOG, manifest_uri=str(images)))
    ended = threading.Event()
    watching = threading.Thread(target=watch, args=(tasks.app, settings, ended))
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


def test_resume_sends_every_unfinished_job_again(tasks: Tasks, reindexing: Job, client: redis.Redis) -> None:
    """A queue that lost its messages loses no job; jobs that have ended are left alone."""
    work_off(tasks, client)
    first = tasks.jobs.start("reindex", "other", {})
    second = tasks.jobs.start("audit", CATALOG, {})
    resume(tasks.app, tasks.jobs)
    assert {(message.task, *message.arguments) for message in waiting(client)} == {
        (PLAN, first.id),
        (AUDIT, second.id),
    }


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
