"""The client against a real gRPC server on a free port, with servicers of a few lines."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from retrieval.client import Client, connect
from retrieval.errors import (
    CorruptArtifact,
    FailedPrecondition,
    InvalidInput,
    NotFound,
    Overloaded,
    RetrievalError,
    Unavailable,
)
from retrieval.v1 import catalogs_pb2, catalogs_pb2_grpc, jobs_pb2, jobs_pb2_grpc

QUEUED = jobs_pb2.Job(id="job-1", kind="reindex", catalog="shoes", state=jobs_pb2.JOB_STATE_QUEUED)


class Jobs(jobs_pb2_grpc.JobServiceServicer):
    """Reports a job whose state moves on with each look; `answers` are jobs, or statuses to fail with."""

    def __init__(self, *answers: jobs_pb2.Job | grpc.StatusCode) -> None:
        self.answers = list(answers)
        self.asked: list[str] = []

    def GetJob(self, request: jobs_pb2.GetJobRequest, context: Any) -> jobs_pb2.Job:  # noqa: N802
        self.asked.append(request.job_id)
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, grpc.StatusCode):
            context.abort(answer, "the queue is away")
        return answer


class Catalogs(catalogs_pb2_grpc.CatalogServiceServicer):
    """Fails each call with one status, or answers late."""

    def __init__(self, status: grpc.StatusCode = grpc.StatusCode.OK, *, delay_s: float = 0) -> None:
        self._status, self._delay_s = status, delay_s

    def ListSnapshots(self, request: catalogs_pb2.ListSnapshotsRequest, context: Any) -> Any:  # noqa: N802
        time.sleep(self._delay_s)
        if self._status is not grpc.StatusCode.OK:
            context.abort(self._status, f"catalogue {request.catalog}: what is wrong")
        return catalogs_pb2.ListSnapshotsResponse(snapshots=[catalogs_pb2.Snapshot(id="s1", catalog=request.catalog)])


def job(state: int, **fields: Any) -> jobs_pb2.Job:
    """The job of these tests in another state."""
    changed = jobs_pb2.Job()
    changed.CopyFrom(QUEUED)
    changed.MergeFrom(jobs_pb2.Job(state=state, **fields))  # type: ignore[arg-type]  # an enum's number
    return changed


SUCCEEDED = job(jobs_pb2.JOB_STATE_SUCCEEDED, n_done=4, n_total=4, result_id="snapshot-7")


@contextlib.contextmanager
def serving(*servicers: object, port: int = 0) -> Iterator[int]:
    """Run a server with these servicers; yields its port."""
    with ThreadPoolExecutor(4) as pool:
        server = grpc.server(pool, options=[("grpc.so_reuseport", 0)])
        for servicer in servicers:
            if isinstance(servicer, Jobs):
                jobs_pb2_grpc.add_JobServiceServicer_to_server(servicer, server)
            elif isinstance(servicer, Catalogs):
                catalogs_pb2_grpc.add_CatalogServiceServicer_to_server(servicer, server)
            else:
                health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
        taken = server.add_insecure_port(f"127.0.0.1:{port}")
        server.start()
        try:
            yield taken
        finally:
            server.stop(None).wait()


@contextlib.contextmanager
def client_of(*servicers: object, **options: float) -> Iterator[Client]:
    with serving(*servicers) as port, connect(f"127.0.0.1:{port}", **options) as client:
        yield client


def snapshots(client: Client) -> catalogs_pb2.ListSnapshotsResponse:
    return client.call(client.catalogs.ListSnapshots, catalogs_pb2.ListSnapshotsRequest(catalog="shoes"))


def test_a_call_returns_the_reply() -> None:
    with client_of(Catalogs()) as client:
        assert [snapshot.catalog for snapshot in snapshots(client).snapshots] == ["shoes"]


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (grpc.StatusCode.INVALID_ARGUMENT, InvalidInput),
        (grpc.StatusCode.NOT_FOUND, NotFound),
        (grpc.StatusCode.FAILED_PRECONDITION, FailedPrecondition),
        (grpc.StatusCode.DATA_LOSS, CorruptArtifact),
        (grpc.StatusCode.UNAVAILABLE, Unavailable),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, Overloaded),
    ],
)
def test_a_status_becomes_its_error(status: grpc.StatusCode, error: type[RetrievalError]) -> None:
    """The caller gets the class and the server's text, and nothing of gRPC."""
    with client_of(Catalogs(status)) as client, pytest.raises(error, match=r"^catalogue shoes: what is wrong$"):
        snapshots(client)


def test_other_statuses_are_named() -> None:
    with client_of(Catalogs(grpc.StatusCode.INTERNAL)) as client, pytest.raises(RetrievalError, match=r"^INTERNAL: "):
        snapshots(client)


@pytest.mark.slow
def test_loopback_is_never_sent_through_a_proxy(monkeypatch: pytest.MonkeyPatch, closed_address: str) -> None:
    """No proxy could reach it."""
    monkeypatch.delenv("no_proxy", raising=False)
    for name in ("http_proxy", "grpc_proxy"):
        monkeypatch.setenv(name, f"http://{closed_address}")
    with serving(Catalogs()) as port:
        for host in ("127.0.0.1", "localhost"):
            with connect(f"{host}:{port}") as client:
                assert len(snapshots(client).snapshots) == 1


