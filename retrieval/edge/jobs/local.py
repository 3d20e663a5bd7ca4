"""A reindex on this machine, with an embedded Valkey and one worker that end with the job.

It needs no server and no Redis, and uses the same queue and worker as any other deployment.
"""

import contextlib
import functools
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

from retrieval.edge.jobs.connection import redis_url
from retrieval.edge.jobs.embedded import die_with_parent, embedded_valkey
from retrieval.edge.jobs.queue import make_app, submit
from retrieval.edge.jobs.records import Job, Jobs
from retrieval.edge.settings import Settings, child_environment
from retrieval.edge.wiring import open_store
from retrieval.errors import RetrievalError, Unavailable
from retrieval.flows.reindex import ReindexRequest, settle_bundle

_POLL_S = 0.3


def reindex_here(settings: Settings, request: ReindexRequest, progress: Callable[[Job], None]) -> Job:
    """Run a reindex to its end and return the job, which has succeeded.

    `progress(job)` is called several times a second.

    Raises InvalidInput before anything starts if a value can never work, Unavailable if the worker ends early, and
    RetrievalError with the job's own message if the job fails.
    """
    request.check()
    settled = settle_bundle(open_store(settings), request)
    own = settings.reading(request.manifest_uri)
    with embedded_valkey(settings.state_dir), _worker(own) as worker:
        jobs = Jobs(redis_url(settings))
        job = submit(make_app(settings), jobs, "reindex", settled)
        while not (job := jobs.get(job.id)).state.is_final:
            progress(job)
            if worker.poll() is not None:
                raise Unavailable(f"the worker ended with exit code {worker.returncode}: see its log above")
            time.sleep(_POLL_S)
    if job.error:
        raise RetrievalError(f"reindex job {job.id} failed: {job.error}")
    return job


@contextlib.contextmanager
def _worker(settings: Settings) -> Iterator["subprocess.Popen[bytes]"]:
    """Run a worker process with these settings while the block runs."""
    process = subprocess.Popen(
        [sys.executable, "-m", "retrieval.edge.cli", "worker"],
        env=child_environment(settings),
        stdout=sys.stderr,  # this command's stdout is for the result
        preexec_fn=functools.partial(die_with_parent, os.getpid()),  # noqa: PLW1509  # calls one C function
    )
    try:
        yield process
    finally:
        process.terminate()
        process.wait()
