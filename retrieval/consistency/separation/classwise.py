"""Tiles of scores reduced class by class, for figures about classes and pairs of classes in bounded memory."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

# A block of classes by all classes holds at most so many numbers.
_MAX_CELLS = 1 << 22


def class_bounds(codes: NDArray[np.int64], n_classes: int) -> NDArray[np.int64]:
    """Return where each class starts among the sorted codes, and the end: [T + 1] int64."""
    return np.searchsorted(codes, np.arange(n_classes + 1)).astype(np.int64)


def class_blocks(bounds: NDArray[np.int64], *, tile: int) -> Iterator[tuple[int, int]]:
    """Yield (first, end) of consecutive classes that have at most `tile` images, or of a single larger class.

    No block has more classes than keep [block, T] small.
    """
    n_classes = len(bounds) - 1
    most = max(1, _MAX_CELLS // n_classes)
    first = 0
    while first < n_classes:
        end = int(np.searchsorted(bounds, bounds[first] + tile, side="right")) - 1
        end = min(max(end, first + 1), first + most, n_classes)
        yield first, end
        first = end


def slices(start: int, stop: int, tile: int) -> Iterator[slice]:
    """Yield consecutive slices of at most `tile` rows that cover start to stop."""
    for row in range(start, stop, tile):
        yield slice(row, min(row + tile, stop))


def starts_in(codes: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the first place of each class among sorted codes of a tile, and the class: two [c] int64."""
    places = np.flatnonzero(np.diff(codes, prepend=-1)).astype(np.int64)
    return places, codes[places]
