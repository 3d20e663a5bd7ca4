"""The matrix of all scores, cut into tiles that bound the memory, and how threads share the tiles.

What is counted in a tile is left to the callers.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from retrieval.consistency.pairs.products import one_thread_a_product
from retrieval.consistency.pairs.vectors import LabelledVectors, Progress
from retrieval.errors import InvalidInput

Tile = tuple[slice, slice]
Counts = NDArray[np.int64]

# Rows and columns of a tile, whose scores take 4 MiB. Stored shards were cut into these tiles: after a change, those of
# earlier versions are refused when they are added (`OperatingCurves`).
TILE = 1024


def slices(start: int, stop: int) -> Iterator[slice]:
    """Cut the rows from start to stop into pieces of at most TILE."""
    for begin in range(start, stop, TILE):
        yield slice(begin, min(begin + TILE, stop))


def tiles_of(vectors: LabelledVectors, shard: tuple[int, int] = (0, 1)) -> list[Tile]:
    """Return the (rows, columns) of the tiles that belong to shard (index, count).

    The tiles of one set are those on and above its diagonal; two sets have all of them, rounds those of each round.

    Raises:
        InvalidInput: the shard does not exist.
    """
    index, count = shard
    if not 0 <= index < count:
        raise InvalidInput(f"expected 0 <= shard index < count, found shard {shard}")
    whole = slice(0, len(vectors.codes)), slice(0, len(vectors.gallery_codes))
    every = [
        (rows, columns)
        for queries, items in vectors.rounds or (whole,)
        for rows in slices(queries.start, queries.stop)
        for columns in slices(rows.start if vectors.one_set else items.start, items.stop)
    ]
    return every[index::count]


def sum_over_tiles(
    vectors: LabelledVectors,
    tiles: Sequence[Tile],
    count: Callable[[Counts, NDArray[np.float32], Tile], None],
    shape: tuple[int, ...],
    *,
    threads: int | None,
    progress: Progress | None = None,
) -> Counts:
    """Call count(counts, scores [p, q] float32, tile) for each tile, which adds to the counts, and return their sum.

    Each thread has counts of its own; threads: None for as many as this process may use. The scores are reused for the
    next tile. The products do not depend on the number of threads: the matrix library gets one for each of ours.

    Raises:
        InvalidInput: threads below 1.
    """
    if threads is not None and threads < 1:
        raise InvalidInput(f"threads must be at least 1, found {threads}")
    n_threads = max(1, min(threads or len(os.sched_getaffinity(0)), len(tiles)))
    waiting, lock, done = iter(tiles), threading.Lock(), 0

    def work(_: int) -> Counts:
        nonlocal done
        counts = np.zeros(shape, dtype=np.int64)
        buffer = np.empty(0, dtype=np.float32)
        while True:
            with lock:
                tile = next(waiting, None)
            if tile is None:
                return counts
            query, gallery = vectors.query[tile[0]], vectors.gallery[tile[1]]
            size = len(query) * len(gallery)
            if len(buffer) < size:
                buffer = np.empty(size, dtype=np.float32)
            scores = buffer[:size].reshape(len(query), len(gallery))
            np.matmul(query, gallery.T, out=scores)
            count(counts, scores, tile)
            with lock:
                done += 1
                if progress is not None:
                    progress(done, len(tiles))

    with one_thread_a_product:
        if n_threads == 1:
            return work(0)
        with ThreadPoolExecutor(n_threads) as pool:
            total, *others = pool.map(work, range(n_threads))
    for other in others:
        total += other
    return total