@pytest.mark.slow
def test_a_call_ends_at_its_timeout() -> None:
    """As if no server answered: the message names the server and the time."""
    with (
        client_of(Catalogs(delay_s=2), timeout_s=0.2) as client,
        pytest.raises(Unavailable, match=r"^no reply from 127\.0\.0\.1:\d+ within 0\.2 s$"),
    ):
        snapshots(client)


def test_a_service_that_is_missing_is_an_error() -> None:
    """An older server does not know a newer call."""
    with client_of(Jobs(SUCCEEDED)) as client, pytest.raises(RetrievalError, match=r"^UNIMPLEMENTED: "):
        snapshots(client)


def test_no_server_is_said_with_what_to_start(closed_address: str) -> None:
    with (
        pytest.raises(Unavailable, match=f"no server answers at {closed_address}: start one with `retrieval serve`"),
        connect(closed_address, connect_s=0.2),
    ):
        pass


def test_without_waiting_the_first_call_finds_out(closed_address: str) -> None:
    with connect(closed_address, connect_s=0) as client, pytest.raises(Unavailable, match="connect"):
        snapshots(client)


@pytest.mark.slow
def test_wait_reports_progress_until_the_job_ends() -> None:
    """Each look is reported; the job that succeeded comes back."""
    jobs = Jobs(
        job(jobs_pb2.JOB_STATE_RUNNING, n_done=1, n_total=4),
        job(jobs_pb2.JOB_STATE_RUNNING, n_done=3, n_total=4),
        SUCCEEDED,
    )
    seen: list[int] = []
    with client_of(jobs) as client:
        done = client.wait(QUEUED, lambda found: seen.append(found.n_done))
    assert done == SUCCEEDED
    assert seen == [1, 3, 4]
    assert jobs.asked == ["job-1"] * 3


def test_wait_for_a_job_that_has_ended_asks_nothing() -> None:
    jobs = Jobs(SUCCEEDED)
    with client_of(jobs) as client:
        assert client.wait(SUCCEEDED).result_id == "snapshot-7"
    assert jobs.asked == []


def test_wait_raises_the_error_of_a_failed_job() -> None:
    failed = job(jobs_pb2.JOB_STATE_FAILED, error="9 of 10 images cannot be read")
    with (
        client_of(Jobs(failed)) as client,
        pytest.raises(RetrievalError, match=r"^reindex job job-1 failed: 9 of 10 images cannot be read$"),
    ):
        client.wait(QUEUED)


@pytest.mark.slow
def test_wait_outlives_a_queue_that_is_away() -> None:
    """UNAVAILABLE is waited for, and not reported as progress."""
    away = grpc.StatusCode.UNAVAILABLE
    seen: list[str] = []
    with client_of(Jobs(away, away, SUCCEEDED)) as client:
        assert client.wait(QUEUED, lambda found: seen.append(found.result_id)) == SUCCEEDED
    assert seen == ["snapshot-7"]


@pytest.mark.slow
def test_wait_outlives_a_restart_of_the_server() -> None:
    """The server goes away while a job runs and comes back on the same port with the job done."""
    running = Jobs(job(jobs_pb2.JOB_STATE_RUNNING))
    looked = threading.Event()
    with contextlib.ExitStack() as first:
        port = first.enter_context(serving(running))
        with connect(f"127.0.0.1:{port}") as client, ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(client.wait, QUEUED, _once(looked))
            assert looked.wait(10)
            first.close()  # the server is gone
            time.sleep(0.5)
            with serving(Jobs(SUCCEEDED), port=port):
                assert waiting.result(timeout=30) == SUCCEEDED


@pytest.mark.slow
def test_wait_outlives_a_server_that_hangs() -> None:
    """One look without a reply in time does not end the wait."""

    class Hanging(Jobs):
        def GetJob(self, request: jobs_pb2.GetJobRequest, context: Any) -> jobs_pb2.Job:  # noqa: N802
            answer = super().GetJob(request, context)
            time.sleep(1 if len(self.asked) == 1 else 0)
            return answer

    with client_of(Hanging(SUCCEEDED), timeout_s=0.5) as client:
        assert client.wait(QUEUED) == SUCCEEDED


def test_wait_gives_up_after_its_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without an answer for a minute, the last error is raised."""
    monkeypatch.setattr("retrieval.client.client._PATIENCE_S", 0.5)
    jobs = Jobs(grpc.StatusCode.UNAVAILABLE)
    with client_of(jobs) as client, pytest.raises(Unavailable, match="the queue is away"):
        client.wait(QUEUED)
    assert len(jobs.asked) >= 2


def test_wait_does_not_hide_other_errors() -> None:
    with (
        client_of(Jobs(grpc.StatusCode.NOT_FOUND)) as client,
        pytest.raises(NotFound, match="the queue is away"),
    ):
        client.wait(QUEUED)


def test_health_of_a_server_that_serves() -> None:
    """Returns if the server serves, raises if it answers but does not serve."""
    servicer = health.HealthServicer()
    with client_of(servicer) as client:
        client.check_health()
        servicer.set("", health_pb2.HealthCheckResponse.NOT_SERVING)
        with pytest.raises(Unavailable, match="answers, but does not serve"):
            client.check_health()


def test_health_without_a_server(closed_address: str) -> None:
    with (
        connect(closed_address, connect_s=0) as client,
        pytest.raises(
            Unavailable, match=f"^no server answers at {closed_address}: UNAVAILABLE: start one with `retrieval serve`$"
        ),
    ):
        client.check_health()


def _once(event: threading.Event) -> Callable[[jobs_pb2.Job], None]:
    return lambda _: event.set()
