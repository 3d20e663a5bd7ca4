"""The process of a worker: its start, its end, and the jobs that it takes up again.

A worker that starts, or connects to its queue again, resumes every unfinished job. While it runs, it resumes the jobs
whose messages were lost. What a task does is in `tasks.py`.
"""

import functools
import os
import sys
import threading
import time
from typing import Any

import celery
import structlog
from celery.bootsteps import StartStopStep
from celery.signals import setup_logging, worker_process_init, worker_ready, worker_shutting_down
from celery.worker import state

from retrieval.edge import telemetry
from retrieval.edge.jobs.attempts import Attempts, lease_length
from retrieval.edge.jobs.connection import answers, redis_url
from retrieval.edge.jobs.embedded import die_with_parent
from retrieval.edge.jobs.queue import QUEUE, send_first_step
from retrieval.edge.jobs.records import JobId, Jobs
from retrieval.edge.jobs.tasks import Tasks
from retrieval.edge.settings import Settings
from retrieval.edge.wiring import check_device
from retrieval.errors import JobsUnavailable, RetrievalError

log = structlog.get_logger()

_SHUTDOWN_S = 4.0  # a worker that was told to stop and has no task ends after this time, also if its queue hangs


def run_worker(settings: Settings) -> None:
    """Run a worker in this process until a signal stops it. Raises RetrievalError if something else ends it."""
    check_device(settings)
    telemetry.setup(settings)
    setup_logging.connect(lambda **_: telemetry.setup(settings), weak=False)
    tasks = Tasks(settings)
    tasks.jobs.check()
    worker_ready.connect(lambda **_: log.info("worker_ready", processes=settings.n_worker_processes), weak=False)
    worker_process_init.connect(functools.partial(_end_with, os.getpid()), weak=False)
    worker_shutting_down.connect(lambda **_: _end_without_queue(redis_url(settings)), weak=False)
    tasks.app.steps["consumer"].add(_resuming(tasks))
    # not `worker_main`, which ends as if all were well after an error
    process = tasks.app.Worker(
        loglevel=settings.log_level.upper(), without_gossip=True, without_mingle=True, quiet=True
    )
    ended = threading.Event()
    watching = threading.Thread(target=watch, args=(tasks.app, settings, ended), name="watch", daemon=True)
    watching.start()
    try:
        process.start()
    finally:
        ended.set()
    if process.exitcode and state.should_stop is None:  # Ctrl-C sets both
        raise RetrievalError("the worker ended by an error that it cannot recover from: see its log above")


def resume(app: celery.Celery, jobs: Jobs) -> None:
    """Send the first step of every unfinished job again."""
    for job in jobs.running():
        log.info("job_resumed", id=job.id, kind=job.kind, catalog=job.catalog)
        send_first_step(app, job)


def watch(app: celery.Celery, settings: Settings, ended: threading.Event) -> None:
    """Resume jobs whose messages were lost, until the event is set: at which nothing works and nothing waits."""
    url, lease_s = redis_url(settings), lease_length(settings)
    jobs, attempts = Jobs(url), Attempts(url, lease_s=lease_s)  # own connections: other processes fork off
    idle: set[JobId] = set()
    while not ended.wait(max(1.0, lease_s / 4)):
        try:
            unfinished = {job.id: job for job in jobs.running()}
            found = {job_id for job_id in unfinished if attempts.is_idle(job_id, QUEUE)}
            for job in map(unfinished.__getitem__, found & idle):  # seen twice: a message may be under way
                log.warning("lost_job_resumed", id=job.id, kind=job.kind, catalog=job.catalog)
                send_first_step(app, job)
            idle = found - idle
        except JobsUnavailable:
            idle = set()


def _end_with(worker: int, **_: object) -> None:
    """End this process with the worker that forked it; without a pool it is the worker itself."""
    if os.getpid() != worker:
        die_with_parent(worker)


def _end_without_queue(url: str) -> None:
    """End this process soon if it has no task and its queue is away: Celery waits for a queue that hangs for a minute.

    What a stop in order would do, the kernel does too: the children and the embedded Valkey end with this process.
    """

    def end() -> None:
        while True:
            time.sleep(_SHUTDOWN_S)
            if not state.active_requests and not answers(url):
                log.warning("worker_ended_without_its_queue")
                sys.stdout.flush()
                os._exit(0)

    threading.Thread(target=end, name="end", daemon=True).start()


def _resuming(tasks: Tasks) -> type[StartStopStep]:
    """Build a step for Celery's consumer that resumes jobs at every new connection: a broken one loses messages."""

    class Resume(StartStopStep):
        requires = ("celery.worker.consumer:Tasks",)

        def start(self, consumer: Any) -> None:
            try:
                resume(tasks.app, tasks.jobs)
            except JobsUnavailable:  # the consumer sees this too, connects again and returns here
                log.exception("resume_failed")

    return Resume
