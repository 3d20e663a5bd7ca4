"""The record of every job in Redis: one job of a kind at a time for each catalogue, and which records stay.

A repeated request returns the running job. The flows do the work, `tasks.py` distributes it, `attempts.py` counts.
"""

import json
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, NewType

from retrieval.contract.canonical import digest_json
from retrieval.edge.jobs.connection import check, reachable, redis_client
from retrieval.errors import FailedPrecondition, UnknownJob

JobId = NewType("JobId", str)

_PREFIX = "retrieval"
_BY_TIME = f"{_PREFIX}:jobs"  # the ids of all jobs with the times of their starts
_RUNNING = f"{_PREFIX}:running"  # the id of the job that runs, for each kind and catalogue
_KEEP_FINISHED_S = 30 * 24 * 3600
_KEEP_FINISHED = 10_000
_FORGOTTEN_AT_ONCE = 10  # more than one at each start, so that the list of jobs shrinks to what is kept
_PAGE = 500
_PARTS = ("done", "attempts", "waiting")
KEPT = f"finished jobs are kept for 30 days, and not more than {_KEEP_FINISHED:,} of them"

# Each of these is one step: a process that is killed between two would leave a job that never runs, or a catalogue that
# is never free.
_START = """
local held = redis.call('hget', KEYS[1], ARGV[1])
if held and held ~= ARGV[2] then return held end
redis.call('hset', KEYS[1], ARGV[1], ARGV[2])
redis.call('set', KEYS[2], ARGV[3])
redis.call('zadd', KEYS[3], ARGV[4], ARGV[2])
return ARGV[2]
"""
_RELEASE = "if redis.call('hget', KEYS[1], ARGV[1]) == ARGV[2] then return redis.call('hdel', KEYS[1], ARGV[1]) end"


