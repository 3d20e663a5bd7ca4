"""Decides which images are decoded when: small ones never wait for large ones, and memory is shared out.

`contract/preprocessing.py` decodes and foretells the memory and the work of an image. A thread that decodes cannot be
stopped, so the work of one image is bounded there.
"""

import asyncio
import contextlib
import threading
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from retrieval.contract.limits import ImageLimits
from retrieval.contract.preprocessing import OpenedImage, Preprocessing, open_image, to_array
from retrieval.errors import Overloaded

_SMALL_WORK = 25_000_000  # pixels times passes: a photo of 24 megapixels, a quarter of a second of a core
_MAX_LARGE = 16  # large images that wait for a thread; a second of a core each


class MemoryBudget:
    """Memory that the images of a process take while they are decoded. Safe for threads, which get it in order."""

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._taken = 0
        self._queue: deque[object] = deque()

    @contextlib.contextmanager
    def taken(self, n_bytes: int, total: int) -> Iterator[None]:
        """Hold `n_bytes` of `total` for the block; wait until they are free."""
        ticket = object()
        with self._condition:
            self._queue.append(ticket)
            self._condition.wait_for(lambda: self._queue[0] is ticket and self._taken + n_bytes <= total)
            self._queue.popleft()
            self._taken += n_bytes
            self._condition.notify_all()
        try:
            yield
        finally:
            with self._condition:
                self._taken -= n_bytes
                self._condition.notify_all()


# One each for all threads of this process that decode: small images must not wait for the memory of large ones.
_SMALL, _LARGE = MemoryBudget(), MemoryBudget()


def prepare(data: bytes, preprocessing: Preprocessing, limits: ImageLimits) -> NDArray[np.float32]:
    """Turn the bytes of an image into the model's input, as `preprocess` does, within the memory of the process."""
    return _decoded(open_image(data, limits), preprocessing, limits)


class Decoders:
    """Threads that decode the images of queries: some for small images and some for large ones. Used from one loop."""

    def __init__(self, threads: int) -> None:
        self._small = ThreadPoolExecutor(threads, thread_name_prefix="decode")
        self._large = ThreadPoolExecutor(max(1, threads // 2), thread_name_prefix="decode-large")
        self._n_large = 0

    async def prepare(self, data: bytes, preprocessing: Preprocessing, limits: ImageLimits) -> NDArray[np.float32]:
        """Turn the bytes of an image into the model's input. Raises as `preprocess` does, and Overloaded."""
        loop = asyncio.get_running_loop()
        result = await loop.run_in_executor(self._small, _prepare_if_small, data, preprocessing, limits)
        if not isinstance(result, OpenedImage):
            return result
        if self._n_large >= _MAX_LARGE:
            raise Overloaded(
                f"{_MAX_LARGE} large images wait to be decoded already: try again later, or send smaller ones"
            )
        self._n_large += 1
        running = loop.run_in_executor(self._large, _decoded, result, preprocessing, limits)
        running.add_done_callback(self._end_large)
        return await running

    def _end_large(self, _: "asyncio.Future[NDArray[np.float32]]") -> None:
        self._n_large -= 1


def _prepare_if_small(
    data: bytes, preprocessing: Preprocessing, limits: ImageLimits
) -> NDArray[np.float32] | OpenedImage:
    opened = open_image(data, limits)
    return _decoded(opened, preprocessing, limits) if _is_small(opened, limits) else opened


def _is_small(opened: OpenedImage, limits: ImageLimits) -> bool:
    return opened.work <= _SMALL_WORK and opened.peak_bytes <= limits.small_bytes


def _decoded(opened: OpenedImage, preprocessing: Preprocessing, limits: ImageLimits) -> NDArray[np.float32]:
    is_small = _is_small(opened, limits)
    budget, total = (_SMALL, limits.small_bytes) if is_small else (_LARGE, limits.largest_bytes)
    with budget.taken(opened.peak_bytes, total):
        return to_array(opened.decode(preprocessing.background), preprocessing)
