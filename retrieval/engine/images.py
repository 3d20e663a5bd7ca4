"""Reading the images of items: their bytes, their pixels, and the reason if an image cannot be used."""

from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path

import fsspec
import numpy as np
from numpy.typing import NDArray

from retrieval.contract.canonical import digest_bytes
from retrieval.contract.limits import ImageLimits
from retrieval.contract.manifest import Item
from retrieval.errors import ImageTooLarge, InvalidImage, InvalidInput


@dataclass(frozen=True, slots=True)
class ReadImage:
    """A usable image: the row of its item, the digest of its bytes, its prepared pixels [3, h, w] float32."""

    row: int
    digest: str
    pixels: NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Failure:
    """An item whose image cannot be used, and the reason."""

    item_id: str
    reason: str


def read_bytes(uri: str, limits: ImageLimits) -> bytes:
    """Read the bytes at a path or URL, at most one more than `limits.image_bytes`.

    Raises InvalidImage if nothing can be read, ImageTooLarge if there are too many bytes.
    """
    try:
        # fsspec would interpret `::`, [ and * in a local path
        local = uri.startswith("file:///")
        with Path(uri.removeprefix("file://")).open("rb") if local else fsspec.open(uri, "rb") as file:
            data = bytes(file.read(limits.image_bytes + 1))
    except (OSError, ValueError, ImportError) as error:  # ImportError: the protocol's package is not installed
        raise InvalidImage(f"{uri} cannot be read: {error}") from error
    if len(data) > limits.image_bytes:
        raise ImageTooLarge(f"{uri} has more than {limits.image_bytes:,} bytes, the limit")
    return data


def read_images(
    items: Sequence[Item],
    prepare: Callable[[bytes], NDArray[np.float32]],
    *,
    limits: ImageLimits,
    pool: Executor,
) -> tuple[list[ReadImage], list[Failure]]:
    """Read and prepare the images of all items; return the usable ones and the failures, in the order of the items."""

    def read(row: int, item: Item) -> ReadImage | Failure:
        try:
            data = read_bytes(item.uri, limits)
            return ReadImage(row, digest_bytes(data), prepare(data))
        except InvalidInput as error:
            return Failure(item.id, str(error))

    results = list(pool.map(read, range(len(items)), items))
    return [r for r in results if isinstance(r, ReadImage)], [r for r in results if isinstance(r, Failure)]
