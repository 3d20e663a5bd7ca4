"""Concurrent callers of one service, each of which sends its next request when the last is answered."""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Awaitable, Callable, Iterable
from typing import TypeVar

from tests.bench.measuring.rounds import Values

Request = TypeVar("Request")


async def drive(send: Callable[[Request], Awaitable[object]], requests: Iterable[Request], n_callers: int) -> Values:
    """Let `n_callers` share the requests out among them: requests per second and the median latency."""
    latencies: list[float] = []
    left = iter(requests)

    async def caller() -> None:
        for request in left:
            started = time.perf_counter()
            await send(request)
            latencies.append(time.perf_counter() - started)

    started = time.perf_counter()
    await asyncio.gather(*(caller() for _ in range(n_callers)))
    return summary(time.perf_counter() - started, latencies)


def summary(seconds: float, latencies: list[float]) -> Values:
    """What a run of so many seconds in all came to; latencies: of each request, in seconds."""
    return {"per_s": len(latencies) / seconds, "latency_ms": 1000 * statistics.median(latencies)}
