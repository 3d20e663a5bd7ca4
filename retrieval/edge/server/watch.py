"""Keeps the searcher up to date with the store's pointers: the live snapshot and the active operating point."""

import asyncio
import time

import structlog
from grpc_health.v1 import health, health_pb2

from retrieval.edge import telemetry
from retrieval.edge.server.store_calls import on_thread
from retrieval.errors import InvalidSettings, RetrievalError, Unavailable
from retrieval.flows.search import CatalogChange, Searcher

log = structlog.get_logger()

SEARCH_SERVICE = "retrieval.v1.SearchService"
LIVENESS = "liveness"  # SERVING as long as the process answers, whatever the store does
_LONGEST_PAUSE_S = 15.0  # between two looks at a store that is away


class Watch:
    """Reads the pointers on a schedule and after each call that changes them.

    Used from one event loop; two looks never run at the same time. A look that takes long goes on when nobody waits for
    it any more.
    """

    def __init__(self, searcher: Searcher, health_servicer: health.aio.HealthServicer) -> None:
        self._searcher = searcher
        self._health = health_servicer
        self._looking = asyncio.Lock()
        self._looks: set[asyncio.Task[None]] = set()
        self._asked: asyncio.Task[None] | None = None
        self._is_away = False  # the last look could not read the store

    async def run(self, every_s: float) -> None:
        """Look every `every_s` seconds until cancelled; less and less often while the store cannot be read."""
        pause_s = every_s
        while True:
            await asyncio.sleep(pause_s)
            await self._logged_look()
            pause_s = min(2 * pause_s, max(every_s, _LONGEST_PAUSE_S)) if self._is_away else every_s

    async def announce(self) -> None:
        """Set the health of a server that is alive and has not looked yet."""
        await self._health.set(LIVENESS, health_pb2.HealthCheckResponse.SERVING)
        await self._set_health("", serving=False)
        await self._set_health(SEARCH_SERVICE, serving=False)

    async def look_first(self, within_s: float) -> None:
        """Look before anything is served. A store that does not answer is logged: the schedule looks again.

        Raises InvalidSettings if the store can never be read.
        """
        try:
            await self.look(within_s)
        except InvalidSettings:
            raise
        except Exception as error:  # noqa: BLE001  # as in `run`
            _log_failure(error)

    async def look(self, within_s: float | None = None) -> None:
        """Swap in what is new, log and count it, and set the health of the search service and of each catalogue.

        Raises Unavailable if that takes longer than `within_s` seconds; it goes on nevertheless.
        """
        task = asyncio.create_task(self._look())
        self._looks.add(task)
        task.add_done_callback(self._looks.discard)
        task.add_done_callback(lambda done: done.cancelled() or done.exception())
        done, _ = await asyncio.wait({task}, timeout=within_s)
        if not done:
            raise Unavailable(f"the server has not opened what is live now within {within_s:g} s: it goes on with that")
        task.result()

    async def look_for(self, seconds: float) -> None:
        """Look, but wait no longer than this, and not at all for a store that is away. An error is logged."""
        if self._is_away:
            return
        deadline = time.monotonic() + seconds
        if self._asked is not None and not self._asked.done():  # it may have read the pointers too early: look again
            await asyncio.wait({self._asked}, timeout=seconds)
            if not self._asked.done():
                return
        self._asked = asyncio.create_task(self._logged_look())
        await asyncio.wait({self._asked}, timeout=max(0.0, deadline - time.monotonic()))

    async def stop(self) -> None:
        """End all looks; a thread that waits for the store is left behind."""
        tasks = [*self._looks, *([self._asked] if self._asked is not None else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _logged_look(self) -> None:
        try:
            await self.look()
        except Exception as error:  # noqa: BLE001  # the store may be away for a while, and the watch must continue
            _log_failure(error)

    async def _look(self) -> None:
        async with self._looking:
            refresh = on_thread("refresh", self._searcher.refresh)
            try:
                changes = await asyncio.shield(refresh)
            except RetrievalError as error:
                self._is_away = isinstance(error, Unavailable)
                await self._report_health(())
                raise
            except asyncio.CancelledError:
                if not refresh.done():  # the server stops
                    log.warning("refresh_left_behind")
                raise
        self._is_away = False
        for change in changes:
            _report(change)
        await self._report_health(changes)

    async def _report_health(self, changes: "list[CatalogChange] | tuple[()]") -> None:
        live = self._searcher.live
        await self._set_health("", serving=bool(live) or not self._is_away)
        await self._set_health(SEARCH_SERVICE, serving=bool(live))
        for catalog in {change.catalog for change in changes}:
            await self._set_health(f"{SEARCH_SERVICE}/{catalog}", serving=catalog in live)

    async def _set_health(self, service: str, *, serving: bool) -> None:
        status = health_pb2.HealthCheckResponse
        await self._health.set(service, status.SERVING if serving else status.NOT_SERVING)


def _report(change: CatalogChange) -> None:
    """Log and count what went live or could not."""
    if change.live is None:
        is_defect = type(change.problem) is RetrievalError  # its trace is needed
        log.error(
            "snapshot_refused",
            catalog=change.catalog,
            reason=str(change.problem),
            exc_info=change.problem if is_defect else None,
        )
        telemetry.REFUSED.labels(catalog=change.catalog).inc()
        return
    snapshot, point = change.live.key
    log.info("snapshot_live", catalog=change.catalog, snapshot=snapshot, operating_point=point)
    telemetry.LIVE.labels(catalog=change.catalog).set_to_current_time()


def _log_failure(error: Exception) -> None:
    """Log a look that failed, with its trace unless the store is away."""
    log.error("refresh_failed", reason=str(error), exc_info=None if isinstance(error, Unavailable) else error)
