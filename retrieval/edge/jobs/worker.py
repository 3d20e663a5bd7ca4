"""The worker: the steps of each job as Celery tasks.

A task is acknowledged after it is done, so it may be delivered twice: the second one finds that the first still works,
or finds its work in the store. The task that embeds the last shard starts the build. A worker that starts, or connects
to its queue again, resumes every unfinished job; while it runs, it resumes those whose messages were lost.
"""

import contextlib
import os
import sys
import threading
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import structlog
from celery.bootsteps import StartStopStep
from celery.signals import setup_logging, worker_process_init, worker_ready, worker_shutting_down
from celery.worker import state

from retrieval.contract.sources import check_source
from retrieval.edge import telemetry
from retrieval.edge.jobs.attempts import Attempts
from retrieval.edge.jobs.embedded import die_with_parent
from retrieval.edge.jobs.queue import (
    AUDIT,
    BUILD,
    EMBED,
    PLAN,
    QUEUE,
    SCHEDULED_AUDIT,
    make_app,
    n_processes,
    send,
    send_first_step,
    submit,
)
from retrieval.edge.jobs.records import Job, JobId, Jobs, answers, now, redis_url
from retrieval.edge.settings import Settings
from retrieval.edge.wiring import OfflineParts, check_device, offline_parts
from retrieval.engine.store.calls import is_full
from retrieval.errors import (
    FailedPrecondition,
    InvalidManifest,
    InvalidSettings,
    JobsUnavailable,
    OutOfSpace,
    RetrievalError,
    Unavailable,
    UnknownJob,
)
from retrieval.flows import audit, prune, reindex
from retrieval.report.audit_page import render_report

log = structlog.get_logger()

_MAX_COUNTDOWN_S = 64
_MAX_ATTEMPTS = 6  # number of times that a task may kill its worker or fail for an unknown reason before the job fails
_SHUTDOWN_S = 4.0  # a worker that was told to stop and has no task ends after this time, also if its queue hangs
_LEASE_S = 60  # at most: how long a task is taken to be at work after the last sign of life of its process


