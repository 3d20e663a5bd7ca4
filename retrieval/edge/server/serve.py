"""The gRPC server: servicers of a few lines over the flows.

Decides how calls become flow calls and errors statuses; leaves what a reply means to the flows.
"""

import asyncio
import contextlib
import functools
import signal
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
import structlog
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from retrieval.client.statuses import status_of
from retrieval.contract.bundle import BundleDigest
from retrieval.contract.operating_point import OperatingPointId
from retrieval.edge import telemetry
from retrieval.edge.jobs.queue import make_app, submit
from retrieval.edge.jobs.records import JobId, Jobs, redis_url
from retrieval.edge.server import messages
from retrieval.edge.settings import Settings
from retrieval.edge.wiring import check_device, make_searcher, open_store
from retrieval.engine.snapshot import SnapshotId
from retrieval.engine.store import Store
from retrieval.errors import FailedPrecondition, InvalidInput, RetrievalError
from retrieval.flows.audit import AuditRequest, audits
from retrieval.flows.reindex import ReindexRequest, roll_back, settle_bundle
from retrieval.flows.search import Searcher
from retrieval.v1 import (
    audits_pb2,
    audits_pb2_grpc,
    catalogs_pb2,
    catalogs_pb2_grpc,
    jobs_pb2,
    jobs_pb2_grpc,
    operating_points_pb2,
    operating_points_pb2_grpc,
    search_pb2,
    search_pb2_grpc,
)

log = structlog.get_logger()

MAX_BATCH_QUERIES = 256
_BATCH_AT_ONCE = 32  # enough to fill the model's batches; more would keep other callers out
_MIB = 1024 * 1024
_MESSAGE_CHARACTERS = 1000  # statuses travel in headers, and clients refuse headers of more than 8 KiB
_SEARCH_SERVICE = "retrieval.v1.SearchService"
Context = grpc.aio.ServicerContext[Any, Any]


class SearchServicer(search_pb2_grpc.SearchServiceServicer):
    """protos/retrieval/v1/search.proto."""

    def __init__(self, searcher: Searcher) -> None:
        self._searcher = searcher

    async def Search(self, request: search_pb2.SearchRequest, context: Context) -> search_pb2.SearchResponse:  # noqa: N802
        """Everything above the threshold."""
        response = await self._search(request.catalog, request.query, messages.limit_from(request))
        telemetry.MATCHES.labels(catalog=request.catalog).observe(response.total_matches)
        return response

    async def BatchSearch(  # noqa: N802
        self, request: search_pb2.BatchSearchRequest, context: Context
    ) -> search_pb2.BatchSearchResponse:
        """Each query answered on its own."""
        if not 1 <= len(request.queries) <= MAX_BATCH_QUERIES:
            raise InvalidInput(f"queries: expected 1 to {MAX_BATCH_QUERIES}, found {len(request.queries)}")
        limit = messages.limit_from(request)
        slots = asyncio.Semaphore(_BATCH_AT_ONCE)

        async def search(query: search_pb2.Query) -> search_pb2.SearchResponse:
            async with slots:
                return await self._search(request.catalog, query, limit)

        answers = await asyncio.gather(*map(search, request.queries), return_exceptions=True)
        return search_pb2.BatchSearchResponse(results=[_batch_result(answer) for answer in answers])

    async def _search(self, catalog: str, query: search_pb2.Query, limit: int) -> search_pb2.SearchResponse:
        result = await self._searcher.search(catalog, messages.query_from(query), limit=limit)
        return messages.search_response(result)


