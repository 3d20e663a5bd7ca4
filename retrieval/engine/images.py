"""Reading the bytes of an image from a path or URL. Apart from `items.py`, so that clients need no pyarrow."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from retrieval.errors import ImageTooLarge, InvalidImage

if TYPE_CHECKING:
    from retrieval.contract.preprocessing import ImageLimits


def read_bytes(uri: str, limits: "ImageLimits") -> bytes:
    """Read the bytes at a path or URL, at most one more than `limits.image_bytes`.

    Raises InvalidImage if nothing can be read, ImageTooLarge if there are too many bytes.
    """
    try:
        with _opened(uri) as file:
            data = bytes(file.read(limits.image_bytes + 1))
    except (OSError, ValueError, ImportError) as error:  # ImportError: the protocol's package is not installed
        raise InvalidImage(f"{uri} cannot be read: {error}") from error
    if len(data) > limits.image_bytes:
        raise ImageTooLarge(f"{uri} has more than {limits.image_bytes:,} bytes, the limit")
    return data


def _opened(uri: str) -> Any:
    if "://" not in uri and "::" not in uri:
        return Path(uri).open("rb")
    if uri.startswith("file:///"):  # a local path is taken as it is: `::`, [ and * mean something to fsspec
        return Path(uri.removeprefix("file://")).open("rb")
    import fsspec  # only for what is not a local file: it is slow to import

    return fsspec.open(uri, "rb")
