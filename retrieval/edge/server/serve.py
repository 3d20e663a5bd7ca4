"""Starts and stops the gRPC server. `_services` lists what it offers."""

import asyncio
import contextlib
import signal
from collections.abc import AsyncIterator, Callable
from types import ModuleType
from typing import Any

import grpc
import structlog
from grpc_health.v1 import health, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from retrieval.edge import telemetry
from retrieval.edge.server.audits import AuditServicer
from retrieval.edge.server.catalogs import CatalogServicer
from retrieval.edge.server.health import HealthServicer
from retrieval.edge.server.interceptors import ErrorsToStatuses
from retrieval.edge.server.jobs import JobQueue, JobServicer
from retrieval.edge.server.limits import largest_request
from retrieval.edge.server.manifests import ManifestCheck
from retrieval.edge.server.operating_points import OperatingPointServicer
from retrieval.edge.server.search import SearchServicer
from retrieval.edge.server.store_calls import StoreCalls
from retrieval.edge.server.watch import Watch
from retrieval.edge.settings import Settings
from retrieval.edge.wiring import check_device, make_searcher, open_store
from retrieval.errors import FailedPrecondition
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

# The function that adds a servicer to a server, the servicer, and the descriptor of its file.
_Service = tuple[Callable[[Any, grpc.aio.Server], None], object, ModuleType]


def _services(settings: Settings, searcher: Searcher, watch: Watch) -> list[_Service]:
    """List every service of this server."""
    store = open_store(settings)
    queue = JobQueue(settings)
    calls, manifests = StoreCalls(settings.store_timeout_s), ManifestCheck(settings)
    points = OperatingPointServicer(store, calls, watch)
    catalogs = CatalogServicer(store, calls, queue, watch, manifests)
    audits = AuditServicer(store, calls, queue, manifests)
    return [
        (search_pb2_grpc.add_SearchServiceServicer_to_server, SearchServicer(searcher), search_pb2),
        (catalogs_pb2_grpc.add_CatalogServiceServicer_to_server, catalogs, catalogs_pb2),
        (operating_points_pb2_grpc.add_OperatingPointServiceServicer_to_server, points, operating_points_pb2),
        (audits_pb2_grpc.add_AuditServiceServicer_to_server, audits, audits_pb2),
        (jobs_pb2_grpc.add_JobServiceServicer_to_server, JobServicer(queue, watch), jobs_pb2),
    ]


@contextlib.asynccontextmanager
async def running_server(settings: Settings) -> AsyncIterator[int]:
    """Run a server while the block runs and yield its port; at the end, running calls get the grace period."""
    searcher = make_searcher(settings)
    server = grpc.aio.server(
        interceptors=[ErrorsToStatuses(settings.limits)],
        options=[
            ("grpc.max_receive_message_length", largest_request(settings.limits)),
            # gRPC would cancel calls that wait to be accepted; the interceptor refuses them with a status and a hint
            ("grpc.server.max_pending_requests", 2**31 - 1),
            ("grpc.server.max_pending_requests_hard_limit", 2**31 - 1),
            ("grpc.so_reuseport", 0),  # a second server on the same port must fail and not share it
        ],
    )
    health_servicer = HealthServicer()
    watch = Watch(searcher, health_servicer)
    names = [health.SERVICE_NAME, reflection.SERVICE_NAME]
    for add, servicer, file in _services(settings, searcher, watch):
        add(servicer, server)
        names += [service.full_name for service in file.DESCRIPTOR.services_by_name.values()]
    health_pb2_grpc.add_HealthServicer_to_server(health_servicer, server)
    reflection.enable_server_reflection(names, server)
    port = _bind(server, settings.address)
    await watch.announce()
    await server.start()  # it answers that it is alive and not serving, while the search is compiled
    watching = None
    try:
        await asyncio.to_thread(searcher.warm)
        await watch.look_first(settings.store_timeout_s)
        watching = asyncio.create_task(watch.run(settings.refresh_s))
        log.info("server_started", port=port, store=settings.store, live=sorted(searcher.live))
        yield port
    finally:
        if watching is not None:
            watching.cancel()
        await watch.stop()
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


def _bind(server: grpc.aio.Server, address: str) -> int:
    try:
        port = server.add_insecure_port(address)
    except RuntimeError as error:
        raise FailedPrecondition(
            f"address {address} cannot be listened on: is another server running there?"
        ) from error
    return int(port)
