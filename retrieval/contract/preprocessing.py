"""Turns the bytes of an image into the model's input, in the same way in training, indexing and serving.

Decoding, orientation, resizing and normalisation are here; batching belongs to the encoder, augmentation to training.
There is one decoder (Pillow) and one path, because two decoders of one JPEG differ by more than a threshold tolerates.
"""

import contextlib
import io
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, PngImagePlugin, UnidentifiedImageError

from retrieval.contract.formats import HEAD_BYTES, REMEDIES, sniffed
from retrieval.contract.image_files import check_parts, n_scans, without_metadata
from retrieval.contract.limits import DEFAULT_LIMITS, ImageLimits
from retrieval.contract.memory import image_memory
from retrieval.contract.pixels import bytes_per_pixel, note_samples, scale_transparency, to_rgb
from retrieval.errors import CorruptArtifact, ImageTooLarge, InvalidImage

# `ImageLimits` replaces Pillow's own limit, which only warns and cannot be set for a single call.
Image.MAX_IMAGE_PIXELS = None
# Compressed texts of 2 MB unpack to 64 MiB, which nobody reads; a file with more is opened without them.
PngImagePlugin.MAX_TEXT_MEMORY = 1024 * 1024
with contextlib.suppress(ImportError):  # the extra "heif"
    import pillow_heif

    pillow_heif.register_heif_opener()
    pillow_heif.options.DECODE_THREADS = 1  # callers decode several images at a time already
with contextlib.suppress(ImportError):  # a Pillow without AVIF has the plug-in all the same
    from PIL import AvifImagePlugin

    AvifImagePlugin.DEFAULT_MAX_THREADS = 1  # on 64 cores, the stacks of as many threads took half a gigabyte
Image.init()  # registers every format; `formats=` below needs them registered

_RESAMPLING = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
_MAX_SIDE = 16_384  # of the model's input: a larger one is an error and would take gigabytes an image
_ALWAYS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
_FORMATS = (*_ALWAYS, *(name for name in ("AVIF", "HEIF") if name in Image.OPEN))
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_ATTEMPTS = (None, True, False)  # the file itself, then without its metadata, with and without the orientation
_PNG_BITS = 24  # place of the bits a sample in a PNG, whose first chunk has a fixed layout
_SMALL_WORK = 25_000_000  # pixels times passes: a photo of 24 megapixels, a quarter of a second of a core
_RUN_LENGTH_PASSES = 100  # Pillow decodes a run-length BMP in Python, a pixel at a time


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
        from retrieval.contract.documents import parse  # half of the memory of a process that only decodes

        return parse(cls, value, "preprocessing of a bundle")


def decode(
    data: bytes, *, limits: ImageLimits = DEFAULT_LIMITS, background: tuple[int, int, int] = (255, 255, 255)
) -> Image.Image:
    """Decode an image to upright 8-bit RGB.

    Animations give their first frame, EXIF rotation is applied, transparent pixels get `background`, CMYK, palette and
    16-bit images are converted, damaged metadata is ignored. Raises ImageTooLarge before decoding if a limit is
    exceeded, InvalidImage if the bytes are empty, of no known format, or truncated.
    """
    with decoded(data, limits=limits, background=background) as image:
        return image


@contextlib.contextmanager
def decoded(
    data: bytes,
    *,
    limits: ImageLimits = DEFAULT_LIMITS,
    background: tuple[int, int, int] = (255, 255, 255),
    more_bytes_per_pixel: int = 0,
) -> Iterator[Image.Image]:
    """Decode as `decode` does and hold the memory of the image for the block.

    more_bytes_per_pixel: memory that the block takes in addition, for each pixel of the image.
    """
    opened = open_image(data, limits)
    n_bytes = opened.peak_bytes + more_bytes_per_pixel * opened.n_pixels
    with image_memory(n_bytes, limits, is_small=opened.is_small(limits)):
        yield opened.decode(background)


