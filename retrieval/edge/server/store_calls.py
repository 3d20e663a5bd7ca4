"""Calls to the store, on threads of their own: each is answered within a time, whether the store answers or not."""

import asyncio
import contextlib
import threading
from collections.abc import Callable
from typing import Any, TypeVar

import structlog

from retrieval.edge import telemetry
from retrieval.errors import Unavailable

log = structlog.get_logger()

_Result = TypeVar("_Result")

_THREADS = 16


class StoreCalls:
    """Runs functions that read or write the store, at most 16 at a time. Used from one event loop.

    A function that takes too long cannot be ended. It is left behind, holds its place until it ends, and is counted.
    While every place is held in this way, further calls are refused at once.
    """

    def __init__(self, limit_s: float) -> None:
        self.limit_s = limit_s
        self._places = asyncio.Semaphore(_THREADS)
        self._n_left_behind = 0

    async def __call__(self, function: Callable[..., _Result], *arguments: object) -> _Result:
        """Return what the function returns. Raises its error, and Unavailable if the time is over."""
        if self._n_left_behind >= _THREADS:
            raise Unavailable(f"the store does not answer: {_THREADS} calls wait for it already")
        running: asyncio.Future[_Result] | None = None
        try:
            async with asyncio.timeout(self.limit_s):
                await self._places.acquire()
                running = on_thread("store", function, *arguments)
                running.add_done_callback(lambda _: self._places.release())
                return await asyncio.shield(running)
        except TimeoutError:
            if running is not None and running.done():  # an error of the function itself
                raise
            raise Unavailable(
                f"the store has not answered within {self.limit_s:g} s (RETRIEVAL_STORE_TIMEOUT_S): a change that was "
                "asked for may take effect later"
            ) from None
        finally:
            if running is not None and not running.done():
                self._leave_behind(running)

    def _leave_behind(self, running: "asyncio.Future[_Result]") -> None:
        self._n_left_behind += 1
        telemetry.LEFT_BEHIND.inc()
        log.warning("store_call_left_behind", n=self._n_left_behind)
        running.add_done_callback(lambda _: self._forget())

    def _forget(self) -> None:
        self._n_left_behind -= 1
        telemetry.LEFT_BEHIND.dec()


def on_thread(name: str, function: Callable[..., _Result], *arguments: object) -> "asyncio.Future[_Result]":
    """Run a function on a new thread that does not keep the process from ending; return its result to come."""
    loop = asyncio.get_running_loop()
    result: asyncio.Future[_Result] = loop.create_future()
    result.add_done_callback(lambda done: done.cancelled() or done.exception())  # nobody may wait for it any more

    def run() -> None:
        try:
            value = function(*arguments)
        except BaseException as error:  # noqa: BLE001  # it is raised where the result is awaited
            deliver(result.set_exception, error)
        else:
            deliver(result.set_result, value)

    def deliver(setter: Callable[[Any], None], value: object) -> None:
        with contextlib.suppress(RuntimeError):  # the event loop has ended
            loop.call_soon_threadsafe(set_once, setter, value)

    def set_once(setter: Callable[[Any], None], value: object) -> None:
        if not result.done():
            setter(value)

    threading.Thread(target=run, daemon=True, name=name).start()
    return result
