"""Who works at each task of a job, how often the task died or failed, and what it waits for; all of it in Redis.

A process takes a lease on its task and renews it while it works. So a task that is delivered twice runs once, and an
attempt counts as a death only if its process ended without giving the lease back.
"""

import contextlib
import json
import os
import socket
import threading
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from retrieval.edge.jobs.connection import reachable, redis_client
from retrieval.edge.jobs.records import JobId, job_key
from retrieval.edge.settings import Settings
from retrieval.errors import JobsUnavailable

_LEASE_S = 60  # at most: how long a task is taken to be at work after the last sign of life of its process
_KEEP_S = 30 * 24 * 3600
_RENEWALS = 4  # in the length of a lease: two lost ones do no harm
_LATE_S = 10.0  # a task whose time has come may wait so long for a free process before it counts as lost

# -1 if another process holds the lease; else the number of attempts that did not give it back, this one included.
_BEGIN = """
local held = redis.call('get', KEYS[1])
if held and held ~= ARGV[1] and held ~= ARGV[2] then return -1 end
redis.call('set', KEYS[1], ARGV[1], 'px', ARGV[3])
redis.call('set', KEYS[2], 1, 'px', ARGV[3])
redis.call('hdel', KEYS[3], ARGV[4])
local n = redis.call('hincrby', KEYS[4], ARGV[4], 1)
redis.call('expire', KEYS[4], ARGV[5])
return n
"""
_RENEW = """
local held = redis.call('get', KEYS[1])
if held and held ~= ARGV[1] then return 0 end
redis.call('set', KEYS[1], ARGV[1], 'px', ARGV[2])
redis.call('set', KEYS[2], 1, 'px', ARGV[2])
return 1
"""
_RELEASE = """
if redis.call('get', KEYS[1]) == ARGV[1] then redis.call('del', KEYS[1]) end
if redis.call('hexists', KEYS[2], ARGV[2]) == 1 then redis.call('hincrby', KEYS[2], ARGV[2], -1) end
"""


def lease_length(settings: Settings) -> float:
    """Return the length of a lease in seconds: it ends before the queue delivers its task again."""
    return min(settings.redelivery_s, _LEASE_S)


class Attempts:
    """The attempts at the tasks of all jobs.

    Safe for threads and processes. Every method raises JobsUnavailable if Redis does not answer.
    """

    def __init__(self, url: str, *, lease_s: float) -> None:
        self._redis = redis_client(url)
        self._lease_s = lease_s

    def begin(self, job_id: JobId, task: str) -> tuple[str, int] | None:
        """Take the lease of a task; None if a process that lives holds it.

        Returns the name of the lease and the number of attempts that died since the last success.
        """
        with reachable():
            holder = self._redis.get(_lease_key(job_id, task))
            dead = str(holder) if holder and _is_dead(str(holder)) else ""
            lease = f"{_this_process()}|{uuid.uuid4().hex}"
            keys = (_lease_key(job_id, task), _alive_key(job_id), job_key(job_id, "waiting"), _counts_key(job_id))
            found = self._redis.eval(_BEGIN, 4, *keys, lease, dead, self._lease_ms, task, _KEEP_S)
        begun = int(str(found))
        return None if begun < 0 else (lease, begun - 1)

    @contextlib.contextmanager
    def renewing(self, job_id: JobId, task: str, lease: str) -> Iterator[None]:
        """Renew the lease while the block runs, from a thread."""
        ended = threading.Event()

        def renew() -> None:
            while not ended.wait(self._lease_s / _RENEWALS):
                with contextlib.suppress(JobsUnavailable), reachable():  # it may be back before the lease ends
                    keys = (_lease_key(job_id, task), _alive_key(job_id))
                    self._redis.eval(_RENEW, 2, *keys, lease, self._lease_ms)

        thread = threading.Thread(target=renew, name="lease", daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()

    def release(self, job_id: JobId, task: str, lease: str) -> None:
        """Give the lease back; the attempt does not count as a death."""
        with reachable():
            self._redis.eval(_RELEASE, 2, _lease_key(job_id, task), _counts_key(job_id), lease, task)

    def succeed(self, job_id: JobId, task: str) -> None:
        """Forget deaths and errors of a task that succeeded."""
        with reachable():
            self._redis.hdel(_counts_key(job_id), task, f"{task} errors")

    def count_error(self, job_id: JobId, task: str) -> int:
        """Count an error that has no known cause, and return the number of them since the last success."""
        with reachable():
            n_errors = self._redis.hincrby(_counts_key(job_id), f"{task} errors", 1)
            self._redis.expire(_counts_key(job_id), _KEEP_S)
            return int(str(n_errors))

    def wait(self, job_id: JobId, task: str, reason: str, next_try_at: datetime) -> None:
        """Record what a task waits for and when it is tried again; the job shows it until then."""
        value = json.dumps({"reason": reason, "at": next_try_at.isoformat(timespec="milliseconds")})
        with reachable():
            self._redis.hset(job_key(job_id, "waiting"), task, value)
            self._redis.expire(job_key(job_id, "waiting"), _KEEP_S)

    def is_idle(self, job_id: JobId, queue: str) -> bool:
        """Return True if nothing works at the job or is about to: no lease, no task that waits, an empty queue."""
        with reachable():
            if self._redis.llen(queue) or self._redis.exists(_alive_key(job_id)):
                return False
            waiting = [json.loads(str(value)) for value in self._redis.hvals(job_key(job_id, "waiting"))]
        ages = [(datetime.now(UTC) - datetime.fromisoformat(entry["at"])).total_seconds() for entry in waiting]
        return all(age > _LATE_S for age in ages)

    @property
    def _lease_ms(self) -> int:
        return int(self._lease_s * 1000)


def _this_process() -> str:
    """Return a name of this process that no other one has, also on other machines and in other containers."""
    pid = os.getpid()
    return f"{_machine()}|{pid}|{_started(pid)}"


def _is_dead(lease: str) -> bool:
    """Return True if the process that took a lease ran on this machine and has ended."""
    machine, _, process = lease.rpartition("|")[0].partition("|")
    pid, _, started = process.partition("|")
    return machine == _machine() and started != "" and _started(int(pid)) != started


def _machine() -> str:
    """Return the name of the machine and of its space of process ids; only equal ones can be compared."""
    with contextlib.suppress(OSError):
        return f"{socket.gethostname()}/{Path('/proc/self/ns/pid').readlink()}"
    return f"{socket.gethostname()}/{uuid.getnode()}"


def _started(pid: int) -> str:
    """Return when a process started, "" if it has ended or this system does not tell."""
    try:
        state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (OSError, ValueError):
        return ""
    return "" if state in "ZX" else fields[18]


def _lease_key(job_id: JobId, task: str) -> str:
    return job_key(job_id, f"lease:{task}")


def _alive_key(job_id: JobId) -> str:
    return job_key(job_id, "alive")


def _counts_key(job_id: JobId) -> str:
    return job_key(job_id, "attempts")
