"""Reads the bytes of an image from a path or URL. Imports nothing slow, because client commands use it too."""

from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from retrieval.contract.limits import ImageLimits
from retrieval.contract.sources import check_source
from retrieval.errors import ImageTooLarge, InvalidImage


@dataclass(frozen=True, slots=True)
class Failure:
    """An item whose image cannot be used, and the reason."""

    item_id: str
    reason: str


def read_bytes(uri: str, limits: ImageLimits) -> bytes:
    """Read the bytes at a path or URL, at most one more than `limits.image_bytes`.

    Raises InvalidImage if nothing can be read, ImageTooLarge if there are too many bytes, SourceNotAllowed as
    `check_source` does for `limits.roots`.
    """
    check_source(uri, limits.roots)
    try:
        with _opened(uri) as file:
            data = bytes(file.read(limits.image_bytes + 1))
    except (OSError, ValueError, ImportError) as error:  # ImportError: the protocol's package is not installed
        raise InvalidImage(f"{uri} cannot be read: {error}") from error
    if len(data) > limits.image_bytes:
        raise ImageTooLarge(f"{uri} has more than {limits.image_bytes:,} bytes, the limit")
    return data


def _opened(uri: str) -> AbstractContextManager[IO[Any]]:
    """Open a local file by its literal name, because fsspec would interpret `::`, [ and *; use fsspec for URLs."""
    if uri.startswith("file:///") or not ("://" in uri or "::" in uri):
        return Path(uri.removeprefix("file://")).open("rb")
    import fsspec  # slow to import

    opened: AbstractContextManager[IO[Any]] = fsspec.open(uri, "rb")
    return opened
