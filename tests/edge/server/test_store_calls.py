"""Calls to the store on bounded threads: in time or UNAVAILABLE, and none keeps the others out for long."""

from __future__ import annotations

import asyncio
import threading
import time

import pytest
from prometheus_client import REGISTRY

from retrieval.edge.server import store_calls
from retrieval.edge.server.store_calls import StoreCalls
from retrieval.errors import Unavailable, UnknownCatalog


def left_behind() -> float:
    """The number of calls of this process that nobody waits for; other tests may have left some for ever."""
    return REGISTRY.get_sample_value("retrieval_store_calls_left_behind") or 0.0


def n_threads() -> int:
    return sum(thread.name == "store" for thread in threading.enumerate())


def fail(error: Exception) -> None:
    raise error


def test_results_and_errors_pass() -> None:
    async def run() -> None:
        calls = StoreCalls(5)
        assert await calls(int, "7") == 7
        with pytest.raises(UnknownCatalog, match=r"^shop$"):
            await calls(fail, UnknownCatalog("shop"))
        with pytest.raises(TimeoutError, match=r"^its own$"):
            await calls(fail, TimeoutError("its own"))

    asyncio.run(run())


def test_calls_that_hang_are_left_behind_counted_and_refused() -> None:
    """Far more callers than threads: each is answered in time, then at once; when the store is back, all is well."""
    gate, before, threads_before = threading.Event(), left_behind(), n_threads()

    async def run() -> None:
        calls = StoreCalls(0.3)
        started = time.monotonic()
        answers = await asyncio.gather(*(calls(gate.wait) for _ in range(100)), return_exceptions=True)
        assert time.monotonic() - started < 2
        assert {type(answer) for answer in answers} == {Unavailable}
        assert "not answered within 0.3 s (RETRIEVAL_STORE_TIMEOUT_S)" in str(answers[0])
        assert left_behind() - before == store_calls._THREADS
        assert n_threads() - threads_before == store_calls._THREADS
        started = time.monotonic()
        with pytest.raises(Unavailable, match=r"the store does not answer: 16 calls wait for it already"):
            await calls(int, "7")
        assert time.monotonic() - started < 0.1
        gate.set()
        while left_behind() > before:
            await asyncio.sleep(0.01)
        assert await calls(int, "7") == 7

    try:
        asyncio.run(asyncio.wait_for(run(), 20))
    finally:
        gate.set()


def test_a_caller_that_goes_away_leaves_no_place_taken() -> None:
    gate, before = threading.Event(), left_behind()

    async def run() -> None:
        calls = StoreCalls(5)
        for _ in range(2 * store_calls._THREADS):
            gate.clear()
            task = asyncio.create_task(calls(gate.wait))
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            task.cancel()
            await asyncio.wait([task])
            assert task.cancelled()
            gate.set()
            while left_behind() > before:
                await asyncio.sleep(0.001)
        assert await calls(int, "7") == 7

    asyncio.run(asyncio.wait_for(run(), 20))


def test_the_end_of_the_loop_does_not_wait_for_a_hanging_call() -> None:
    """So a server stops although its store hangs; the answer that comes later disturbs nobody."""
    gate = threading.Event()

    async def run() -> None:
        with pytest.raises(Unavailable, match="not answered"):
            await StoreCalls(0.05)(gate.wait)

    started = time.monotonic()
    asyncio.run(run())
    assert time.monotonic() - started < 2
    gate.set()
    for thread in threading.enumerate():
        if thread.name == "store":
            thread.join(5)
    assert not [thread for thread in threading.enumerate() if thread.name == "store"]
