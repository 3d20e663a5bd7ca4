"""The worker: the steps of each job as Celery tasks.

A task is acknowledged after it is done, so it may be delivered twice; it then finds its earlier work in the store. The
task that embeds the last shard starts the build. A worker that starts, or connects to its queue again, resumes every
unfinished job.
"""

from collections.abc import Callable
from typing import Any

import structlog
from celery.bootsteps import StartStopStep
from celery.signals import setup_logging, worker_process_init
from celery.worker import state

from retrieval.contract.sources import check_source
from retrieval.edge import telemetry
from retrieval.edge.jobs.embedded import die_with_parent
from retrieval.edge.jobs.queue import (
    AUDIT,
    BUILD,
    EMBED,
    PLAN,
    SCHEDULED_AUDIT,
    make_app,
    n_processes,
    send,
    send_first_step,
    submit,
)
from retrieval.edge.jobs.records import Job, JobId, Jobs, now, redis_url
from retrieval.edge.settings import Settings
from retrieval.edge.wiring import OfflineParts, check_device, offline_parts
from retrieval.errors import InvalidSettings, JobsUnavailable, RetrievalError, Unavailable, UnknownJob
from retrieval.flows import audit, reindex
from retrieval.report.audit_page import render_report

log = structlog.get_logger()

_MAX_COUNTDOWN_S = 64
_MAX_ATTEMPTS = 6  # number of times that a task may kill its worker or fail for an unknown reason before the job fails


class Worker:
    """The tasks of one Celery application. Each process builds its parts at first use, because they survive no fork."""

    def __init__(self, settings: Settings) -> None:
        self.app = make_app(settings)
        self._settings = settings
        self._parts: OfflineParts | None = None
        self.jobs = Jobs(redis_url(settings))
        for name, step in ((PLAN, self.plan), (EMBED, self.embed), (BUILD, self.build), (AUDIT, self.audit)):
            # no limit here: with Celery's default of 3 a job would never end; `_attempt` counts
            self.app.task(name=name, bind=True, shared=False, max_retries=None)(self._guarded(name, step))

        @self.app.task(name=SCHEDULED_AUDIT, shared=False)
        def scheduled_audit() -> None:
            self.start_scheduled_audit()

    @property
    def parts(self) -> OfflineParts:
        """Store, encoders and threads of this process, built at first use."""
        if self._parts is None:
            self._parts = offline_parts(self._settings, processes=n_processes(self._settings))
        return self._parts

    def plan(self, job: Job) -> None:
        """Split the manifest into shards and send a task for each shard that is missing."""
        check_source(str(job.request["manifest_uri"]), self._settings.job_limits.roots)
        planned = reindex.plan(self.parts.store, job.id, reindex.ReindexRequest(**job.request))
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
        planned = _planned(reindex.load_plan(store, job.id), job)
        encoder = self.parts.encoder(planned.request.bundle_digest)
        reindex.embed_planned_shard(
            store, job.id, number, encoder=encoder, limits=self._settings.job_limits, pool=self.parts.pool
        )
        self.jobs.mark_done(job.id, number)
        if not reindex.missing_shards(store, job.id, planned):
            send(self.app, BUILD, job.id)

    def build(self, job: Job) -> None:
        """Build the snapshot, validate it and make it live."""
        store = self.parts.store
        planned = _planned(reindex.load_plan(store, job.id), job)
        snapshot = reindex.build_and_publish(store, job.id, planned, created_at=now(), device=self.parts.index_device)
        self.jobs.succeed(job.id, snapshot)
        reindex.clear_staging(store, job.id)
        log.info("snapshot_published", id=snapshot, catalog=job.catalog, items=planned.n_items)

    def audit(self, job: Job) -> None:
        """Run an audit and store its report."""
        request = audit.AuditRequest(**{**job.request, "group_by": tuple(job.request["group_by"])})
        check_source(request.manifest_uri, self._settings.job_limits.roots)
        report = audit.run_audit(
            self.parts.store,
            request,
            audit_id=job.id,
            created_at=job.created_at,
            encoder_of=self.parts.encoder,
            image_limits=self._settings.job_limits,
            limits=audit.AuditLimits(),
            pool=self.parts.pool,
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

    def start_scheduled_audit(self) -> None:
        """Start the audit of the settings unless the last one still runs."""
        request = audit.AuditRequest(
            catalog=self._settings.audit_catalog,
            manifest_uri=self._settings.audit_manifest,
            group_by=self._settings.audit_groups,
        )
        submit(self.app, self.jobs, "audit", request)

    def resume(self) -> None:
        """Send the first step of every unfinished job again."""
        for job in self.jobs.running():
            log.info("job_resumed", id=job.id, kind=job.kind, catalog=job.catalog)
            send_first_step(self.app, job)

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
                    log.exception("task_failed")
                    countdown = min(2 ** (task.request.retries + 1), _MAX_COUNTDOWN_S)
                    raise task.retry(exc=error, countdown=countdown) from error

        return run

    def _attempt(self, job_id: JobId, label: str, step: Callable[..., None], *arguments: Any) -> None:
        """Do a step unless its job has ended; fail the job at a known error or after too many attempts."""
        job = self.jobs.get(job_id)
        if job.state.is_final:
            reindex.clear_staging(self.parts.store, job.id)  # a kill after the end of the job left files
            return
        if self.jobs.begin_attempt(job.id, label) > _MAX_ATTEMPTS:
            self._give_up(job, f"{label} was started {_MAX_ATTEMPTS} times and never finished: see the worker's log")
            return
        try:
            step(job, *arguments)
        except Unavailable:
            raise
        except RetrievalError as error:
            self._give_up(job, str(error))
            return
        self.jobs.end_attempt(job.id, label)


def _planned(found: "reindex.Plan | None", job: Job) -> reindex.Plan:
    if found is None:
        raise Unavailable(f"job {job.id} has no plan yet")
    return found


def run_worker(settings: Settings) -> None:
    """Run a worker in this process until a signal stops it. Raises RetrievalError if something else ends it."""
    check_device(settings)
    telemetry.setup(settings)
    setup_logging.connect(lambda **_: telemetry.setup(settings), weak=False)
    worker = Worker(settings)
    worker_process_init.connect(lambda **_: die_with_parent(), weak=False)
    worker.app.steps["consumer"].add(_resuming(worker))
    # not `worker_main`, which ends as if all were well after an error
    process = worker.app.Worker(loglevel=settings.log_level.upper(), without_gossip=True, without_mingle=True)
    process.start()
    if process.exitcode and state.should_stop is None:  # Ctrl-C sets both
        raise RetrievalError("the worker ended by an error that it cannot recover from: see its log above")


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
    app = Worker(settings).app
    app.Beat(schedule=str(settings.state_dir / "beat-schedule"), loglevel=settings.log_level).run()
