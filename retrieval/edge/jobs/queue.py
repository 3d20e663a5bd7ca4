"""The job queue: the Celery application and what is put on it.

Decides how Celery is set up and which task begins a job; leaves the tasks to `worker.py`. Hides Celery's client side.
"""

import json
from dataclasses import asdict
from typing import Any

import celery
from kombu.exceptions import OperationalError

from retrieval.edge.jobs.records import Job, Jobs, redis_url
from retrieval.edge.settings import Settings
from retrieval.errors import JobsUnavailable
from retrieval.flows.audit import AuditRequest
from retrieval.flows.reindex import ReindexRequest

PLAN, EMBED, BUILD, AUDIT, SCHEDULED_AUDIT = (
    f"retrieval.{name}" for name in ("plan", "embed_shard", "build", "audit", "scheduled_audit")
)
_FIRST_STEP = {"reindex": PLAN, "audit": AUDIT}


def make_app(settings: Settings) -> celery.Celery:
    """The Celery application for these settings; the broker is reached only when used."""
    app = celery.Celery("retrieval", set_as_current=False)
    url = redis_url(settings)
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
        task_default_queue="retrieval",
        worker_concurrency=n_processes(settings),
        worker_pool="solo" if settings.device != "cpu" else "prefork",
    )
    if settings.audit_every_h:
        app.conf.beat_schedule = {
            "audit": {"task": SCHEDULED_AUDIT, "schedule": settings.audit_every_h * 3600.0},
        }
    return app


def submit(app: celery.Celery, jobs: Jobs, kind: str, request: ReindexRequest | AuditRequest) -> Job:
    """Store a job and put its first step on the queue, or find the running one that was asked for the same.

    The step is sent again for a running job: that is harmless, and mends one whose sender died in between.
    Raises JobsUnavailable, FailedPrecondition.
    """
    job = jobs.start(kind, request.catalog, json.loads(json.dumps(asdict(request))))
    send_first_step(app, job)
    return job


def send_first_step(app: celery.Celery, job: Job) -> None:
    """Put a job's first step on the queue. Sending it twice is harmless. Raises JobsUnavailable."""
    send(app, _FIRST_STEP[job.kind], job.id)


def send(app: celery.Celery, task: str, *arguments: Any) -> None:
    """Put one task on the queue. Raises JobsUnavailable."""
    try:
        app.send_task(task, args=arguments, retry=False)
    except (OperationalError, OSError) as error:
        raise JobsUnavailable(
            "the job queue cannot be reached: start `retrieval worker`, or check RETRIEVAL_REDIS_URL"
        ) from error


def n_processes(settings: Settings) -> int:
    """Processes of a worker; a CUDA context does not survive a fork, so with a GPU tasks run in the one process."""
    return 1 if settings.device != "cpu" else settings.worker_processes or settings.n_threads
