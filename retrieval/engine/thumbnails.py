"""Small pictures of images, for reports."""

import io

from retrieval.contract.limits import ImageLimits
from retrieval.contract.preprocessing import decoded
from retrieval.engine.images import read_bytes
from retrieval.errors import InvalidInput

SIDE = 72
_QUALITY = 80


def thumbnail(uri: str, limits: ImageLimits) -> bytes:
    """Return the image as a JPEG of at most 72 x 72 pixels, some 2 kB; b"" if it cannot be read any more."""
    try:
        with decoded(read_bytes(uri, limits), limits=limits) as image:
            image.thumbnail((SIDE, SIDE))
    except InvalidInput:
        return b""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=_QUALITY)
    return buffer.getvalue()
