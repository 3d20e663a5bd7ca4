"""The job queue: sets up the Celery application and puts jobs on it.

Names the first task of each kind of job. The tasks themselves are in `tasks.py`.
"""

import json
from dataclasses import asdict
from typing import Any

import celery
from kombu.exceptions import OperationalError

from retrieval.edge.jobs.connection import redis_client, redis_url, unavailable
from retrieval.edge.jobs.records import Job, Jobs
from retrieval.edge.settings import Settings
from retrieval.flows.audit import AuditRequest
from retrieval.flows.reindex import ReindexRequest

PLAN, EMBED, BUILD, AUDIT, SCHEDULED_AUDIT = (
    f"retrieval.{name}" for name in ("plan", "embed_shard", "build", "audit", "scheduled_audit")
)
QUEUE = "retrieval"
_FIRST_STEP = {"reindex": PLAN, "audit": AUDIT}


def make_app(settings: Settings) -> celery.Celery:
    """Build the Celery application for these settings; it connects to the broker at first use."""
    app = celery.Celery("retrieval", set_as_current=False)
    url = redis_url(settings)
    redis_client(url)  # checks it
    app.conf.update(
        broker_url=url.replace("unix://", "redis+socket://", 1),
        result_backend=None,
        task_ignore_result=True,
        task_acks_late=True,
        task_reject_on_worker_lost=True,
        worker_prefetch_multiplier=1,
        worker_hijack_root_logger=False,
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        broker_transport_options={"visibility_timeout": settings.redelivery_s, "socket_timeout": 30},
        task_default_queue=QUEUE,
        worker_concurrency=n_processes(settings),
        worker_pool="solo" if settings.device != "cpu" else "prefork",
    )
    if settings.audit_every_h:
        app.conf.beat_schedule = {
            "audit": {
                "task": SCHEDULED_AUDIT,
                "schedule": settings.audit_every_h * 3600.0,
                "args": [_plain(_scheduled(settings))],  # a worker does not know the settings of the scheduler
            },
        }
    return app


def submit(app: celery.Celery, jobs: Jobs, kind: str, request: ReindexRequest | AuditRequest) -> Job:
    """Record a job and put its first step on the queue, or return the running job with the same request.

    A running job's first step is sent again: this is harmless, and it starts a job whose sender died before sending.
    Raises JobsUnavailable, and FailedPrecondition if another request runs on the catalogue.
    """
    job = jobs.start(kind, request.catalog, _plain(request))
    send_first_step(app, job)
    return job


def send_first_step(app: celery.Celery, job: Job) -> None:
    """Put the first step of a job on the queue; sending it twice is harmless. Raises JobsUnavailable."""
    send(app, _FIRST_STEP[job.kind], job.id)


def send(app: celery.Celery, task: str, *arguments: Any) -> None:
    """Put one task on the queue. Raises JobsUnavailable."""
    try:
        app.send_task(task, args=arguments, retry=False)
    except (OperationalError, OSError) as error:
        raise unavailable(error.__cause__ or error) from error


def _scheduled(settings: Settings) -> AuditRequest:
    return AuditRequest(
        catalog=settings.audit_catalog,
        manifest_uri=settings.audit_manifest,
        group_by=settings.audit_groups,
        family=settings.audit_family,
    )


def _plain(request: ReindexRequest | AuditRequest) -> dict[str, Any]:
    """Return a request as plain JSON."""
    plain: dict[str, Any] = json.loads(json.dumps(asdict(request)))
    return plain


def n_processes(settings: Settings) -> int:
    """Return the number of worker processes."""
    return settings.n_worker_processes
