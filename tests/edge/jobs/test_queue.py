"""The queue over a real broker: what is sent, how often, and what happens without a broker."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import celery
import pytest
import redis

from retrieval.edge.jobs.queue import AUDIT, EMBED, PLAN, SCHEDULED_AUDIT, make_app, n_processes, send, submit
from retrieval.edge.jobs.records import Jobs
from retrieval.edge.settings import Settings, load_settings
from retrieval.errors import FailedPrecondition, JobsUnavailable
from retrieval.flows.audit import AuditRequest
from retrieval.flows.reindex import ReindexRequest
from tests.edge.jobs.conftest import Message, waiting

REINDEX = ReindexRequest(catalog="shop", manifest_uri="images", bundle_digest="b" * 32)
# Nothing listens on port 1.
NOWHERE = "redis://:secret@127.0.0.1:1/0"


@pytest.fixture
def settings(state_dir: Path) -> Settings:
    return load_settings(state_dir=state_dir)


@pytest.fixture
def app(settings: Settings) -> celery.Celery:
    return make_app(settings)


def test_a_job_is_recorded_and_its_first_step_is_sent(app: celery.Celery, jobs: Jobs, client: redis.Redis) -> None:
    """The record holds the request as plain JSON, the message only the id of the job."""
    job = submit(app, jobs, "reindex", REINDEX)
    assert jobs.get(job.id) == job
    assert ReindexRequest(**json.loads(json.dumps(job.request))) == REINDEX
    assert waiting(client) == [Message(PLAN, (job.id,))]


def test_an_audit_starts_with_its_own_step(app: celery.Celery, jobs: Jobs, client: redis.Redis) -> None:
    """The kind of a job decides its first step; columns of groups survive the way through JSON."""
    request = AuditRequest(catalog="shop", manifest_uri="images", group_by=("maker", "camera"))
    job = submit(app, jobs, "audit", request)
    assert jobs.get(job.id).request["group_by"] == ["maker", "camera"]
    assert waiting(client) == [Message(AUDIT, (job.id,))]


def test_submitted_twice_is_one_job_whose_step_is_sent_again(
    app: celery.Celery, jobs: Jobs, client: redis.Redis
) -> None:
    """A sender that died after recording the job is made good by the next one."""
    first = jobs.start("reindex", "shop", asdict(REINDEX))  # the sender died here
    assert waiting(client) == []
    assert submit(app, jobs, "reindex", REINDEX) == first
    assert submit(app, jobs, "reindex", REINDEX) == first
    assert waiting(client) == [Message(PLAN, (first.id,))] * 2


def test_another_request_on_a_busy_catalogue_sends_nothing(app: celery.Celery, jobs: Jobs, client: redis.Redis) -> None:
    """The refusal names the running job; a job of another kind may run at the same time."""
    first = submit(app, jobs, "reindex", REINDEX)
    waiting(client)
    other = ReindexRequest(catalog="shop", manifest_uri="others", bundle_digest="b" * 32)
    with pytest.raises(FailedPrecondition, match=first.id):
        submit(app, jobs, "reindex", other)
    assert waiting(client) == []
    audit = submit(app, jobs, "audit", AuditRequest(catalog="shop", manifest_uri="images"))
    assert waiting(client) == [Message(AUDIT, (audit.id,))]


def test_without_a_broker_submit_reports_what_to_start() -> None:
    """The message names the two ways to get a queue; the password is not shown."""
    settings = load_settings(redis_url=NOWHERE)
    with pytest.raises(JobsUnavailable, match=r"retrieval worker.*RETRIEVAL_REDIS_URL") as caught:
        submit(make_app(settings), Jobs(NOWHERE), "reindex", REINDEX)
    assert "secret" not in str(caught.value)


@pytest.mark.slow
def test_a_broker_that_goes_away_before_the_step_is_sent_is_reported() -> None:
    """The record may be there already: sending again, or the next worker, mends that. Celery tries for 6 s."""
    with pytest.raises(JobsUnavailable, match=r"retrieval worker.*RETRIEVAL_REDIS_URL") as caught:
        send(make_app(load_settings(redis_url=NOWHERE)), EMBED, "job", 0)
    assert "secret" not in str(caught.value)


def test_tasks_are_acknowledged_after_they_are_done(app: celery.Celery) -> None:
    """Otherwise a killed worker would lose its task; no worker keeps tasks that another could do."""
    assert app.conf.task_acks_late
    assert app.conf.task_reject_on_worker_lost
    assert app.conf.worker_prefetch_multiplier == 1


@pytest.mark.parametrize(
    ("device", "threads", "worker_processes", "expected", "pool"),
    [("cpu", 3, 0, 3, "prefork"), ("cpu", 3, 2, 2, "prefork"), ("auto", 3, 2, 1, "solo"), ("cuda", 3, 2, 1, "solo")],
)
def test_a_gpu_worker_is_one_process(
    device: str, threads: int, worker_processes: int, expected: int, pool: str
) -> None:
    """A CUDA context does not survive a fork."""
    settings = load_settings(device=device, threads=threads, worker_processes=worker_processes)
    assert n_processes(settings) == expected
    assert make_app(settings).conf.worker_concurrency == expected
    assert make_app(settings).conf.worker_pool == pool


def test_audits_are_scheduled_only_if_an_interval_is_set() -> None:
    """Hours become seconds; the request travels with the task."""
    assert not make_app(load_settings()).conf.beat_schedule
    settings = load_settings(
        audit_every_h=1.5,
        audit_catalog="shop",
        audit_manifest="images",
        audit_group_by="camera",
        audit_family="maker",
    )
    (entry,) = make_app(settings).conf.beat_schedule.values()
    request = {"catalog": "shop", "manifest_uri": "images", "group_by": ["camera"], "family": "maker"}
    assert entry == {"task": SCHEDULED_AUDIT, "schedule": 5400.0, "args": [request]}
