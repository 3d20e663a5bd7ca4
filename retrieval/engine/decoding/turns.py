"""Decides whose large image is decoded next, so that one caller cannot keep the others out."""

import asyncio
import contextlib
from collections import Counter, deque
from collections.abc import AsyncIterator

from retrieval.errors import Overloaded


class Turns:
    """Places that callers take in turn: at most half of them, and at least one, for one caller. Used from one loop.

    places: how many are taken at a time. most: how many callers' images there may be, those that wait included; of one
    caller half.
    """

    def __init__(self, places: int, *, most: int) -> None:
        self._places = places
        self._most = most
        self._waiting: dict[str, deque[asyncio.Future[None]]] = {}  # the caller at the front is next
        self._running: Counter[str] = Counter()

    @contextlib.asynccontextmanager
    async def taken(self, caller: str) -> AsyncIterator[None]:
        """Hold a place for the block; wait for one. Raises Overloaded if too many wait already."""
        self._check_room(caller)
        turn = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(caller, deque()).append(turn)
        self._admit()
        try:
            await turn
            yield
        finally:
            if turn.done() and not turn.cancelled():
                self._running[caller] -= 1
            else:  # cancelled while it waited
                self._forget(caller, turn)
            self._admit()

    def _check_room(self, caller: str) -> None:
        own = self._running[caller] + len(self._waiting.get(caller, ()))
        total = self._running.total() + sum(map(len, self._waiting.values()))
        advice = "try again later, or send smaller ones"
        if own >= self._most // 2:
            raise Overloaded(f"{own} large images of this caller wait to be decoded already: {advice}")
        if total >= self._most:
            raise Overloaded(f"{total} large images wait to be decoded already: {advice}")

    def _admit(self) -> None:
        while self._running.total() < self._places and (caller := self._next()) is not None:
            turn = self._waiting[caller].popleft()
            rest = self._waiting.pop(caller)
            if rest:
                self._waiting[caller] = rest  # at the end
            if not turn.done():
                self._running[caller] += 1
                turn.set_result(None)

    def _next(self) -> str | None:
        share = max(1, self._places // 2)
        return next((caller for caller in self._waiting if self._running[caller] < share), None)

    def _forget(self, caller: str, turn: "asyncio.Future[None]") -> None:
        waiting = self._waiting.get(caller, deque())
        with contextlib.suppress(ValueError):
            waiting.remove(turn)
        if not waiting:
            self._waiting.pop(caller, None)
