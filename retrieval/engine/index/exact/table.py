"""Passes the arrays of an index to compiled code by address, as one table.

Passing twenty arrays would cost seven microseconds a call. The arrays must be kept as long as the table is used.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from retrieval.compiled import compiled
from retrieval.engine.index.exact.instructions import BLOCK, GROUP, array_at, pointer_to
from retrieval.engine.index.exact.lists import Lists

Table = NDArray[np.int64]


class Gallery(NamedTuple):
    """The encoded gallery, as `layout.encode` makes it; n vectors in b = ceil(n / 64) blocks of g groups.

    blocks: [b, g, 64, 4] uint8, aligned to 64. codes: [n, c] uint8, c a multiple of 64; 0 without level 2. offsets: [n]
    float32, or [0] without an offset column. rows: [n, D], the vectors as they are stored: float32, or uint16 that are
    the bits of float16. basis: [p, d] float64. steps: [p, 2] float64. bounds: [10] float64: those of `Blocks`, then the
    step, the largest error and the largest norm of `codes`, and the largest norm of a row.
    """

    blocks: NDArray[np.uint8]
    codes: NDArray[np.uint8]
    offsets: NDArray[np.float32]
    rows: NDArray[np.float32] | NDArray[np.uint16]
    basis: NDArray[np.float64]
    steps: NDArray[np.float64]
    bounds: NDArray[np.float64]


class Room(NamedTuple):
    """Room for the work of one thread.

    queries: [h] int32, the number of the query of each hit; keys: [h] int64, its score and its row, see `read_keys`.
    candidates: [4, ROOM] int32, the positions that have passed level 1.
    """

    queries: NDArray[np.int32]
    keys: NDArray[np.int64]
    candidates: NDArray[np.int32]


def table_of(*arrays: NDArray[Any]) -> Table:
    """Return a row for each array: its address and its first two sizes."""
    return np.array([[array.ctypes.data, *array.shape, 1][:3] for array in arrays], np.int64)


@compiled
def opened(table, kind_of_rows):
    """Return the gallery, the lists and the order of `table_of(*gallery, *lists, order)`.

    kind_of_rows: an array of the type of its rows; arrays that may not be written would be another type.
    """
    n_lists = table[7, 1]
    gallery = Gallery(
        array_at(pointer_to(table[0, 0]), (table[0, 1], table[0, 2], BLOCK, 4), np.uint8),
        array_at(pointer_to(table[1, 0]), (table[1, 1], table[1, 2]), np.uint8),
        array_at(pointer_to(table[2, 0]), (table[2, 1],), np.float32),
        array_at(pointer_to(table[3, 0]), (table[3, 1], table[3, 2]), kind_of_rows.dtype),
        array_at(pointer_to(table[4, 0]), (table[4, 1], table[4, 2]), np.float64),
        array_at(pointer_to(table[5, 0]), (table[5, 1], 2), np.float64),
        array_at(pointer_to(table[6, 0]), (table[6, 1],), np.float64),
    )
    lists = Lists(
        array_at(pointer_to(table[7, 0]), (n_lists, table[7, 2]), np.float32),
        array_at(pointer_to(table[8, 0]), (4, n_lists), np.float64),
        array_at(pointer_to(table[9, 0]), (2, n_lists), np.float64),
        array_at(pointer_to(table[10, 0]), (n_lists + 1,), np.int64),
        array_at(pointer_to(table[11, 0]), (n_lists + 1,), np.int64),
        array_at(pointer_to(table[12, 0]), (2, table[12, 2]), np.float32),
    )
    return gallery, lists, array_at(pointer_to(table[13, 0]), (table[13, 1],), np.int32)


@compiled
def opened_room(table):
    """Return the room of `table_of(*room)`."""
    n = table[0, 1]
    return Room(
        array_at(pointer_to(table[0, 0]), (n,), np.int32),
        array_at(pointer_to(table[1, 0]), (n,), np.int64),
        array_at(pointer_to(table[2, 0]), (GROUP, table[2, 2]), np.int32),
    )
