"""The watch over a searcher that reports what the test gives it: logs, metrics, health, and no two looks at once."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
from grpc_health.v1 import health, health_pb2
from prometheus_client import REGISTRY
from structlog.testing import capture_logs

from retrieval.edge.server.watch import SEARCH_SERVICE, Watch
from retrieval.errors import CorruptArtifact
from retrieval.flows.search import CatalogChange

Status = health_pb2.HealthCheckResponse


class Pointers:
    """A searcher: what each `refresh` finds, or the error that it raises."""

    def __init__(self, *found: Sequence[CatalogChange] | Exception) -> None:
        self.live: dict[str, object] = {}
        self._found = list(found)
        self._busy = threading.Lock()
        self.n_looks = 0

    def refresh(self) -> Sequence[CatalogChange]:
        assert self._busy.acquire(blocking=False), "two looks at the same time"
        try:
            time.sleep(0.01)
            self.n_looks += 1
            found = self._found.pop(0) if self._found else ()
            if isinstance(found, Exception):
                raise found
            self.live |= {change.catalog: change.live for change in found if change.live is not None}
            return found
        finally:
            self._busy.release()


def live(catalog: str) -> CatalogChange:
    return CatalogChange(catalog=catalog, live=SimpleNamespace(key=("snapshot", "point")), problem=None)  # type: ignore[arg-type]  # a stand-in


def refused(catalog: str) -> CatalogChange:
    return CatalogChange(catalog=catalog, live=None, problem=CorruptArtifact("index.bin is truncated"))


def watch(pointers: Pointers) -> tuple[Watch, health.aio.HealthServicer]:
    servicer = health.aio.HealthServicer()
    return Watch(pointers, servicer), servicer  # type: ignore[arg-type]  # a stand-in


async def health_of(servicer: health.aio.HealthServicer) -> Any:
    request = health_pb2.HealthCheckRequest(service=SEARCH_SERVICE)
    return (await servicer.Check(request, None)).status


def metric(name: str, catalog: str) -> float | None:
    return REGISTRY.get_sample_value(name, {"catalog": catalog})


def test_a_new_snapshot_is_logged_counted_and_served() -> None:
    """An operator sees which pair went live and since when."""
    pointers = Pointers([live("watch-live")])

    async def look() -> Any:
        watching, servicer = watch(pointers)
        await watching.look()
        return await health_of(servicer)

    before = time.time()
    with capture_logs() as logs:
        assert asyncio.run(look()) == Status.SERVING
    assert logs == [
        {
            "event": "snapshot_live",
            "log_level": "info",
            "catalog": "watch-live",
            "snapshot": "snapshot",
            "operating_point": "point",
        }
    ]
    since = metric("retrieval_live_since_seconds", "watch-live")
    assert since is not None
    assert before <= since <= time.time()


def test_a_refused_snapshot_is_an_error_in_the_log_and_a_count() -> None:
    """With nothing else live, searches are reported as not served."""

    async def look() -> Any:
        watching, servicer = watch(Pointers([refused("watch-refused")], [refused("watch-refused")]))
        await watching.look()
        await watching.look()
        return await health_of(servicer)

    with capture_logs() as logs:
        assert asyncio.run(look()) == Status.NOT_SERVING
    assert [(log["event"], log["log_level"], log["reason"]) for log in logs] == [
        ("snapshot_refused", "error", "index.bin is truncated")
    ] * 2
    assert metric("retrieval_refused_snapshots_total", "watch-refused") == 2
    assert metric("retrieval_live_since_seconds", "watch-refused") is None


def test_a_refused_snapshot_does_not_end_serving() -> None:
    """The other catalogue, or the old snapshot, is live still."""

    async def look() -> Any:
        watching, servicer = watch(Pointers([live("a"), refused("b")]))
        await watching.look()
        return await health_of(servicer)

    assert asyncio.run(look()) == Status.SERVING


def test_looks_wait_for_each_other() -> None:
    """A call and the schedule may look at the same moment; the searcher swaps for one at a time."""
    pointers = Pointers()

    async def look() -> None:
        watching, _ = watch(pointers)
        await asyncio.gather(*(watching.look() for _ in range(5)))

    asyncio.run(look())
    assert pointers.n_looks == 5


def test_the_schedule_survives_a_store_that_is_away() -> None:
    """An error is logged; the next look finds what is new."""
    pointers = Pointers(OSError("the store does not answer"), CorruptArtifact("a pointer"), [live("watch-later")])

    async def run() -> Any:
        watching, servicer = watch(pointers)
        task = asyncio.create_task(watching.run(0.01))
        while not pointers.live:
            await asyncio.sleep(0.01)
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()
        await watching.look()
        return await health_of(servicer)

    with capture_logs() as logs:
        assert asyncio.run(asyncio.wait_for(run(), 10)) == Status.SERVING
    assert [log["event"] for log in logs].count("refresh_failed") == 2


def test_a_call_that_looks_gets_the_error() -> None:
    """Unlike the schedule: the client must not believe that the swap was done."""

    async def look() -> None:
        watching, _ = watch(Pointers(CorruptArtifact("CURRENT is damaged")))
        await watching.look()

    with pytest.raises(CorruptArtifact, match="CURRENT is damaged"):
        asyncio.run(look())
