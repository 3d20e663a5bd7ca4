"""The record of every job in Redis, and the lock that allows one job of a kind for each catalogue.

A repeated request returns the running job. The flows do the work, `worker.py` distributes it, `attempts.py` counts.
Only this file and `embedded.py` import the Redis client.
"""

import contextlib
import json
import re
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, NewType
from urllib.parse import urlsplit

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from retrieval.contract.canonical import digest_json
from retrieval.edge.jobs.embedded import socket_path
from retrieval.edge.settings import Settings
from retrieval.errors import FailedPrecondition, InvalidSettings, JobsUnavailable, UnknownJob

JobId = NewType("JobId", str)

QUEUE_AWAY = (
    "the job queue cannot be reached; queries are not affected. Start `retrieval worker`, which brings an embedded "
    "one, or set RETRIEVAL_REDIS_URL to a running Redis"
)
# It never quotes the URL: of a URL that cannot be parsed, nobody knows which part is the password.
URL_UNUSABLE = (
    "RETRIEVAL_REDIS_URL: expected redis://[user:password@]host[:port][/number], rediss://... or unix:///path. In a "
    "password write %40 for @, %3A for :, %2F for /, %23 for #, %3F for ?, %5B for [ and %25 for %"
)
_PREFIX = "retrieval"
_KEEP_FINISHED_S = 30 * 24 * 3600
_TIMEOUT_S = 5.0
# Compares and deletes in one step: between two steps another job could take the lock.
_RELEASE = "if redis.call('get', KEYS[1]) == ARGV[1] then return redis.call('del', KEYS[1]) end"


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
    `next_try_at` the time of its next try. `passed_over`: see `contract/manifest.py`.
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


def redis_url(settings: Settings) -> str:
    """Return the URL of the configured Redis, or of the embedded one if none is configured."""
    return settings.redis_url.get_secret_value() or f"unix://{socket_path(settings.state_dir)}"


def redis_client(url: str, *, timeout_s: float = _TIMEOUT_S) -> "redis.Redis":
    """Return a client that does not connect yet. Raises InvalidSettings, without the URL, if it is unusable."""
    if not _is_usable(url):
        raise InvalidSettings(URL_UNUSABLE)
    try:
        client = redis.Redis.from_url(
            url,
            decode_responses=True,
            socket_timeout=timeout_s,
            socket_connect_timeout=timeout_s,
            retry=Retry(NoBackoff(), 1),  # for a stale connection; more would keep callers waiting
        )
        client.connection_pool.make_connection()  # checks the options of the URL; it does not connect
    except (ValueError, TypeError, redis.RedisError):
        raise InvalidSettings(URL_UNUSABLE) from None  # the cause may hold a part of the password
    return client


def answers(url: str) -> bool:
    """Return True if a Redis answers at once."""
    client = redis_client(url, timeout_s=1.0)
    try:
        return bool(client.ping())
    except redis.RedisError:
        return False
    finally:
        client.close()