class CatalogServicer(catalogs_pb2_grpc.CatalogServiceServicer):
    """protos/retrieval/v1/catalogs.proto."""

    def __init__(self, store: Store, queue: "JobQueue", watch: "Watch") -> None:
        self._store = store
        self._queue = queue
        self._watch = watch

    async def StartReindex(self, request: catalogs_pb2.StartReindexRequest, context: Context) -> jobs_pb2.Job:  # noqa: N802
        """Store and send a job."""
        wanted = messages.reindex_request(request)
        wanted.check()
        settled = await asyncio.to_thread(settle_bundle, self._store, wanted)
        return await self._queue.submit("reindex", settled)

    async def ListSnapshots(  # noqa: N802
        self, request: catalogs_pb2.ListSnapshotsRequest, context: Context
    ) -> catalogs_pb2.ListSnapshotsResponse:
        """All snapshots, newest first."""
        manifests = await asyncio.to_thread(self._store.snapshots, request.catalog)
        live = await asyncio.to_thread(self._store.current, request.catalog)
        return catalogs_pb2.ListSnapshotsResponse(
            snapshots=[messages.snapshot_message(manifest, live=manifest.id == live) for manifest in manifests]
        )

    async def Rollback(self, request: catalogs_pb2.RollbackRequest, context: Context) -> catalogs_pb2.Snapshot:  # noqa: N802
        """Make an older snapshot live."""
        manifest = await asyncio.to_thread(roll_back, self._store, request.catalog, SnapshotId(request.snapshot_id))
        await self._watch.look()
        return messages.snapshot_message(manifest, live=True)


class OperatingPointServicer(operating_points_pb2_grpc.OperatingPointServiceServicer):
    """protos/retrieval/v1/operating_points.proto."""

    def __init__(self, store: Store, watch: "Watch") -> None:
        self._store = store
        self._watch = watch

    async def GetOperatingPoint(  # noqa: N802
        self, request: operating_points_pb2.GetOperatingPointRequest, context: Context
    ) -> operating_points_pb2.OperatingPoint:
        """One operating point, the active one by default."""

        def get() -> operating_points_pb2.OperatingPoint:
            bundle = self._bundle(request.bundle_digest)
            point_id = OperatingPointId(request.operating_point_id)
            point = (
                self._store.operating_point(bundle, point_id)
                if point_id
                else self._store.active_operating_point(bundle)
            )
            return messages.operating_point_message(point, active=point.id == self._store.active_id(bundle))

        return await asyncio.to_thread(get)

    async def ListOperatingPoints(  # noqa: N802
        self, request: operating_points_pb2.ListOperatingPointsRequest, context: Context
    ) -> operating_points_pb2.ListOperatingPointsResponse:
        """All of a bundle, newest first."""

        def get() -> operating_points_pb2.ListOperatingPointsResponse:
            bundle = self._bundle(request.bundle_digest)
            active = self._store.active_id(bundle)
            points = self._store.operating_points(bundle)
            return operating_points_pb2.ListOperatingPointsResponse(
                operating_points=[messages.operating_point_message(p, active=p.id == active) for p in points]
            )

        return await asyncio.to_thread(get)

    async def ActivateOperatingPoint(  # noqa: N802
        self, request: operating_points_pb2.ActivateOperatingPointRequest, context: Context
    ) -> operating_points_pb2.OperatingPoint:
        """Use another operating point."""

        def activate() -> operating_points_pb2.OperatingPoint:
            bundle = self._bundle(request.bundle_digest)
            point = self._store.activate(bundle, OperatingPointId(request.operating_point_id))
            log.info("operating_point_activated", id=point.id, bundle=bundle)
            return messages.operating_point_message(point, active=True)

        message = await asyncio.to_thread(activate)
        await self._watch.look()
        return message

    def _bundle(self, digest: str) -> BundleDigest:
        return self._store.bundle(BundleDigest(digest)).digest if digest else self._store.only_bundle()


class AuditServicer(audits_pb2_grpc.AuditServiceServicer):
    """protos/retrieval/v1/audits.proto."""

    def __init__(self, store: Store, queue: "JobQueue") -> None:
        self._store = store
        self._queue = queue

    async def StartAudit(self, request: audits_pb2.StartAuditRequest, context: Context) -> jobs_pb2.Job:  # noqa: N802
        """Store and send a job."""
        wanted = AuditRequest(
            catalog=request.catalog, manifest_uri=request.manifest_uri, group_by=tuple(request.group_by)
        )
        wanted.check()
        snapshot_id = await asyncio.to_thread(self._store.current, wanted.catalog)
        manifest = await asyncio.to_thread(self._store.snapshot_manifest, wanted.catalog, snapshot_id)
        await asyncio.to_thread(self._store.active_operating_point, manifest.bundle_digest)
        return await self._queue.submit("audit", wanted)

    async def GetAudit(self, request: audits_pb2.GetAuditRequest, context: Context) -> audits_pb2.Audit:  # noqa: N802
        """A finished audit."""
        report = await asyncio.to_thread(self._store.audit, request.catalog, request.audit_id)
        return messages.audit_message(self._store, report)

    async def ListAudits(  # noqa: N802
        self, request: audits_pb2.ListAuditsRequest, context: Context
    ) -> audits_pb2.ListAuditsResponse:
        """All finished audits, newest first."""
        reports = await asyncio.to_thread(audits, self._store, request.catalog)
        return audits_pb2.ListAuditsResponse(audits=[messages.audit_message(self._store, report) for report in reports])