class Worker:
    """The tasks of one Celery application. Each process builds its parts at first use, because they survive no fork."""

    def __init__(self, settings: Settings) -> None:
        self.app = make_app(settings)
        self._settings = settings
        self._parts: OfflineParts | None = None
        self.jobs = Jobs(redis_url(settings))
        self._lease_s = min(settings.redelivery_s, _LEASE_S)
        self._attempts = Attempts(redis_url(settings), lease_s=self._lease_s)
        for name, step in ((PLAN, self.plan), (EMBED, self.embed), (BUILD, self.build), (AUDIT, self.audit)):
            # no limit here: with Celery's default of 3 a job would never end; `_attempt` counts
            self.app.task(name=name, bind=True, shared=False, max_retries=None)(self._guarded(name, step))

        @self.app.task(name=SCHEDULED_AUDIT, shared=False)
        def scheduled_audit(request: dict[str, Any]) -> None:
            self.start_scheduled_audit(request)

    @property
    def parts(self) -> OfflineParts:
        """Store, encoders and threads of this process, built at first use."""
        if self._parts is None:
            self._parts = offline_parts(
                self._settings, processes=n_processes(self._settings), limits=self._settings.job_limits
            )
        return self._parts

    def plan(self, job: Job) -> None:
        """Split the manifest into shards and send a task for each shard that is missing."""
        roots = self._settings.job_limits.roots
        check_source(str(job.request["manifest_uri"]), roots)
        planned = reindex.plan(self.parts.store, job.id, reindex.ReindexRequest(**job.request), roots)
        self.jobs.mark_running(job.id, n_total=planned.n_shards)
        self.jobs.mark_passed_over(job.id, planned.passed_over)
        missing = reindex.missing_shards(self.parts.store, job.id, planned)
        for number in set(range(planned.n_shards)) - set(missing):
            self.jobs.mark_done(job.id, number)
        for number in missing:
            send(self.app, EMBED, job.id, number)
        if not missing:
            send(self.app, BUILD, job.id)

    def embed(self, job: Job, number: int) -> None:
        """Embed one shard; send the build if it was the last one."""
        store = self.parts.store
        planned = reindex.load_plan(store, job.id)
        if planned is None:  # its files were lost: the plan sends this step again
            send_first_step(self.app, job)
            return
        reindex.embed_planned_shard(store, job.id, planned, number, embedder=self.parts.embedder)
        self.jobs.mark_done(job.id, number)
        if not reindex.missing_shards(store, job.id, planned):
            send(self.app, BUILD, job.id)

    def build(self, job: Job) -> None:
        """Build the snapshot, validate it and make it live."""
        store = self.parts.store
        planned = reindex.load_plan(store, job.id)
        if planned is None:
            send_first_step(self.app, job)
            return
        snapshot = reindex.build_and_publish(store, job.id, planned, created_at=now(), device=self.parts.index_device)
        self.jobs.succeed(job.id, snapshot)
        reindex.clear_staging(store, job.id)
        log.info("snapshot_published", id=snapshot, catalog=job.catalog, items=planned.n_items)
        self._prune(job.catalog)

    def _prune(self, catalog: str) -> None:
        """Remove the old snapshots of a catalogue; the job has succeeded whether that works or not."""
        own = self._settings
        policy = prune.PrunePolicy(keep=own.keep_snapshots, keep_days=own.keep_days, keep_audits=own.keep_audits)
        try:
            pruned = prune.prune(self.parts.store, policy, now=datetime.now(UTC), catalogs=[catalog])
        except (RetrievalError, OSError):
            log.exception("prune_failed", catalog=catalog)
            return
        if pruned.snapshots or pruned.embeddings or pruned.audits or pruned.left_over:
            n_embeddings = len(pruned.embeddings)
            log.info("store_pruned", catalog=catalog, snapshots=pruned.snapshots, n_embeddings=n_embeddings)

    def audit(self, job: Job) -> None:
        """Run an audit and store its report."""
        request = _audit_request(job.request)
        check_source(request.manifest_uri, self._settings.job_limits.roots)
        report = audit.run_audit(
            self.parts.store,
            request,
            audit_id=job.id,
            created_at=job.created_at,
            embedder=self.parts.embedder,
            limits=audit.AuditLimits(),
            progress=lambda done, total: self.jobs.mark_progress(job.id, done, total),
            render=render_report,
        )
        self.jobs.mark_passed_over(job.id, report.passed_over)
        self.jobs.succeed(job.id, job.id)
        note = log.info if report.passed else log.error  # a failed audit is an alarm
        note(
            "audit_finished",
            id=job.id,
            catalog=job.catalog,
            verdict="passed" if report.passed else "failed",
            findings=[f.limit for f in report.findings if not f.passed],
        )

    def start_scheduled_audit(self, request: Mapping[str, Any]) -> None:
        """Start the audit that the scheduler asks for, unless the last one still runs."""
        try:
            submit(self.app, self.jobs, "audit", _audit_request(request))
        except FailedPrecondition as error:
            log.warning("scheduled_audit_skipped", reason=str(error))

    def resume(self) -> None:
        """Send the first step of every unfinished job again."""
        for job in self.jobs.running():
            log.info("job_resumed", id=job.id, kind=job.kind, catalog=job.catalog)
            send_first_step(self.app, job)

    def watch(self, ended: threading.Event) -> None:
        """Resume jobs whose messages were lost, until the event is set: at which nothing works and nothing waits."""
        url = redis_url(self._settings)
        jobs, attempts = Jobs(url), Attempts(url, lease_s=self._lease_s)  # own connections: other processes fork off
        idle: set[JobId] = set()
        while not ended.wait(max(1.0, self._lease_s / 4)):
            try:
                unfinished = {job.id: job for job in jobs.running()}
                found = {job_id for job_id in unfinished if attempts.is_idle(job_id, QUEUE)}
                for job in map(unfinished.__getitem__, found & idle):  # seen twice: a message may be under way
                    log.warning("lost_job_resumed", id=job.id, kind=job.kind, catalog=job.catalog)
                    send_first_step(self.app, job)
                idle = found - idle
            except JobsUnavailable:
                idle = set()

    def _give_up(self, job: Job, error: str) -> None:
        if self.jobs.get(job.id).state.is_final:  # another delivery of this step ended the job
            return
        log.error("job_failed", id=job.id, kind=job.kind, catalog=job.catalog, error=error)
        self.jobs.fail(job.id, error)
        reindex.clear_staging(self.parts.store, job.id)

    def _guarded(self, name: str, step: Callable[..., None]) -> Callable[..., None]:
        """Make a task of a step; retry it after an unknown error, and if the store or Redis is unavailable."""

        def run(task: Any, job_id: str, *arguments: Any) -> None:
            label = ":".join([name, *map(str, arguments)])
            with structlog.contextvars.bound_contextvars(job=job_id, task=label):
                try:
                    self._attempt(JobId(job_id), label, step, *arguments)
                except UnknownJob:
                    log.exception("task_of_unknown_job")
                except Exception as error:
                    if isinstance(error, Unavailable) and not isinstance(error, JobsUnavailable):
                        log.warning("task_waits", reason=str(error))
                    else:
                        log.exception("task_failed")
                    pause_s = min(2 ** (task.request.retries + 1), _MAX_COUNTDOWN_S)
                    self._wait(JobId(job_id), label, error, pause_s)
                    raise task.retry(exc=error, countdown=pause_s) from error

        return run

    def _attempt(self, job_id: JobId, label: str, step: Callable[..., None], *arguments: Any) -> None:
        """Do a step unless its job has ended or another process does it; fail the job at an error that will stay."""
        job = self.jobs.get(job_id)
        if job.state.is_final:
            reindex.clear_staging(self.parts.store, job.id)  # a kill after the end of the job left files
            return
        begun = self._attempts.begin(job.id, label)
        if begun is None:
            log.info("task_is_at_work_elsewhere")
            return
        lease, n_deaths = begun
        try:
            if n_deaths >= _MAX_ATTEMPTS:
                self._give_up(
                    job,
                    f"{label} was started {n_deaths} times and each time its process ended before it did, often for "
                    "lack of memory: see the worker's log",
                )
                return
            with self._attempts.renewing(job.id, label, lease):
                self._do(job, label, step, *arguments)
        finally:
            self._attempts.release(job.id, label, lease)

    def _do(self, job: Job, label: str, step: Callable[..., None], *arguments: Any) -> None:
        """Do a step; fail the job at an error that another try would meet again, raise the others."""
        try:
            step(job, *arguments)
        except Unavailable:
            raise
        except RetrievalError as error:
            self._give_up(job, str(error))
        except Exception as error:
            known = _known(error, str(job.request.get("manifest_uri")))
            if isinstance(known, RetrievalError):
                self._give_up(job, str(known))
            elif self._attempts.count_error(job.id, label) >= _MAX_ATTEMPTS:
                self._give_up(job, f"{label} failed {_MAX_ATTEMPTS} times, the last time with {known}")
            else:
                raise
        else:
            self._attempts.succeed(job.id, label)

    def _wait(self, job_id: JobId, label: str, error: Exception, pause_s: int) -> None:
        """Show in the job why it waits and until when."""
        if isinstance(error, JobsUnavailable):
            return
        reason = str(error if isinstance(error, Unavailable) else _known(error))
        with contextlib.suppress(JobsUnavailable):  # it has just gone: the log holds the reason
            self._attempts.wait(job_id, label, reason, datetime.now(UTC) + timedelta(seconds=pause_s))


