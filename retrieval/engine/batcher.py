"""Collects the inputs of many callers into one forward pass.

A batch takes all inputs that wait, up to its size; a single caller never waits for others. `encoder.py` runs the model.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from retrieval.errors import Overloaded

Embed = Callable[[NDArray[np.float32]], NDArray[np.float32]]
_Waiting = tuple[NDArray[np.float32], "asyncio.Future[NDArray[np.float32]]"]


class Batcher:
    """Collects single inputs into batches for `embed`, which runs on its own thread. It belongs to one event loop."""

    def __init__(self, embed: Embed, *, max_batch: int, max_waiting: int) -> None:
        self._embed = embed
        self._max_batch = max_batch
        self._max_waiting = max_waiting
        self._waiting: deque[_Waiting] = deque()
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="encoder")
        self._runner: asyncio.Task[None] | None = None

    async def embed(self, pixels: NDArray[np.float32]) -> NDArray[np.float32]:
        """Embed one input [3, h, w] into [d]. Raises Overloaded immediately if too many inputs wait already."""
        if len(self._waiting) >= self._max_waiting:  # cancelled callers must not count as waiting
            self._waiting = deque(entry for entry in self._waiting if not entry[1].done())
        if len(self._waiting) >= self._max_waiting:
            raise Overloaded(f"{self._max_waiting} images wait for the model already: try again later")
        future: asyncio.Future[NDArray[np.float32]] = asyncio.get_running_loop().create_future()
        self._waiting.append((pixels, future))
        if self._runner is None or self._runner.done():
            self._runner = asyncio.create_task(self._run())
        return await future

    async def close(self) -> None:
        """Answer all waiting callers, then stop the thread."""
        if self._runner is not None:
            await self._runner
        self._thread.shutdown()

    async def _run(self) -> None:
        while batch := self._take():
            futures = [future for _, future in batch]
            try:
                inputs = np.stack([pixels for pixels, _ in batch])
                embeddings = await asyncio.get_running_loop().run_in_executor(self._thread, self._embed, inputs)
                if len(embeddings) != len(batch):
                    raise RuntimeError(f"the model returned {len(embeddings)} embeddings for {len(batch)} inputs")
            except Exception as error:  # noqa: BLE001 - every caller of the batch must get the error, none may hang
                for future in futures:
                    if not future.done():
                        future.set_exception(error)
                continue
            for future, embedding in zip(futures, embeddings, strict=True):
                if not future.done():
                    future.set_result(embedding)

    def _take(self) -> list[_Waiting]:
        """Remove and return the next batch, without the inputs of cancelled callers."""
        batch: list[_Waiting] = []
        while self._waiting and len(batch) < self._max_batch:
            entry = self._waiting.popleft()
            if not entry[1].done():
                batch.append(entry)
        return batch
