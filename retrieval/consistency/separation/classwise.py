"""Blocks of classes and of rows, to reduce tiles of scores class by class in bounded memory."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from retrieval.consistency.pairs import tiles

# The most numbers in a block of classes by all classes.
_MAX_CELLS = 1 << 22


def class_bounds(codes: NDArray[np.int64], n_classes: int) -> NDArray[np.int64]:
    """Return the start of each class among the sorted codes, and the end: [T + 1] int64."""
    return np.searchsorted(codes, np.arange(n_classes + 1)).astype(np.int64)


def class_blocks(bounds: NDArray[np.int64]) -> Iterator[tuple[int, int]]:
    """Yield (first, end) of consecutive classes that have at most TILE images, or of a single larger class.

    A block never has so many classes that [block, T] becomes large.
    """
    n_classes = len(bounds) - 1
    most = max(1, _MAX_CELLS // n_classes)
    first = 0
    while first < n_classes:
        end = int(np.searchsorted(bounds, bounds[first] + tiles.TILE, side="right")) - 1
        end = min(max(end, first + 1), first + most, n_classes)
        yield first, end
        first = end


def starts_in(codes: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the first place of each class among sorted codes of a tile, and the class: two [c] int64."""
    places = np.flatnonzero(np.diff(codes, prepend=-1)).astype(np.int64)
    return places, codes[places]