class JobServicer(jobs_pb2_grpc.JobServiceServicer):
    """protos/retrieval/v1/jobs.proto."""

    def __init__(self, queue: "JobQueue", watch: "Watch") -> None:
        self._queue = queue
        self._watch = watch

    async def GetJob(self, request: jobs_pb2.GetJobRequest, context: Context) -> jobs_pb2.Job:  # noqa: N802
        """Where a job stands."""
        job = await self._queue.get(request.job_id)
        if job.state == jobs_pb2.JOB_STATE_SUCCEEDED and job.kind == "reindex":
            await self._watch.look()  # who hears that a reindex is done may query it here at once
        return job


class JobQueue:
    """Jobs from the event loop: Redis and Celery calls run on threads."""

    def __init__(self, settings: Settings) -> None:
        self._jobs = Jobs(redis_url(settings))
        self._app = make_app(settings)

    async def submit(self, kind: str, request: ReindexRequest | AuditRequest) -> jobs_pb2.Job:
        """Store and send a job, or find the running one that was asked for the same."""
        job = await asyncio.to_thread(submit, self._app, self._jobs, kind, request)
        log.info("job_accepted", id=job.id, kind=kind, catalog=request.catalog)
        return messages.job_message(job)

    async def get(self, job_id: str) -> jobs_pb2.Job:
        """Where a job stands."""
        return messages.job_message(await asyncio.to_thread(self._jobs.get, JobId(job_id)))


class ErrorsToStatuses(grpc.aio.ServerInterceptor):
    """Known errors become their status, unknown ones INTERNAL with a request id and nothing else; calls are timed."""

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        details: grpc.HandlerCallDetails,
    ) -> Any:
        """Wrap the handler of a unary call."""
        handler = await continuation(details)
        if handler is None or handler.unary_unary is None:
            return handler
        return grpc.unary_unary_rpc_method_handler(
            functools.partial(_answer, details.method, handler.unary_unary),
            request_deserializer=handler.request_deserializer,
            response_serializer=handler.response_serializer,
        )


async def _answer(method: str, handler: Callable[..., Awaitable[Any]], request: Any, context: Context) -> Any:
    started = time.perf_counter()
    status = "OK"
    try:
        return await handler(request, context)
    except RetrievalError as error:
        code = status_of(error)
        status = code.name
        await context.abort(code, str(error)[:_MESSAGE_CHARACTERS])
    except grpc.aio.AbortError:
        status = "ABORTED"
        raise
    except asyncio.CancelledError:
        status = "CANCELLED"
        raise
    except Exception as error:  # noqa: BLE001  # a defect must not leak to the client; the log has it
        status = "INTERNAL"
        await context.abort(grpc.StatusCode.INTERNAL, _log_unknown(method, error))
    finally:
        telemetry.CALLS.labels(method=method, status=status).observe(time.perf_counter() - started)


def _log_unknown(method: str, error: Exception) -> str:
    """Log a defect; the text that may be shown to a client."""
    request_id = uuid.uuid4().hex
    log.error("call_failed", method=method, request_id=request_id, exc_info=error)
    return f"internal error, request id {request_id}: see the server's log"


def _batch_result(answer: search_pb2.SearchResponse | BaseException) -> search_pb2.BatchResult:
    if isinstance(answer, search_pb2.SearchResponse):
        return search_pb2.BatchResult(response=answer)
    if isinstance(answer, RetrievalError):
        code, message = status_of(answer), str(answer)
    elif isinstance(answer, Exception):
        code, message = grpc.StatusCode.INTERNAL, _log_unknown("BatchSearch", answer)
    else:
        raise answer
    return search_pb2.BatchResult(error=search_pb2.QueryError(code=code.value[0], message=message))


