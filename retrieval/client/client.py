"""The client of a server: typed stubs for every service; gRPC statuses become errors of `retrieval.errors`."""

import contextlib
import ipaddress
import queue
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

import grpc

from retrieval.client.statuses import error_of
from retrieval.errors import RetrievalError, Unavailable
from retrieval.v1 import (
    audits_pb2_grpc,
    catalogs_pb2_grpc,
    jobs_pb2,
    jobs_pb2_grpc,
    operating_points_pb2_grpc,
    search_pb2_grpc,
)

_READY = grpc.ChannelConnectivity.READY
_MAX_MESSAGE_BYTES = 256 * 1024 * 1024
# The server refuses a reply that the client could not receive: it must know what this channel accepts.
_REPLY_LIMIT = (("retrieval-max-reply-bytes", str(_MAX_MESSAGE_BYTES)),)
_HEALTH_S = 5.0
_CATALOG_HEALTH = "retrieval.v1.SearchService/"  # and the name of the catalogue
_POLL_S = 0.3
_PATIENCE_S = 60.0
_FINAL = (jobs_pb2.JOB_STATE_SUCCEEDED, jobs_pb2.JOB_STATE_FAILED)

_Request = TypeVar("_Request")
_Reply = TypeVar("_Reply")


class Client:
    """The services of one server. Create it with `connect`; safe for threads.

    Each attribute below is the stub of one service: `client.call(client.search.Search, SearchRequest(...))`.
    """

    def __init__(self, channel: grpc.Channel, address: str, *, timeout_s: float) -> None:
        self._channel = channel
        self._address = address
        self._timeout_s = timeout_s
        self.search = search_pb2_grpc.SearchServiceStub(channel)
        self.catalogs = catalogs_pb2_grpc.CatalogServiceStub(channel)
        self.operating_points = operating_points_pb2_grpc.OperatingPointServiceStub(channel)
        self.audits = audits_pb2_grpc.AuditServiceStub(channel)
        self.jobs = jobs_pb2_grpc.JobServiceStub(channel)

    def call(self, method: "grpc.UnaryUnaryMultiCallable[_Request, _Reply]", request: _Request) -> _Reply:
        """Return the reply to a request.

        Raises the error of `retrieval.errors` that the status stands for; Unavailable also if no reply comes in time.
        """
        try:
            return method(request, timeout=self._timeout_s, metadata=_REPLY_LIMIT)
        except grpc.RpcError as error:
            if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
                raise Unavailable(f"no reply from {self._address} within {self._timeout_s:g} s") from error
            raise error_of(error.code(), error.details() or "", retry_after_s=_retry_after_s(error)) from error

    def wait(self, job: jobs_pb2.Job, progress: Callable[[jobs_pb2.Job], None] = lambda _: None) -> jobs_pb2.Job:
        """Wait until the job succeeds and return it. Each time its state was read, `progress` gets the job.

        A server or queue may restart meanwhile. Raises RetrievalError with the job's error if it failed, Unavailable if
        nothing answers for a minute.
        """
        answered = time.monotonic()
        while job.state not in _FINAL:
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

    def check_health(self) -> None:
        """Raise Unavailable unless the server answers and its status is SERVING."""
        if not self.is_serving():
            raise Unavailable(f"the server at {self._address} answers, but does not serve")

    def is_serving(self) -> bool:
        """Return whether the status of the server is SERVING. Raises Unavailable if it does not answer."""
        from grpc_health.v1 import health_pb2, health_pb2_grpc  # few callers need it

        try:
            reply = health_pb2_grpc.HealthStub(self._channel).Check(health_pb2.HealthCheckRequest(), timeout=_HEALTH_S)
        except grpc.RpcError as error:
            raise Unavailable(
                f"no server answers at {self._address}: {error.code().name}: start one with `retrieval serve`"
            ) from error
        return bool(reply.status == health_pb2.HealthCheckResponse.SERVING)

    def catalog_health(self) -> dict[str, bool]:
        """Return by name whether each catalogue that should be served is served; {} from a server that cannot tell.

        Raises Unavailable as `check_health` does.
        """
        from grpc_health.v1 import health_pb2, health_pb2_grpc

        try:
            reply = health_pb2_grpc.HealthStub(self._channel).List(health_pb2.HealthListRequest(), timeout=_HEALTH_S)
        except grpc.RpcError as error:
            if error.code() is grpc.StatusCode.UNIMPLEMENTED:  # a server of an earlier version
                return {}
            raise Unavailable(f"no server answers at {self._address}: {error.code().name}") from error
        return {
            service.removeprefix(_CATALOG_HEALTH): found.status == health_pb2.HealthCheckResponse.SERVING
            for service, found in sorted(reply.statuses.items())
            if service.startswith(_CATALOG_HEALTH)
        }


@contextlib.contextmanager
def connect(address: str, *, timeout_s: float = 60.0, connect_s: float = 5.0) -> Iterator[Client]:
    """Connect to the server at `address`, host:port, for the length of the block.

    timeout_s: for each call. connect_s: how long the server may take to accept the connection. Raises Unavailable if it
    takes longer, and at once if the address refuses; with 0 the first call raises it.
    """
    options = [
        ("grpc.max_receive_message_length", _MAX_MESSAGE_BYTES),
        ("grpc.max_send_message_length", _MAX_MESSAGE_BYTES),
        ("grpc.enable_http_proxy", int(not _is_loopback(address))),  # no proxy can reach this machine's loopback
    ]
    with grpc.insecure_channel(address, options=options) as channel:
        if connect_s > 0 and not _accepted(channel, connect_s):
            raise Unavailable(f"no server answers at {address}: start one with `retrieval serve`")
        yield Client(channel, address, timeout_s=timeout_s)


def _is_loopback(address: str) -> bool:
    host = address.rpartition(":")[0].strip("[]")
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def _accepted(channel: grpc.Channel, wait_s: float) -> bool:
    """Return True once the connection is open; False if it is refused or takes too long."""
    states: queue.SimpleQueue[grpc.ChannelConnectivity] = queue.SimpleQueue()
    channel.subscribe(states.put, try_to_connect=True)
    deadline = time.monotonic() + wait_s
    try:
        while (state := states.get(timeout=max(0.0, deadline - time.monotonic()))) is not _READY:
            if state is grpc.ChannelConnectivity.TRANSIENT_FAILURE:
                return False
    except queue.Empty:
        return False
    finally:
        channel.unsubscribe(states.put)
    return True


def _retry_after_s(error: grpc.RpcError) -> float | None:
    """Return how long the server asks to wait, if it does."""
    if error.code() is not grpc.StatusCode.RESOURCE_EXHAUSTED:
        return None
    from google.rpc import error_details_pb2  # few replies need them
    from grpc_status import rpc_status

    status = rpc_status.from_call(error)
    for detail in status.details if status is not None else ():
        info = error_details_pb2.RetryInfo()
        if detail.Unpack(info):
            return float(info.retry_delay.ToMilliseconds() / 1000)
    return None
