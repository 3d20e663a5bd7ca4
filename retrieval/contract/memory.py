"""Shares out the memory that images take while they are decoded, among all threads of a process.

`preprocessing.py` foretells the memory of an image; each caller that decodes takes it here first. Small images have a
share of their own, so that they do not wait for large ones.
"""

import contextlib
import threading
from collections import deque
from collections.abc import Iterator

from retrieval.contract.limits import ImageLimits


class MemoryBudget:
    """Memory that several threads share. Safe for threads, which get it in order."""

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


_SMALL, _LARGE = MemoryBudget(), MemoryBudget()


@contextlib.contextmanager
def image_memory(n_bytes: int, limits: ImageLimits, *, is_small: bool) -> Iterator[None]:
    """Hold the memory of one image for the block; wait until it is free. No image holds more than there is."""
    budget, total = (_SMALL, limits.small_bytes) if is_small else (_LARGE, limits.largest_bytes)
    with budget.taken(min(n_bytes, total), total):
        yield
