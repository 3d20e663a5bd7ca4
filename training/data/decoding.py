"""Images as the encoder sees them: fetched from a path or URL and decoded by the production code.

Decides what an unreadable image is and when there are too many of them.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from retrieval.contract.files import read_image
from retrieval.contract.limits import DEFAULT_LIMITS
from retrieval.contract.manifest import Item
from retrieval.contract.preprocessing import Preprocessing, preprocess
from retrieval.errors import RetrievalError, TooManyFailures

Progress = Callable[[int, int], None]

_STRETCH = 64  # images decoded and held at a time: enough work for every thread, little memory


@dataclass(frozen=True, slots=True)
class Unreadable:
    """An item whose image could not be decoded, and why."""

    item: Item
    reason: str


@dataclass(frozen=True, slots=True, eq=False)
class PreprocessedItems:
    """A chunk of images. pixels: [m, 3, crop, crop] float32, of `items`; unreadable: the skipped items of the chunk."""

    pixels: NDArray[np.float32]
    items: tuple[Item, ...]
    unreadable: tuple[Unreadable, ...]


def read_items(
    items: Sequence[Item], preprocessing: Preprocessing, *, max_unreadable: float, progress: Progress
) -> Iterator[PreprocessedItems]:
    """Read the items as the encoder sees them, in order, a chunk at a time, and report those that cannot be read.

    `progress` gets the number of items done and their total. Raises TooManyFailures as soon as the share of unreadable
    items exceeds `max_unreadable`.
    """
    n_unreadable = 0
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for start in range(0, len(items), _STRETCH):
            stretch = items[start : start + _STRETCH]
            results = list(pool.map(lambda item: read_item(item, preprocessing), stretch))
            unreadable = tuple(result for result in results if isinstance(result, Unreadable))
            n_unreadable += len(unreadable)
            if unreadable:
                refuse_too_many(n_unreadable, len(items), max_unreadable, unreadable[-1])
            read = [(i, r) for i, r in zip(stretch, results, strict=True) if not isinstance(r, Unreadable)]
            pixels = np.empty((len(read), 3, preprocessing.crop, preprocessing.crop), dtype=np.float32)
            for row, (_, array) in enumerate(read):
                pixels[row] = array
            yield PreprocessedItems(pixels, tuple(item for item, _ in read), unreadable)
            progress(start + len(stretch), len(items))


def read_item(item: Item, preprocessing: Preprocessing) -> NDArray[np.float32] | Unreadable:
    """Read one item as the encoder sees it, [3, crop, crop] float32, or return why it cannot be read."""
    try:
        return preprocess(read_image(item.uri, DEFAULT_LIMITS.image_bytes), preprocessing)
    except RetrievalError as error:
        return Unreadable(item, str(error))


def refuse_too_many(n_unreadable: int, n_items: int, max_unreadable: float, last: Unreadable) -> None:
    """Raise TooManyFailures if more than the share `max_unreadable` of the items is unreadable."""
    if n_unreadable > max_unreadable * n_items:
        raise TooManyFailures(
            f"{n_unreadable} images cannot be read so far, at most {max_unreadable:.1%} of {n_items} may be; the last "
            f"is {last.item.uri}: {last.reason}. Repair or remove them, or raise max_unreadable"
        )