class JobState(StrEnum):
    """State of a job."""

    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"

    @property
    def is_final(self) -> bool:
        """True if the job has ended."""
        return self in (JobState.SUCCEEDED, JobState.FAILED)


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One job.

    `request` is plain JSON. `n_total` is 0 until the job is planned. `result_id` names the snapshot or the audit of a
    job that succeeded; `error` is set if the job failed. While a task cannot go on, `waiting_for` is the reason and
    `next_try_at` the time of its next try. `passed_over`: see `contract/manifest.py`. `warnings`: about the result.
    """

    id: JobId
    kind: str
    catalog: str
    request: Mapping[str, Any]
    state: JobState
    n_done: int = 0
    n_total: int = 0
    result_id: str = ""
    error: str = ""
    created_at: str
    finished_at: str = ""
    waiting_for: str = ""
    next_try_at: str = ""
    passed_over: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


class Jobs:
    """The records of all jobs.

    Safe for threads and processes. Every method raises JobsUnavailable if Redis does not answer.
    """

    def __init__(self, url: str) -> None:
        """Do not connect yet. Raises InvalidSettings if the URL is invalid."""
        self._redis = redis_client(url)

    def check(self) -> None:
        """Raise InvalidSettings if a Redis answers but refuses this URL; one that does not answer may start later."""
        check(self._redis)

    def start(self, kind: str, catalog: str, request: Mapping[str, Any]) -> Job:
        """Record a new job, or return the running one with the same request.

        Raises FailedPrecondition if another job of this kind runs on the catalogue.
        """
        place = _place(kind, catalog)
        new = Job(
            id=JobId(uuid.uuid4().hex),
            kind=kind,
            catalog=catalog,
            request=request,
            state=JobState.QUEUED,
            created_at=now(),
        )
        with reachable():
            keys = (_RUNNING, _key(new.id), _BY_TIME)
            # after a broken connection the client sends this again, and it finds its own job
            running_id = self._redis.eval(_START, 3, *keys, place, new.id, _dump(new), time.time())
        if running_id == new.id:
            self._forget_old()
            return new
        running = self._find(JobId(str(running_id)))
        if running is None or running.state.is_final:  # its record is lost
            with reachable():
                self._redis.eval(_RELEASE, 1, _RUNNING, place, str(running_id))
            return self.start(kind, catalog, request)
        if digest_json(running.request) == digest_json(request):
            return running
        raise FailedPrecondition(
            f"catalogue {catalog!r}: {kind} job {running.id} with other settings is running: wait for it to end"
            + (f". It waits, next try at {running.next_try_at}: {running.waiting_for}" if running.waiting_for else "")
        )

    def get(self, job_id: JobId) -> Job:
        """Return the job with this id. Raises UnknownJob."""
        job = self._find(job_id)
        if job is None:
            raise UnknownJob(f"no job {job_id!r}: {KEPT}")
        return job

    def ids_starting(self, prefix: str) -> list[JobId]:
        """List the ids that start with `prefix`; none for an empty one."""
        with reachable():
            ids = [str(job_id) for job_id in self._redis.zrange(_BY_TIME, 0, -1)] if prefix else []
        return [JobId(job_id) for job_id in ids if job_id.startswith(prefix)]

    def newest(self, limit: int, catalog: str = "") -> list[Job]:
        """List the newest jobs, or those of one catalogue, newest first: at most `limit` of those that are kept."""
        found: list[JobId] = []
        start = 0
        while len(found) < limit:
            with reachable():
                ids = [str(job_id) for job_id in self._redis.zrevrange(_BY_TIME, start, start + _PAGE - 1)]
                records = self._redis.mget([_key(job_id) for job_id in ids]) if ids else []
            for job_id, record in zip(ids, records, strict=True):
                if record is not None and catalog in ("", json.loads(str(record))["catalog"]):
                    found.append(JobId(job_id))
            if len(ids) < _PAGE:
                break
            start += _PAGE
        return self._find_all(found[:limit])

    def running(self) -> list[Job]:
        """List all jobs that have not ended."""
        with reachable():
            ids = [JobId(str(job_id)) for job_id in self._redis.hvals(_RUNNING)]
        return [job for job in self._find_all(ids) if not job.state.is_final]

    def mark_running(self, job_id: JobId, *, n_total: int) -> None:
        """Record that the job is planned and has this many shards."""
        self._change(job_id, state=JobState.RUNNING, n_total=n_total)

    def mark_progress(self, job_id: JobId, n_done: int, n_total: int) -> None:
        """Record the progress of a job that is one task."""
        self._change(job_id, state=JobState.RUNNING, n_done=n_done, n_total=n_total)

    def mark_passed_over(self, job_id: JobId, passed_over: Sequence[str]) -> None:
        """Record what the manifest holds and is no item."""
        if passed_over:
            self._change(job_id, passed_over=list(passed_over))

    def mark_done(self, job_id: JobId, number: int) -> None:
        """Record that a shard is done; recorded twice, it counts once."""
        with reachable(), self._redis.pipeline() as pipeline:
            pipeline.sadd(job_key(job_id, "done"), number)
            pipeline.expire(job_key(job_id, "done"), _KEEP_FINISHED_S)  # the job may have ended meanwhile
            pipeline.execute()

    def succeed(self, job_id: JobId, result_id: str, warnings: Sequence[str] = ()) -> None:
        """Record the result with warnings about it, and free the catalogue for another job."""
        n_done = self.get(job_id).n_total
        self._finish(job_id, state=JobState.SUCCEEDED, result_id=result_id, n_done=n_done, warnings=list(warnings))

    def fail(self, job_id: JobId, error: str) -> None:
        """Record why the job failed, and free the catalogue for another job."""
        self._finish(job_id, state=JobState.FAILED, error=error, n_done=self.get(job_id).n_done)

    def _finish(self, job_id: JobId, **changes: Any) -> None:
        self._change(job_id, **changes, finished_at=now())

    def _change(self, job_id: JobId, **changes: Any) -> None:
        """Replace fields of a job that has not ended; if this ends it, free its catalogue in the same step."""
        with reachable():

            def replace(transaction: Any) -> None:
                record = json.loads(transaction.get(_key(job_id)) or "{}")
                if not record or JobState(record["state"]).is_final:
                    return
                record |= changes
                transaction.multi()
                if JobState(record["state"]).is_final:
                    transaction.set(_key(job_id), json.dumps(record), ex=_KEEP_FINISHED_S)
                    transaction.eval(_RELEASE, 1, _RUNNING, _place(record["kind"], record["catalog"]), job_id)
                    transaction.delete(*(job_key(job_id, part) for part in _PARTS))
                else:
                    transaction.set(_key(job_id), json.dumps(record))

            self._redis.transaction(replace, _key(job_id))

    def _forget_old(self) -> None:
        """Remove the oldest jobs from the list if their records have expired or if there are too many."""
        with reachable():
            excess = self._redis.zcard(_BY_TIME) - _KEEP_FINISHED
            ids = [JobId(str(job_id)) for job_id in self._redis.zrange(_BY_TIME, 0, _FORGOTTEN_AT_ONCE - 1)]
        known = {job.id: job for job in self._find_all(ids)}
        for number, job_id in enumerate(ids):
            if job_id not in known or (number < excess and known[job_id].state.is_final):
                with reachable(), self._redis.pipeline() as pipeline:
                    pipeline.zrem(_BY_TIME, job_id)
                    pipeline.delete(_key(job_id))
                    pipeline.execute()

    def _find(self, job_id: JobId) -> Job | None:
        return next(iter(self._find_all([job_id])), None)

    def _find_all(self, ids: Sequence[JobId]) -> list[Job]:
        """Return the jobs with these ids that have a record, read in one request."""
        with reachable(), self._redis.pipeline(transaction=False) as pipeline:
            for job_id in ids:
                pipeline.get(_key(job_id))
                pipeline.scard(job_key(job_id, "done"))
                pipeline.hvals(job_key(job_id, "waiting"))
            values = pipeline.execute()
        parts = zip(values[::3], values[1::3], values[2::3], strict=True)
        return [_job(record, int(n_done), waiting) for record, n_done, waiting in parts if record is not None]


def now() -> str:
    """Return the current time in UTC, ISO 8601."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def job_key(job_id: JobId, part: str) -> str:
    """Return the key of a part of a job beside its record."""
    return f"{_key(job_id)}:{part}"


def _key(job_id: str) -> str:
    return f"{_PREFIX}:job:{job_id}"


def _place(kind: str, catalog: str) -> str:
    return f"{kind}:{catalog}"


def _dump(job: Job) -> str:
    return json.dumps(asdict(job))


def _job(record: str, n_done: int, waiting: Sequence[str]) -> Job:
    """Build a job from its record, the number of its shards that are done, and what its tasks wait for."""
    fields = json.loads(record)
    fields["n_done"] = max(n_done, fields["n_done"])
    for name in ("passed_over", "warnings"):
        fields[name] = tuple(fields.get(name, ()))
    job = Job(**{**fields, "state": JobState(fields["state"])})
    if not waiting or job.state.is_final:
        return job
    first = min((json.loads(entry) for entry in waiting), key=lambda entry: str(entry["at"]))
    return replace(job, waiting_for=first["reason"], next_try_at=first["at"])
