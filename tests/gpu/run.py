"""Where and how much a part of `check_gpu.py` measures."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Run:
    """The device, and whether sizes are small, for a test of the script."""

    device: str
    small: bool

    def size(self, whole: int, small: int) -> int:
        """Return the size of something."""
        return small if self.small else whole


class NotInstalled(Exception):
    """A part needs what this machine does not have."""


def per_second(call: Callable[[], object], seconds: float) -> float:
    """Return how often a call can be made in a second, after two that do not count."""
    call()
    call()
    began, n_calls = time.monotonic(), 0
    while time.monotonic() - began < seconds or not n_calls:
        call()
        n_calls += 1
    return n_calls / (time.monotonic() - began)
