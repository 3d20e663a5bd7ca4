"""Turns the bytes of an image into the model's input, in the same way in training, indexing and serving.

Decoding, orientation, resizing and normalisation are here; batching belongs to the encoder, augmentation to training.
There is one decoder (Pillow) and one path, because two decoders of one JPEG differ by more than a threshold tolerates.
"""

import io
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from retrieval.contract.documents import parse
from retrieval.contract.limits import DEFAULT_LIMITS, ImageLimits
from retrieval.errors import CorruptArtifact, ImageTooLarge, InvalidImage

# `ImageLimits` replaces Pillow's own limit, which only warns and cannot be set for a single call.
Image.MAX_IMAGE_PIXELS = None
Image.init()  # registers every format; `formats=` below needs them registered

_RESAMPLING = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
_MAX_SIDE = 16_384  # of the model's input: a larger one is an error and would take gigabytes an image
_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")


@dataclass(frozen=True, slots=True, kw_only=True)
class Preprocessing:
    """The parameters that turn a decoded image into the model's input; part of every bundle.

    `resize`: shorter side in pixels after resizing; `crop`: side in pixels of the centre square, at most `resize`.
    `mean`, `std`: per channel (R, G, B), in units of 0..255: the input is `(pixel - mean) / std`.
    `background`: RGB colour under transparent pixels.
    """

    resize: int
    crop: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    interpolation: str = "bilinear"
    background: tuple[int, int, int] = (255, 255, 255)

    def __post_init__(self) -> None:
        if not 1 <= self.crop <= self.resize:
            raise CorruptArtifact(f"preprocessing: expected 1 <= crop <= resize, found {self.crop} and {self.resize}")
        if self.resize > _MAX_SIDE:
            raise CorruptArtifact(f"preprocessing: expected resize to be at most {_MAX_SIDE}, found {self.resize}")
        if self.interpolation not in _RESAMPLING:
            raise CorruptArtifact(
                f"preprocessing: interpolation is one of {sorted(_RESAMPLING)}, not {self.interpolation!r}"
            )
        if not len(self.mean) == len(self.std) == len(self.background) == 3:
            raise CorruptArtifact("preprocessing: expected three values each for mean, std and background")
        if any(s <= 0 for s in self.std):
            raise CorruptArtifact(f"preprocessing: every std must be positive, found {self.std}")

    def to_json(self) -> dict[str, Any]:
        """Return a plain dictionary that `from_json` turns back into an equal value."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "Preprocessing":
        """Read the dictionary of `to_json`. Raises CorruptArtifact if a field is missing or unknown."""
        return parse(cls, value, "preprocessing of a bundle")


def decode(
    data: bytes, *, limits: ImageLimits = DEFAULT_LIMITS, background: tuple[int, int, int] = (255, 255, 255)
) -> Image.Image:
    """Decode an image to upright 8-bit RGB.

    Animations give their first frame, EXIF rotation is applied, transparent pixels get `background`, CMYK, palette and
    16-bit images are converted. Raises ImageTooLarge before decoding if a limit is exceeded, InvalidImage if the bytes
    are empty, of no known format, or truncated.
    """
    if not data:
        raise InvalidImage("expected an image, found 0 bytes")
    if len(data) > limits.image_bytes:
        raise ImageTooLarge(
            f"the image has {len(data):,} bytes, the limit is {limits.image_bytes:,}: send a smaller one"
        )
    try:
        image = Image.open(io.BytesIO(data), formats=_FORMATS)
        _check_size(image, limits)
        image.load()
        return _flatten(_to_eight_bits(ImageOps.exif_transpose(image)), background)
    except (ImageTooLarge, InvalidImage):
        raise
    except UnidentifiedImageError as error:
        raise InvalidImage(
            f"expected one of {', '.join(_FORMATS)}, found {len(data):,} bytes of something else"
        ) from error
    except Exception as error:  # on broken files Pillow's plug-ins raise OSError, SyntaxError, struct.error and more
        raise InvalidImage(f"the image is damaged or truncated ({len(data):,} bytes): {error}") from error


def to_array(image: Image.Image, preprocessing: Preprocessing) -> NDArray[np.float32]:
    """Resize, centre-crop and normalise `image` (RGB): [3, crop, crop] float32."""
    width, height = image.size
    scale = preprocessing.resize / min(width, height)
    # only the visible part is resized: an image of 1 x 20,000 pixels must not become a gigabyte
    visible = preprocessing.crop / scale
    left, top = max(0.0, (width - visible) / 2), max(0.0, (height - visible) / 2)
    box = (left, top, width - left, height - top)
    side = preprocessing.crop
    resized = image.resize((side, side), _RESAMPLING[preprocessing.interpolation], box=box, reducing_gap=None)
    pixels = np.asarray(resized, dtype=np.float32)
    normalised = (pixels - np.asarray(preprocessing.mean, np.float32)) / np.asarray(preprocessing.std, np.float32)
    return np.ascontiguousarray(normalised.transpose(2, 0, 1))


def preprocess(
    data: bytes, preprocessing: Preprocessing, *, limits: ImageLimits = DEFAULT_LIMITS
) -> NDArray[np.float32]:
    """Turn the bytes of an image into the model's input: [3, crop, crop] float32. Raises as `decode` does."""
    return to_array(decode(data, limits=limits, background=preprocessing.background), preprocessing)


def _check_size(image: Image.Image, limits: ImageLimits) -> None:
    width, height = image.size
    if width * height > limits.pixels:
        raise ImageTooLarge(
            f"the image has {width} x {height} pixels, the limit is {limits.pixels:,}: send a smaller one"
        )
    if width < 1 or height < 1:
        raise InvalidImage(f"expected at least one pixel, found {width} x {height}")


def _to_eight_bits(image: Image.Image) -> Image.Image:
    """Scale 16-bit grey to 8 bits; the conversion of Pillow would clip at 255."""
    if image.mode.startswith("I") or image.mode == "F":
        values = np.asarray(image, dtype=np.float64)
        # the mode of 32-bit integers and floats does not give their range, so use the values
        is_16_bit = image.mode.startswith("I;16") or values.max(initial=0.0) > 255
        top = 65535.0 if is_16_bit else 255.0
        return Image.fromarray(np.clip(values * (255.0 / top), 0, 255).round().astype(np.uint8))
    return image


def _flatten(image: Image.Image, background: tuple[int, int, int]) -> Image.Image:
    if not image.has_transparency_data:
        return image.convert("RGB")
    rgba = image.convert("RGBA")
    flat = Image.new("RGB", rgba.size, background)
    flat.paste(rgba, mask=rgba.getchannel("A"))
    return flat