def _is_usable(url: str) -> bool:
    """Return False for a URL that clients read differently, for instance because its password holds a `/`."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        return False
    if "@" in parts.path + parts.query or parts.fragment:  # the password ends where a client sees no end of it
        return False
    if parts.scheme == "unix":
        return parts.path not in ("", "/")
    path_is_number = parts.path in ("", "/") or re.fullmatch(r"/\d{1,9}", parts.path) is not None
    return parts.scheme in ("redis", "rediss") and bool(parts.hostname) and port != 0 and path_is_number


class Jobs:
    """The records of all jobs.

    Safe for threads and processes. Every method raises JobsUnavailable if Redis does not answer.
    """

    def __init__(self, url: str) -> None:
        """Do not connect yet. Raises InvalidSettings if the URL is invalid."""
        self._redis = redis_client(url)

    def check(self) -> None:
        """Raise InvalidSettings if a Redis answers but refuses this URL; one that does not answer may start later."""
        try:
            self._redis.ping()
        except redis.exceptions.BusyLoadingError:
            return
        except (redis.exceptions.AuthenticationError, redis.exceptions.ResponseError) as error:
            raise InvalidSettings(f"RETRIEVAL_REDIS_URL: the server refuses it: {error}") from error
        except redis.RedisError:
            return

    def start(self, kind: str, catalog: str, request: Mapping[str, Any]) -> Job:
        """Record a new job, or return the running one with the same request.

        Raises FailedPrecondition if another job of this kind runs on the catalogue.
        """
        lock = _lock_key(kind, catalog)
        new = Job(
            id=JobId(uuid.uuid4().hex),
            kind=kind,
            catalog=catalog,
            request=request,
            state=JobState.QUEUED,
            created_at=now(),
        )
        with reachable():
            # the record first: a lock never names a job without a record
            self._redis.set(_key(new.id), _dump(new), ex=_KEEP_FINISHED_S)
            # after a broken connection the client sends this again and finds its own lock
            if self._redis.set(lock, new.id, nx=True) or self._redis.get(lock) == new.id:
                self._redis.persist(_key(new.id))
                return new
            self._redis.delete(_key(new.id))
            running_id = self._redis.get(lock)
        running = self._find(JobId(str(running_id))) if running_id else None
        if running is None or running.state.is_final:  # it has just ended, or its record is lost
            with reachable():
                self._redis.eval(_RELEASE, 1, lock, str(running_id))
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
            raise UnknownJob(f"no job {job_id!r}: finished jobs are kept for 30 days")
        return job

    def _find(self, job_id: JobId) -> Job | None:
        with reachable():
            value = self._redis.get(_key(job_id))
            n_done = self._redis.scard(job_key(job_id, "done"))
            waiting = [json.loads(str(entry)) for entry in self._redis.hvals(job_key(job_id, "waiting"))]
        if value is None:
            return None
        record = json.loads(str(value))
        record["n_done"] = max(int(str(n_done)), record["n_done"])
        record["passed_over"] = tuple(record.get("passed_over", ()))
        job = Job(**{**record, "state": JobState(record["state"])})
        if not waiting or job.state.is_final:
            return job
        first = min(waiting, key=lambda entry: str(entry["at"]))
        return replace(job, waiting_for=first["reason"], next_try_at=first["at"])

    def ids_starting(self, prefix: str) -> list[JobId]:
        """List the ids that start with `start`; none if it has characters other than letters and digits."""
        if not prefix.isalnum():
            return []
        start = _key("")
        with reachable():
            names = [str(name).removeprefix(start) for name in self._redis.scan_iter(f"{start}{prefix}*")]
        return [JobId(name) for name in names if ":" not in name]  # other keys of a job have a suffix

    def all(self, catalog: str = "") -> list[Job]:
        """List all jobs, or those of one catalogue, newest first; finished ones are kept for 30 days."""
        start = _key("")
        with reachable():
            names = [str(name).removeprefix(start) for name in self._redis.scan_iter(f"{start}*", count=1000)]
        found = [self._find(JobId(name)) for name in names if ":" not in name]
        wanted = [job for job in found if job is not None and catalog in ("", job.catalog)]
        return sorted(wanted, key=lambda job: job.created_at, reverse=True)

    def running(self) -> list[Job]:
        """List all jobs that have not ended."""
        with reachable():
            ids = [self._redis.get(lock) for lock in self._redis.scan_iter(f"{_PREFIX}:running:*")]
        found = [self._find(JobId(str(job_id))) for job_id in ids if job_id]
        return [job for job in found if job is not None and not job.state.is_final]

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
        with reachable():
            self._redis.sadd(job_key(job_id, "done"), number)

    def succeed(self, job_id: JobId, result_id: str) -> None:
        """Record the result, and free the catalogue for another job."""
        self._finish(job_id, state=JobState.SUCCEEDED, result_id=result_id, n_done=self.get(job_id).n_total)

    def fail(self, job_id: JobId, error: str) -> None:
        """Record why the job failed, and free the catalogue for another job."""
        self._finish(job_id, state=JobState.FAILED, error=error, n_done=self.get(job_id).n_done)

    def _finish(self, job_id: JobId, **changes: Any) -> None:
        job = self.get(job_id)
        self._change(job_id, **changes, finished_at=now())
        with reachable():  # repeatable: after a kill before this line, the next call frees the catalogue
            self._redis.eval(_RELEASE, 1, _lock_key(job.kind, job.catalog), job_id)
            self._redis.expire(_key(job_id), _KEEP_FINISHED_S)
            self._redis.delete(*(job_key(job_id, part) for part in ("done", "attempts", "waiting")))

    def _change(self, job_id: JobId, **changes: Any) -> None:
        """Replace fields of a job that has not ended."""
        with reachable():

            def replace(transaction: Any) -> None:
                record = json.loads(transaction.get(_key(job_id)) or "{}")
                if not record or JobState(record["state"]).is_final:
                    return
                transaction.multi()
                transaction.set(_key(job_id), json.dumps({**record, **changes}), keepttl=True)

            self._redis.transaction(replace, _key(job_id))


def now() -> str:
    """Return the current time in UTC, ISO 8601."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def _key(job_id: str) -> str:
    return f"{_PREFIX}:job:{job_id}"


def _lock_key(kind: str, catalog: str) -> str:
    return f"{_PREFIX}:running:{kind}:{catalog}"


def job_key(job_id: str, part: str) -> str:
    """Return the key of a part of a job beside its record."""
    return f"{_key(job_id)}:{part}"


def _dump(job: Job) -> str:
    return json.dumps(asdict(job))


@contextlib.contextmanager
def reachable() -> Iterator[None]:
    """Raise JobsUnavailable for every error of Redis in the block."""
    try:
        yield
    except redis.RedisError as error:
        raise JobsUnavailable(QUEUE_AWAY) from error
