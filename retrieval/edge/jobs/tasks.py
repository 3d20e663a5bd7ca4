"""The tasks: the steps of each kind of job, as functions that Celery calls.

A task is acknowledged after it is done, so it may be delivered twice: the second one finds that the first still works,
or finds its work in the store. The task that embeds the last shard starts the build. `failures.py` decides what becomes
of a step that fails, `worker.py` runs the process.
"""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import structlog

from retrieval.contract.sources import check_source
from retrieval.edge.jobs.attempts import Attempts, lease_length
from retrieval.edge.jobs.connection import redis_url
from retrieval.edge.jobs.failures import StepGuard
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
from retrieval.edge.jobs.records import Job, JobId, Jobs, now
from retrieval.edge.label_warning import label_warning
from retrieval.edge.settings import Settings
from retrieval.edge.wiring import OfflineParts, offline_parts
from retrieval.engine.snapshot import SnapshotManifest
from retrieval.errors import FailedPrecondition, RetrievalError
from retrieval.flows import audit, prune, reindex
from retrieval.report.audit_page import render_report

log = structlog.get_logger()


class Tasks:
    """The tasks of one Celery application. Each process builds its parts at first use, because they survive no fork."""

    def __init__(self, settings: Settings) -> None:
        self.app = make_app(settings)
        self._settings = settings
        self._parts: OfflineParts | None = None
        url = redis_url(settings)
        self.jobs = Jobs(url)
        self.guard = StepGuard(self.jobs, Attempts(url, lease_s=lease_length(settings)), clear=self._clear)
        for name, step in ((PLAN, self.plan), (EMBED, self.embed), (BUILD, self.build), (AUDIT, self.audit)):
            # no limit here: with Celery's default of 3 a job would never end; the guard counts
            self.app.task(name=name, bind=True, shared=False, max_retries=None)(self.guard.guarded(name, step))

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
        self.jobs.succeed(job.id, snapshot, _warnings(store.snapshot_manifest(job.catalog, snapshot)))
        self._clear(job.id)
        log.info("snapshot_published", id=snapshot, catalog=job.catalog, items=planned.n_items)
        self._prune(job.catalog)

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

    def _clear(self, job_id: JobId) -> None:
        """Remove the working files of a job that has ended."""
        reindex.clear_staging(self.parts.store, job_id)

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


def _warnings(manifest: SnapshotManifest) -> list[str]:
    """Return what somebody should look at in a snapshot that was published."""
    found = manifest.labels
    return [label_warning(found.n_far, found.far_items)] if found is not None and found.n_far else []


def _audit_request(plain: Mapping[str, Any]) -> audit.AuditRequest:
    return audit.AuditRequest(**{**plain, "group_by": tuple(plain["group_by"])})
