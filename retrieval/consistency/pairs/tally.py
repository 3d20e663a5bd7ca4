"""Counts of keys in memory that grows with the different keys only: for pairs of classes, of which most never occur."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Counts = NDArray[np.int64]

_MAX_BUFFERED = 1 << 20  # keys kept before equal ones are joined


class PairTally:
    """Counts of the keys that were added."""

    def __init__(self) -> None:
        self._keys = np.empty(0, dtype=np.int64)
        self._counts = np.empty(0, dtype=np.int64)
        self._buffer: list[Counts] = []
        self._buffered = 0

    def add(self, keys: Counts) -> None:
        """Count each of the keys [p] once."""
        self._buffer.append(keys)
        self._buffered += len(keys)
        if self._buffered > _MAX_BUFFERED:
            self._join()

    def counts(self) -> tuple[Counts, Counts]:
        """Return the different keys, ascending, and their counts: two [e] int64."""
        self._join()
        return self._keys, self._counts

    def _join(self) -> None:
        new, counts = np.unique(np.concatenate([np.empty(0, dtype=np.int64), *self._buffer]), return_counts=True)
        keys, places = np.unique(np.concatenate([self._keys, new]), return_inverse=True)
        totals = np.zeros(len(keys), dtype=np.int64)
        np.add.at(totals, places, np.concatenate([self._counts, counts]))
        self._keys, self._counts = keys, totals
        self._buffer, self._buffered = [], 0
