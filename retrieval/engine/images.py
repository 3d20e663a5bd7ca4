"""Reads the bytes of an image from a path or URL. Imports nothing slow, because client commands use it too."""

from dataclasses import dataclass

from retrieval.contract.files import failing_as, read_file
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
    with failing_as(InvalidImage, f"{uri} cannot be read"):
        data = read_file(uri, limits.image_bytes + 1, roots=limits.roots)
    if len(data) > limits.image_bytes:
        raise ImageTooLarge(f"{uri} has more than {limits.image_bytes:,} bytes, the limit")
    return data
