"""Collects the requests of many callers into calls of one function that answers several at once.

A batch takes all requests that wait, up to its size; a single caller never waits for others. The function decides what
a request is: `encoder.py` runs the model on images, `matches.py` searches an index.
"""

import asyncio
import contextlib
import functools
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeAlias, TypeVar

from retrieval.errors import Overloaded

Asked = TypeVar("Asked")
Answer = TypeVar("Answer")
_Waiting: TypeAlias = "tuple[Asked, asyncio.Future[Answer]]"

_SMALL_BATCH = 4  # requests that are not divided among threads that are free


class Batcher(Generic[Asked, Answer]):
    """Collects single requests into batches for a function that runs on threads of its own.

    It belongs to one event loop. Requests of one group share batches; groups take turns.
    """

    def __init__(
        self,
        answer: Callable[[Sequence[Asked]], Sequence[Answer]],
        *,
        name: str,
        max_batch: int,
        max_waiting: int | None = None,
        n_threads: int = 1,
        group_of: Callable[[Asked], Hashable] = lambda request: None,
    ) -> None:
        """answer: returns an answer for each request of a group, in their order. max_waiting: None if callers are few.

        name: what the callers wait for.
        """
        self._answer = answer
        self._name = name
        self._max_batch = max_batch
        self._max_waiting = max_waiting
        self._n_threads = n_threads
        self._group_of = group_of
        self._waiting: dict[Hashable, deque[_Waiting[Asked, Answer]]] = {}  # the next group first
        self._threads = ThreadPoolExecutor(max_workers=n_threads, thread_name_prefix=name)
        self._running: set[Future[Sequence[Answer]]] = set()

    async def ask(self, request: Asked) -> Answer:
        """Return the answer to a request. Raises Overloaded immediately if too many requests wait already."""
        self._check_room()
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[Answer] = loop.create_future()
        self._waiting.setdefault(self._group_of(request), deque()).append((request, answer))
        loop.call_soon(self._start)  # not now: callers that ask at the same time share a batch
        return await answer

    async def settle(self) -> None:
        """Wait until no thread works and all waiting callers have their answers."""
        while self._n_waiting or self._running:
            self._start()
            await asyncio.gather(*map(asyncio.wrap_future, self._running), return_exceptions=True)

    async def close(self) -> None:
        """Answer all waiting callers, then stop the threads."""
        await self.settle()
        self._threads.shutdown()

    def _check_room(self) -> None:
        if self._max_waiting is None or self._n_waiting < self._max_waiting:
            return
        for group, entries in self._waiting.items():  # cancelled callers must not count as waiting
            self._waiting[group] = deque(entry for entry in entries if not entry[1].done())
        if self._n_waiting >= self._max_waiting:
            raise Overloaded(f"{self._max_waiting} requests wait for the {self._name} already: try again later")

    @property
    def _n_waiting(self) -> int:
        return sum(map(len, self._waiting.values()))

    def _start(self) -> None:
        """Hand a batch to each thread that is free."""
        self._running = {running for running in self._running if not running.done()}
        while (n_free := self._n_threads - len(self._running)) and (batch := self._take(n_free)):
            try:
                running = self._threads.submit(self._answers, [request for request, _ in batch])
            except RuntimeError as error:  # no thread can be started: nobody may wait for ever
                _fail(batch, error)
                continue
            self._running.add(running)
            running.add_done_callback(functools.partial(self._report, asyncio.get_running_loop(), batch))

    def _answers(self, requests: Sequence[Asked]) -> Sequence[Answer]:
        answers = self._answer(requests)
        if len(answers) != len(requests):
            raise RuntimeError(f"the {self._name} returned {len(answers)} answers to {len(requests)} requests")
        return answers

    def _report(
        self,
        loop: asyncio.AbstractEventLoop,
        batch: "Sequence[_Waiting[Asked, Answer]]",
        done: Future[Sequence[Answer]],
    ) -> None:
        """Pass a batch that is done from its thread to the event loop."""
        with contextlib.suppress(RuntimeError):  # the loop has ended, and its callers with it
            loop.call_soon_threadsafe(self._finish, batch, done)

    def _finish(self, batch: "Sequence[_Waiting[Asked, Answer]]", done: Future[Sequence[Answer]]) -> None:
        """Give each caller of a batch its answer, or all of them the error; start the next batch."""
        if error := done.exception():
            _fail(batch, error)
        else:
            for (_, waiting), answer in zip(batch, done.result(), strict=True):
                if not waiting.done():
                    waiting.set_result(answer)
        self._start()

    def _take(self, n_free: int) -> "list[_Waiting[Asked, Answer]]":
        """Remove and return the next batch, without the requests of cancelled callers.

        If several threads are free, each gets its share.
        """
        while self._waiting:
            group = next(iter(self._waiting))
            entries = deque(entry for entry in self._waiting.pop(group) if not entry[1].done())
            size = min(len(entries), self._max_batch, max(_SMALL_BATCH, -(-len(entries) // n_free)))
            batch = [entries.popleft() for _ in range(size)]
            if entries:
                self._waiting[group] = entries  # after the other groups
            if batch:
                return batch
        return []


def _fail(batch: "Sequence[_Waiting[Asked, Answer]]", error: BaseException) -> None:
    """Give an error to each caller of a batch."""
    for _, waiting in batch:
        if not waiting.done():
            waiting.set_exception(error)