def _known(error: Exception, manifest: str = "the manifest") -> RetrievalError | str:
    """Return the error of the family that another try would meet again, or words for the cause of any other error.

    An error that nobody foresaw is named by its class only: its text may hold what no client should see.
    """
    if isinstance(error, OSError):
        if is_full(error):
            return OutOfSpace(f"disk full: {error}")
        if error.errno is None and not isinstance(error, TimeoutError | ConnectionError):  # pyarrow: damaged content
            return InvalidManifest(f"cannot read {manifest}: {error}")
        return f"a system error: {error}"
    if isinstance(error, MemoryError):
        return "too little memory: use fewer RETRIEVAL_WORKER_PROCESSES or a smaller RETRIEVAL_MAX_BATCH"
    return f"an unexpected {type(error).__name__}: see the worker's log"


def _audit_request(plain: Mapping[str, Any]) -> audit.AuditRequest:
    return audit.AuditRequest(**{**plain, "group_by": tuple(plain["group_by"])})


def run_worker(settings: Settings) -> None:
    """Run a worker in this process until a signal stops it. Raises RetrievalError if something else ends it."""
    check_device(settings)
    telemetry.setup(settings)
    setup_logging.connect(lambda **_: telemetry.setup(settings), weak=False)
    worker = Worker(settings)
    worker.jobs.check()
    worker_ready.connect(lambda **_: log.info("worker_ready", processes=settings.n_worker_processes), weak=False)
    worker_process_init.connect(lambda **_: die_with_parent(), weak=False)
    worker_shutting_down.connect(lambda **_: _end_without_queue(redis_url(settings)), weak=False)
    worker.app.steps["consumer"].add(_resuming(worker))
    # not `worker_main`, which ends as if all were well after an error
    process = worker.app.Worker(
        loglevel=settings.log_level.upper(), without_gossip=True, without_mingle=True, quiet=True
    )
    ended = threading.Event()
    watching = threading.Thread(target=worker.watch, args=(ended,), name="watch", daemon=True)
    watching.start()
    try:
        process.start()
    finally:
        ended.set()
    if process.exitcode and state.should_stop is None:  # Ctrl-C sets both
        raise RetrievalError("the worker ended by an error that it cannot recover from: see its log above")


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


def _resuming(worker: Worker) -> type[StartStopStep]:
    """Build a step for Celery's consumer that resumes jobs at every new connection: a broken one loses messages."""

    class Resume(StartStopStep):
        requires = ("celery.worker.consumer:Tasks",)

        def start(self, consumer: Any) -> None:
            try:
                worker.resume()
            except JobsUnavailable:  # the consumer sees this too, connects again and returns here
                log.exception("resume_failed")

    return Resume


def run_beat(settings: Settings) -> None:
    """Run the scheduler of audits in this process until a signal stops it.

    Run exactly one scheduler, with any number of workers. Raises InvalidSettings if no audit is scheduled.
    """
    if not (settings.audit_every_h and settings.audit_catalog and settings.audit_manifest):
        raise InvalidSettings(
            "nothing is scheduled: set RETRIEVAL_AUDIT_EVERY_H, RETRIEVAL_AUDIT_CATALOG and RETRIEVAL_AUDIT_MANIFEST"
        )
    telemetry.setup(settings)
    settings.state_dir.mkdir(parents=True, exist_ok=True)
    app = make_app(settings)
    app.Beat(schedule=str(settings.state_dir / "beat-schedule"), loglevel=settings.log_level).run()
