"""Reads the bytes of an image from a path or URL. Imports nothing slow, because client commands use it too."""

from dataclasses import dataclass

from retrieval.contract.files import read_image
from retrieval.contract.limits import ImageLimits
from retrieval.contract.sources import check_source


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
    return read_image(uri, limits.image_bytes, roots=limits.roots)