@dataclass(frozen=True, slots=True)
class OpenedImage:
    """An image whose header is read and within the limits; no pixel is decoded yet.

    `peak_bytes`: memory that decoding takes at most. `work`: pixels times the passes over them.
    """

    data: bytes
    n_pixels: int
    peak_bytes: int
    work: int

    def is_small(self, limits: ImageLimits) -> bool:
        """Return True if decoding takes little of the time and the memory that there is."""
        return self.work <= _SMALL_WORK and self.peak_bytes <= limits.small_bytes

    def decode(self, background: tuple[int, int, int]) -> Image.Image:
        """Decode as `decode` does. Metadata that cannot be read is ignored: pixels decide whether an image is one."""
        first: Exception | None = None
        for kept in _ATTEMPTS:
            try:
                content = self.data if kept is None else without_metadata(self.data, keep_orientation=kept)
                if first is None or content != self.data:
                    return to_rgb(_upright(_loaded(content)), background)
            except MemoryError as error:
                raise ImageTooLarge("the image takes more memory than its header says: send a smaller one") from error
            except Exception as error:  # noqa: BLE001  # on broken files Pillow's plug-ins raise errors of every kind
                first = first or error
        raise InvalidImage(f"the image is damaged or truncated ({len(self.data):,} bytes): {first}") from first


def open_image(data: bytes, limits: ImageLimits = DEFAULT_LIMITS) -> OpenedImage:
    """Read the header of an image and check every limit. Raises as `decode` does."""
    if not data:
        raise InvalidImage("expected an image, found 0 bytes")
    if len(data) > limits.image_bytes:
        raise ImageTooLarge(
            f"the image has {len(data):,} bytes, the limit is {limits.image_bytes:,}: send a smaller one"
        )
    check_parts(data, limits)
    image = _header(data)
    _check_size(image, limits)
    n_pixels = image.size[0] * image.size[1]
    n_passes = (
        _RUN_LENGTH_PASSES if image.format == "BMP" and image.info.get("compression") in (1, 2) else n_scans(data)
    )
    if n_pixels * n_passes > limits.work:
        raise ImageTooLarge(
            f"the image asks for {n_passes:,} passes over {n_pixels:,} pixels, the limit is {limits.work:,} pixels in "
            "all: save it again with fewer scans, or smaller"
        )
    peak_bytes = n_pixels * bytes_per_pixel(image)
    if peak_bytes > limits.largest_bytes:
        raise ImageTooLarge(
            f"the image takes {peak_bytes:,} bytes of memory while it is decoded, the limit is "
            f"{limits.largest_bytes:,}, three quarters of RETRIEVAL_IMAGE_MEMORY_BYTES: send a smaller one"
        )
    return OpenedImage(data, n_pixels, peak_bytes, n_pixels * n_passes)


def _header(data: bytes) -> Image.Image:
    """Open an image without decoding it, without its metadata if they prevent that."""
    try:
        return _opened(data)
    except UnidentifiedImageError as error:
        first: Exception = error
    except Exception as error:  # noqa: BLE001  # as in `OpenedImage.decode`
        first = error
    try:
        return _opened(without_metadata(data, keep_orientation=False))
    except Exception as error:  # as above
        if isinstance(first, UnidentifiedImageError):
            kind = sniffed(data[:HEAD_BYTES])
            if kind in REMEDIES and kind.replace("HEIC", "HEIF") not in _FORMATS:
                raise InvalidImage(f"the image is {REMEDIES[kind]}") from error
            if kind == "TIFF":
                raise InvalidImage(
                    "the image is damaged or a kind of TIFF that cannot be decoded: convert it to 8-bit RGB"
                ) from error
            raise InvalidImage(
                f"expected one of {', '.join(_FORMATS)}, found {len(data):,} bytes of something else"
            ) from error
        raise InvalidImage(f"the image is damaged or truncated ({len(data):,} bytes): {first}") from error


def _opened(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data), formats=_FORMATS)


def _loaded(data: bytes) -> Image.Image:
    image = _opened(data)
    image.load()
    if image.format == "PNG":
        scale_transparency(image, data[_PNG_BITS])
    note_samples(image)
    return image


def _upright(image: Image.Image) -> Image.Image:
    """Apply the orientation of the metadata; none if they cannot be read."""
    try:
        turn = _TURNS.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # noqa: BLE001  # as in `OpenedImage.decode`
        return image
    return image if turn is None else image.transpose(turn)


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
    with decoded(data, limits=limits, background=preprocessing.background) as image:
        return to_array(image, preprocessing)


def _check_size(image: Image.Image, limits: ImageLimits) -> None:
    width, height = image.size
    if width * height > limits.pixels:
        raise ImageTooLarge(
            f"the image has {width} x {height} pixels, the limit is {limits.pixels:,}: send a smaller one"
        )
    if width < 1 or height < 1:
        raise InvalidImage(f"expected at least one pixel, found {width} x {height}")
