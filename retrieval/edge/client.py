"""The command line's gRPC client: calls, with statuses turned back into the errors of the family."""

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any

import grpc

from retrieval.edge.statuses import error_of
from retrieval.errors import RetrievalError, Unavailable
from retrieval.v1 import (
    audits_pb2_grpc,
    catalogs_pb2_grpc,
    jobs_pb2,
    jobs_pb2_grpc,
    operating_points_pb2_grpc,
    search_pb2_grpc,
)

_MAX_MESSAGE_BYTES = 256 * 1024 * 1024
_POLL_S = 0.3
_PATIENCE_S = 60.0
FINAL = (jobs_pb2.JOB_STATE_SUCCEEDED, jobs_pb2.JOB_STATE_FAILED)


class Client:
    """Stubs of every service at one address; use inside `connected`."""

    def __init__(self, channel: grpc.Channel, *, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self.search = search_pb2_grpc.SearchServiceStub(channel)
        self.catalogs = catalogs_pb2_grpc.CatalogServiceStub(channel)
        self.operating_points = operating_points_pb2_grpc.OperatingPointServiceStub(channel)
        self.audits = audits_pb2_grpc.AuditServiceStub(channel)
        self.jobs = jobs_pb2_grpc.JobServiceStub(channel)

    def call(self, method: Callable[..., Any], request: Any) -> Any:
        """The reply to a request. Raises the error of the family that the status stands for."""
        try:
            return method(request, timeout=self._timeout_s)
        except grpc.RpcError as error:
            raise error_of(error.code(), error.details() or "") from error

    def wait(self, job: jobs_pb2.Job, progress: Callable[[jobs_pb2.Job], None]) -> jobs_pb2.Job:
        """The job once it ended well; a server or queue that restarts meanwhile is waited for.

        Raises RetrievalError with the job's own error where it failed, Unavailable where nobody answers for a minute.
        """
        answered = time.monotonic()
        while job.state not in FINAL:
            time.sleep(_POLL_S)
            try:
                job = self.call(self.jobs.GetJob, jobs_pb2.GetJobRequest(job_id=job.id))
            except Unavailable:
                if time.monotonic() - answered > _PATIENCE_S:
                    raise
                continue
            answered = time.monotonic()
            progress(job)
        if job.state == jobs_pb2.JOB_STATE_FAILED:
            raise RetrievalError(f"{job.kind} job {job.id} failed: {job.error}")
        return job


@contextlib.contextmanager
def connected(address: str, *, timeout_s: float = 60.0) -> Iterator[Client]:
    """A client of the server at `address`. Raises Unavailable where none answers."""
    options = [
        ("grpc.max_receive_message_length", _MAX_MESSAGE_BYTES),
        ("grpc.max_send_message_length", _MAX_MESSAGE_BYTES),
    ]
    with grpc.insecure_channel(address, options=options) as channel:
        try:
            grpc.channel_ready_future(channel).result(timeout=5.0)
        except grpc.FutureTimeoutError as error:
            raise Unavailable(f"no server answers at {address}: start one with `retrieval serve`") from error
        yield Client(channel, timeout_s=timeout_s)
