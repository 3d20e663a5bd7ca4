"""Keeps the searcher up to date with the store's pointers: the live snapshot and the active operating point."""

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor

import structlog
from grpc_health.v1 import health, health_pb2

from retrieval.edge import telemetry
from retrieval.errors import RetrievalError
from retrieval.flows.search import Searcher

log = structlog.get_logger()

SEARCH_SERVICE = "retrieval.v1.SearchService"


class Watch:
    """Reads the pointers on a schedule and after each call that changes them.

    Used from one event loop; two looks never run at the same time.
    """

    def __init__(self, searcher: Searcher, health_servicer: health.aio.HealthServicer) -> None:
        self._searcher = searcher
        self._health = health_servicer
        self._looking = asyncio.Lock()
        self._asked: asyncio.Task[None] | None = None
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="refresh")  # a slow store holds only this

    async def run(self, every_s: float) -> None:
        """Look every `every_s` seconds until cancelled."""
        while True:
            await asyncio.sleep(every_s)
            try:
                await self.look()
            except Exception:  # the store may be unreachable for a while, and the watch must continue
                log.exception("refresh_failed")

    async def look(self) -> None:
        """Swap in what is new, log and count it, and set the health of the search service and of each catalogue."""
        async with self._looking:
            changes = await asyncio.get_running_loop().run_in_executor(self._thread, self._searcher.refresh)
        for change in changes:
            if change.live is None:
                is_defect = type(change.problem) is RetrievalError  # its trace is needed
                log.error(
                    "snapshot_refused",
                    catalog=change.catalog,
                    reason=str(change.problem),
                    exc_info=change.problem if is_defect else None,
                )
                telemetry.REFUSED.labels(catalog=change.catalog).inc()
                continue
            snapshot, point = change.live.key
            log.info("snapshot_live", catalog=change.catalog, snapshot=snapshot, operating_point=point)
            telemetry.LIVE.labels(catalog=change.catalog).set_to_current_time()
        live = self._searcher.live
        await self._set_health(SEARCH_SERVICE, serving=bool(live))
        for catalog in {change.catalog for change in changes}:
            await self._set_health(f"{SEARCH_SERVICE}/{catalog}", serving=catalog in live)

    async def look_for(self, seconds: float) -> None:
        """Look, but wait no longer than this. An error is logged: the schedule looks again."""
        deadline = time.monotonic() + seconds
        if self._asked is not None and not self._asked.done():  # it may have read the pointers too early: look again
            await asyncio.wait({self._asked}, timeout=seconds)
            if not self._asked.done():
                return
        self._asked = asyncio.create_task(self._logged_look())
        await asyncio.wait({self._asked}, timeout=max(0.0, deadline - time.monotonic()))

    async def _logged_look(self) -> None:
        try:
            await self.look()
        except Exception:  # as in `run`
            log.exception("refresh_failed")

    async def _set_health(self, service: str, *, serving: bool) -> None:
        status = health_pb2.HealthCheckResponse
        await self._health.set(service, status.SERVING if serving else status.NOT_SERVING)
