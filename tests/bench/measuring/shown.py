"""Progress of a benchmark on stderr: what it does now, at most once in two seconds."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

_EVERY_S = 2.0


class Shown:
    """Lines with the seconds since the start. For one thread."""

    def __init__(self) -> None:
        self._started = self._last = time.monotonic()

    def line(self, text: str) -> None:
        """Write a line."""
        self._last = time.monotonic()
        print(f"[{self._last - self._started:4.0f} s] {text}", file=sys.stderr, flush=True)

    def watch(self, task: str) -> Callable[[int, int], None]:
        """Return a function that is called with the parts done and all parts, and writes a line now and then."""

        def progress(done: int, total: int) -> None:
            if time.monotonic() - self._last >= _EVERY_S:
                self.line(f"{task}: {done:,} of {total:,}")

        return progress
