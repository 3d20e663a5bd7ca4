"""What becomes of a step that fails: it is tried again, or its job waits for something, or its job fails.

A cause that another try would meet again fails the job at once. A service that is away is waited for without end. An
unknown error, or a process that dies, gets six tries.
"""

import contextlib
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import structlog

from retrieval.edge.jobs.attempts import Attempts
from retrieval.edge.jobs.records import Job, JobId, Jobs
from retrieval.engine.store.calls import is_full
from retrieval.errors import InvalidManifest, JobsUnavailable, OutOfSpace, RetrievalError, Unavailable, UnknownJob

log = structlog.get_logger()

_MAX_COUNTDOWN_S = 64
_MAX_ATTEMPTS = 6  # number of times that a task may kill its worker or fail for an unknown reason before the job fails


class StepGuard:
    """Runs the steps of jobs, and decides about those that fail.

    clear: removes the working files of a job that has ended.
    """

    def __init__(self, jobs: Jobs, attempts: Attempts, *, clear: Callable[[JobId], None]) -> None:
        self._jobs = jobs
        self._attempts = attempts
        self._clear = clear

    def guarded(self, name: str, step: Callable[..., None]) -> Callable[..., None]:
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

    def give_up(self, job: Job, error: str) -> None:
        """Fail a job, unless another delivery of its step ended it."""
        if self._jobs.get(job.id).state.is_final:
            return
        log.error("job_failed", id=job.id, kind=job.kind, catalog=job.catalog, error=error)
        self._jobs.fail(job.id, error)
        self._clear(job.id)

    def _attempt(self, job_id: JobId, label: str, step: Callable[..., None], *arguments: Any) -> None:
        """Do a step unless its job has ended or another process does it; fail the job at an error that will stay."""
        job = self._jobs.get(job_id)
        if job.state.is_final:
            self._clear(job.id)  # a kill after the end of the job left files
            return
        begun = self._attempts.begin(job.id, label)
        if begun is None:
            log.info("task_is_at_work_elsewhere")
            return
        lease, n_deaths = begun
        try:
            if n_deaths >= _MAX_ATTEMPTS:
                self.give_up(
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
            self.give_up(job, str(error))
        except Exception as error:
            known = _known(error, str(job.request.get("manifest_uri")))
            if isinstance(known, RetrievalError):
                self.give_up(job, str(known))
            elif self._attempts.count_error(job.id, label) >= _MAX_ATTEMPTS:
                self.give_up(job, f"{label} failed {_MAX_ATTEMPTS} times, the last time with {known}")
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
