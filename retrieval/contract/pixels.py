"""Turns a decoded image of any mode into 8-bit RGB, in rows, so that no copy of a whole image is larger than it.

The rules for a mode are here; opening, limits and orientation are in `preprocessing.py`.
"""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from PIL import Image

_ROW_PIXELS = 1_000_000  # pixels that are converted at a time
_OVERSHOOT = 2.0  # resampled floats exceed their white; up to this times 1 or 255, that is still their white
_DEPTHS = (
    8,
    12,
    16,
    24,
    31,
    32,
)  # bits of cameras and file formats: white is the largest number of the first that fits
_PHOTOMETRIC, _SAMPLE_FORMAT = 262, 339  # tags of a TIFF


def to_rgb(image: Image.Image, background: tuple[int, int, int]) -> Image.Image:
    """Convert an image to RGB: 16-bit, integer and float grey are scaled, transparent pixels get `background`."""
    if _is_deep(image):
        image = _grey(image)
    if not image.has_transparency_data:
        return image if image.mode == "RGB" else image.convert("RGB")
    flat = Image.new("RGB", image.size, background)
    for top, part in _parts(image):
        rgba = part.convert("RGBA")
        flat.paste(rgba, (0, top), mask=rgba.getchannel("A"))
    return flat


def scale_transparency(image: Image.Image, bits: int) -> None:
    """Bring the transparent colour of a PNG of `bits` bits a sample to the 8 bits that its pixels were decoded to."""
    colour = image.info.get("transparency")
    if image.mode == "L" and isinstance(colour, int) and bits < 8:
        image.info["transparency"] = colour * 255 // (2**bits - 1)
    elif image.mode == "RGB" and isinstance(colour, tuple) and bits == 16:
        image.info["transparency"] = tuple(level >> 8 for level in colour)


def note_samples(image: Image.Image) -> None:
    """Note how the deep grey of a TIFF is stored, for `to_rgb`: Pillow converts it for 8 bits only."""
    tags = getattr(image, "tag_v2", None)
    if tags is not None and _is_deep(image):
        image.info["white_is_zero"] = tags.get(_PHOTOMETRIC) == 0
        image.info["unsigned"] = tags.get(_SAMPLE_FORMAT, (1,)) == (1,)


def bytes_per_pixel(image: Image.Image) -> int:
    """Return what decoding and converting this image takes at most, in bytes a pixel, from its mode and format."""
    own = 2 if image.mode.startswith("I;16") else 1 if image.mode in ("1", "L", "P") else 4
    rgb = 0 if image.mode == "RGB" else 4
    grey = 1 if _is_deep(image) else 0
    # libjpeg keeps the coefficients of a progressive JPEG, the libraries of these formats their own picture
    decoder = 8 if image.format in ("WEBP", "AVIF", "HEIF") or "progressive" in image.info else 0
    return 2 * own + rgb + grey + decoder  # twice: a rotated image is a copy


def _is_deep(image: Image.Image) -> bool:
    return image.mode.startswith("I") or image.mode == "F"


def _parts(image: Image.Image) -> Iterator[tuple[int, Image.Image]]:
    width, height = image.size
    n_rows = max(1, _ROW_PIXELS // width)
    for top in range(0, height, n_rows):
        yield top, image.crop((0, top, width, min(top + n_rows, height)))


def _grey(image: Image.Image) -> Image.Image:
    """Scale grey of more than 8 bits to 8 bits; the conversion of Pillow would clip at 255."""
    scale = 255.0 / _white(image)
    transparent = image.info.get("transparency")
    width, height = image.size
    grey = np.empty((height, width), dtype=np.uint8)
    opaque = np.full((height, width), 255, dtype=np.uint8) if isinstance(transparent, int) else None
    for top, values in _values(image):
        rows = slice(top, top + len(values))
        grey[rows] = _LEVELS[values] if values.dtype == np.uint16 else _levels(values, scale)
        if opaque is not None:
            opaque[rows][values == transparent] = 0
    if image.info.get("white_is_zero"):
        np.subtract(255, grey, out=grey)
    if opaque is None:
        return Image.fromarray(grey)
    return Image.merge("LA", (Image.fromarray(grey), Image.fromarray(opaque)))


def _levels(values: NDArray[np.generic], scale: float) -> NDArray[np.uint8]:
    numbers = np.nan_to_num(values.astype(np.float64), posinf=np.inf, neginf=-np.inf)
    return np.clip(numbers * scale, 0, 255).round().astype(np.uint8)


_LEVELS = _levels(np.arange(65_536), 255.0 / 65_535.0)  # of every 16-bit grey: a table is ten times as fast


def _values(image: Image.Image) -> Iterator[tuple[int, NDArray[np.generic]]]:
    for top, part in _parts(image):
        values = np.asarray(part)
        yield top, values.view(np.uint32) if image.mode == "I" and image.info.get("unsigned") else values


def _white(image: Image.Image) -> float:
    """Return the value of white. The mode of 32-bit integers and floats does not give it, so their values do."""
    if image.mode.startswith("I;16"):
        return 65_535.0
    largest = max(_largest(values) for _, values in _values(image))
    if image.mode == "F":
        for white in (1.0, 255.0):
            if largest <= white * _OVERSHOOT:
                return white
    return next((2.0**bits - 1 for bits in _DEPTHS if largest <= 2.0**bits), largest)


def _largest(values: NDArray[np.generic]) -> float:
    finite = values[np.isfinite(values)]
    return float(finite.max(initial=0))
