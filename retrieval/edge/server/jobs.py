"""The service of protos/retrieval/v1/jobs.proto, and the job queue that all servicers share."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TypeVar

import structlog

from retrieval.edge.jobs.connection import redis_url
from retrieval.edge.jobs.messages import job_message
from retrieval.edge.jobs.queue import make_app, submit
from retrieval.edge.jobs.records import KEPT, Job, JobId, Jobs, JobState
from retrieval.edge.server.interceptors import Context
from retrieval.edge.server.watch import Watch
from retrieval.edge.settings import Settings
from retrieval.engine.prefixes import resolve_prefix
from retrieval.errors import InvalidInput, UnknownJob
from retrieval.flows.audit import AuditRequest
from retrieval.flows.reindex import ReindexRequest
from retrieval.v1 import jobs_pb2, jobs_pb2_grpc

log = structlog.get_logger()

_DEFAULT_LISTED, _MAX_LISTED = 50, 1000

_THREADS = 8
_LOOK_S = 5.0  # how long the reply about a finished job waits for the server to see its snapshot
_Result = TypeVar("_Result")


class JobQueue:
    """The job queue for an event loop: calls to Redis and Celery run on threads."""

    def __init__(self, settings: Settings) -> None:
        self._jobs = Jobs(redis_url(settings))
        self._app = make_app(settings)
        # not the threads of the store: a store that does not answer must not keep jobs from being read
        self._threads = ThreadPoolExecutor(max_workers=_THREADS, thread_name_prefix="jobs")

    async def submit(self, kind: str, request: ReindexRequest | AuditRequest) -> Job:
        """Store and send a job, or return the running one with the same request."""
        job = await self._on_thread(submit, self._app, self._jobs, kind, request)
        log.info("job_accepted", id=job.id, kind=kind, catalog=request.catalog)
        return job

    async def get(self, job_id: str) -> Job:
        """Return the record of the job with this id, or with the only id that starts with it."""
        return await self._on_thread(self._find, job_id)

    async def _on_thread(self, function: Callable[..., _Result], *arguments: object) -> _Result:
        return await asyncio.get_running_loop().run_in_executor(self._threads, partial(function, *arguments))

    async def newest(self, limit: int, catalog: str) -> list[Job]:
        """Return the records of the newest jobs, or of those of one catalogue, newest first."""
        return await self._on_thread(self._jobs.newest, limit, catalog)

    def _find(self, job_id: str) -> Job:
        try:
            return self._jobs.get(JobId(job_id))
        except UnknownJob:  # not a whole id
            ids = self._jobs.ids_starting(job_id)
            return self._jobs.get(JobId(resolve_prefix(job_id, ids, kind="job", unknown=UnknownJob, hint=KEPT)))


class JobServicer(jobs_pb2_grpc.JobServiceServicer):
    """Reports jobs."""

    def __init__(self, queue: JobQueue, watch: Watch) -> None:
        self._queue = queue
        self._watch = watch

    async def GetJob(self, request: jobs_pb2.GetJobRequest, context: Context) -> jobs_pb2.Job:  # noqa: N802
        """Report the state of a job."""
        job = await self._queue.get(request.job_id)
        if job.state is JobState.SUCCEEDED and job.kind == "reindex":
            await self._watch.look_for(_LOOK_S)  # a client that learns of the new snapshot can search it here at once
        return job_message(job)

    async def ListJobs(  # noqa: N802
        self, request: jobs_pb2.ListJobsRequest, context: Context
    ) -> jobs_pb2.ListJobsResponse:
        """List the newest jobs."""
        limit = request.limit if request.HasField("limit") else _DEFAULT_LISTED
        if not 1 <= limit <= _MAX_LISTED:
            raise InvalidInput(f"limit: expected 1 to {_MAX_LISTED}, found {limit}")
        jobs = await self._queue.newest(limit, request.catalog)
        return jobs_pb2.ListJobsResponse(jobs=[job_message(job) for job in jobs])