@contextlib.asynccontextmanager
async def running_server(settings: Settings) -> AsyncIterator[int]:
    """A server that answers, on the yielded port, until the block ends; what runs then gets the grace period."""
    searcher = make_searcher(settings)
    store = open_store(settings)
    queue = JobQueue(settings)
    server = grpc.aio.server(
        interceptors=[ErrorsToStatuses()],
        options=[
            ("grpc.max_receive_message_length", max(4 * settings.image_bytes, 64 * _MIB)),
            ("grpc.so_reuseport", 0),  # a second server on the same port must fail, not share it
        ],
    )
    health_servicer = health.aio.HealthServicer()
    watch = Watch(searcher, health_servicer)
    search_pb2_grpc.add_SearchServiceServicer_to_server(SearchServicer(searcher), server)
    catalogs_pb2_grpc.add_CatalogServiceServicer_to_server(CatalogServicer(store, queue, watch), server)
    operating_points_pb2_grpc.add_OperatingPointServiceServicer_to_server(OperatingPointServicer(store, watch), server)
    audits_pb2_grpc.add_AuditServiceServicer_to_server(AuditServicer(store, queue), server)
    jobs_pb2_grpc.add_JobServiceServicer_to_server(JobServicer(queue, watch), server)
    health_pb2_grpc.add_HealthServicer_to_server(health_servicer, server)
    services = [module.DESCRIPTOR.services_by_name.values() for module in (search_pb2, catalogs_pb2)]
    services += [module.DESCRIPTOR.services_by_name.values() for module in (operating_points_pb2, audits_pb2, jobs_pb2)]
    names = [service.full_name for group in services for service in group]
    reflection.enable_server_reflection([*names, health.SERVICE_NAME, reflection.SERVICE_NAME], server)
    port = _bind(server, settings.address)
    await watch.look()
    await server.start()
    await health_servicer.set("", health_pb2.HealthCheckResponse.SERVING)
    watching = asyncio.create_task(watch.run(settings.refresh_s))
    log.info("server_started", port=port, store=settings.store, live=sorted(searcher.live))
    try:
        yield port
    finally:
        watching.cancel()
        await health_servicer.enter_graceful_shutdown()
        await server.stop(settings.shutdown_grace_s)
        log.info("server_stopped")


def serve(settings: Settings) -> None:
    """Answer calls until SIGTERM or SIGINT."""
    check_device(settings)
    telemetry.setup(settings)
    telemetry.serve_metrics(settings)
    asyncio.run(_serve(settings))


async def _serve(settings: Settings) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with running_server(settings):
        await stop.wait()


class Watch:
    """Keeps the searcher at what the pointers say; one look at a time, from any call or on its own."""

    def __init__(self, searcher: Searcher, health_servicer: health.aio.HealthServicer) -> None:
        self._searcher = searcher
        self._health = health_servicer
        self._looking = asyncio.Lock()

    async def run(self, every_s: float) -> None:
        """Look every so many seconds, for ever."""
        while True:
            await asyncio.sleep(every_s)
            try:
                await self.look()
            except Exception:  # the watch must outlive a store that is away for a while
                log.exception("refresh_failed")

    async def look(self) -> None:
        """Swap in what is new, log and count it, and tell the health service whether queries are answered."""
        async with self._looking:
            changes = await asyncio.to_thread(self._searcher.refresh)
        for change in changes:
            if change.live is None:
                log.error("snapshot_refused", catalog=change.catalog, reason=str(change.problem))
                telemetry.REFUSED.labels(catalog=change.catalog).inc()
                continue
            snapshot, point = change.live.key
            log.info("snapshot_live", catalog=change.catalog, snapshot=snapshot, operating_point=point)
            telemetry.LIVE.labels(catalog=change.catalog).set_to_current_time()
        status = health_pb2.HealthCheckResponse
        await self._health.set(_SEARCH_SERVICE, status.SERVING if self._searcher.live else status.NOT_SERVING)


def _bind(server: grpc.aio.Server, address: str) -> int:
    try:
        port = server.add_insecure_port(address)
    except RuntimeError as error:
        raise FailedPrecondition(
            f"address {address} cannot be listened on: is another server running there?"
        ) from error
    return int(port)
