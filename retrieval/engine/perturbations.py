"""Changes that images undergo in practice: compression, shrinking, blur, noise, cropping, brightness, occlusion.

A decoded RGB image is changed before the resizing and normalising of `contract/preprocessing.py`, which stay as they
are in production. Strengths are relative to the size of the image. `consistency/robustness.py` measures how many
decisions change.
"""

import io
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from retrieval.contract.limits import DEFAULT_LIMITS, ImageLimits
from retrieval.contract.preprocessing import Preprocessing, decoded, to_array
from retrieval.errors import InvalidInput

SEVERITIES = (1, 2, 3, 4, 5)

# One value per severity, from almost invisible to almost unrecognisable.
_JPEG_QUALITY = (80, 50, 30, 15, 7)
_RESIZE_SHARE = (0.75, 0.5, 0.35, 0.25, 0.15)  # of width and height, before being resized back
_BLUR_SIGMA = (0.004, 0.008, 0.015, 0.025, 0.04)  # of the shorter side
_NOISE_SIGMA = (0.02, 0.05, 0.1, 0.18, 0.3)  # of the range of a channel
_CROP_SHARE = (0.95, 0.9, 0.8, 0.7, 0.55)  # of width and height that is kept
_BRIGHTNESS_FACTOR = (1.1, 1.25, 1.5, 1.8, 2.2)  # or one divided by it, at random
_OCCLUDED_SHARE = (0.02, 0.05, 0.1, 0.2, 0.35)  # of the area

_BYTES_PER_PIXEL = 8  # of the changed image and of what making it takes
_ROW_PIXELS = 250_000  # pixels that are computed at a time, as floats


@dataclass(frozen=True, slots=True)
class Perturbation:
    """One kind of change, of KINDS, at one severity, 1 (almost invisible) to 5 (almost unrecognisable)."""

    kind: str
    severity: int

    def __post_init__(self) -> None:
        if self.kind not in _CHANGES or self.severity not in SEVERITIES:
            raise InvalidInput(
                f"expected a perturbation among {', '.join(KINDS)} and a severity of 1 to 5, found {self.kind!r} and "
                f"{self.severity}"
            )

    def __str__(self) -> str:
        return f"{self.kind} {self.severity}"

    def apply(self, image: Image.Image, rng: np.random.Generator) -> Image.Image:
        """Return the changed image, RGB, a function of image, perturbation and rng only; `image` is left unchanged."""
        if image.mode != "RGB":
            raise InvalidInput(f"expected a decoded RGB image, found mode {image.mode}: use `decode`")
        return _CHANGES[self.kind](image, self.severity - 1, rng)


def preprocess_perturbed(
    data: bytes,
    preprocessing: Preprocessing,
    perturbation: Perturbation,
    rng: np.random.Generator,
    *,
    limits: ImageLimits = DEFAULT_LIMITS,
) -> NDArray[np.float32]:
    """Preprocess the bytes of an image that is perturbed after decoding: [3, crop, crop] float32.

    Raises as `decode` does.
    """
    with decoded(
        data, limits=limits, background=preprocessing.background, more_bytes_per_pixel=_BYTES_PER_PIXEL
    ) as image:
        return to_array(perturbation.apply(image, rng), preprocessing)


def _jpeg(image: Image.Image, level: int, rng: np.random.Generator) -> Image.Image:
    """Write the image as a JPEG file and read it back."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=_JPEG_QUALITY[level])
    return Image.open(buffer).convert("RGB")


def _resize(image: Image.Image, level: int, rng: np.random.Generator) -> Image.Image:
    """Make the image smaller and larger again, which removes fine detail."""
    width, height = (max(1, round(side * _RESIZE_SHARE[level])) for side in image.size)
    small = image.resize((width, height), Image.Resampling.BICUBIC)
    return small.resize(image.size, Image.Resampling.BICUBIC)


def _blur(image: Image.Image, level: int, rng: np.random.Generator) -> Image.Image:
    """Apply Gaussian blur."""
    return image.filter(ImageFilter.GaussianBlur(_BLUR_SIGMA[level] * min(image.size)))


def _noise(image: Image.Image, level: int, rng: np.random.Generator) -> Image.Image:
    """Add Gaussian noise, independent in every pixel and channel."""
    sigma = 255 * _NOISE_SIGMA[level]
    return _by_rows(image, lambda pixels: pixels + rng.normal(0, sigma, size=pixels.shape))


def _crop(image: Image.Image, level: int, rng: np.random.Generator) -> Image.Image:
    """Keep a window of the same proportions, anywhere in the image."""
    width, height = (max(1, round(side * _CROP_SHARE[level])) for side in image.size)
    left, top = (int(rng.integers(whole - part + 1)) for whole, part in zip(image.size, (width, height), strict=True))
    return image.crop((left, top, left + width, top + height))


def _brightness(image: Image.Image, level: int, rng: np.random.Generator) -> Image.Image:
    """Multiply all pixels: lighter or darker, at random."""
    factor = _BRIGHTNESS_FACTOR[level] if rng.integers(2) else 1 / _BRIGHTNESS_FACTOR[level]
    return _by_rows(image, lambda pixels: pixels * factor)


def _occlusion(image: Image.Image, level: int, rng: np.random.Generator) -> Image.Image:
    """Cover a rectangle of the image's proportions with mid-grey, anywhere in the image."""
    changed = image.copy()
    width, height = (max(1, round(side * _OCCLUDED_SHARE[level] ** 0.5)) for side in image.size)
    left, top = (int(rng.integers(whole - part + 1)) for whole, part in zip(image.size, (width, height), strict=True))
    changed.paste((128, 128, 128), (left, top, left + width, top + height))
    return changed


def _by_rows(image: Image.Image, change: Callable[[NDArray[np.float32]], NDArray[np.floating]]) -> Image.Image:
    """Change the pixels as floats, some rows at a time, because a whole image of floats takes gigabytes."""
    width, height = image.size
    n_rows = max(1, _ROW_PIXELS // width)
    changed = np.empty((height, width, 3), dtype=np.uint8)
    for top in range(0, height, n_rows):
        part = image.crop((0, top, width, min(top + n_rows, height)))
        changed[top : top + n_rows] = np.clip(change(np.asarray(part, dtype=np.float32)), 0, 255).round()
    return Image.fromarray(changed)


_CHANGES: dict[str, Callable[[Image.Image, int, np.random.Generator], Image.Image]] = {
    "jpeg": _jpeg,
    "resize": _resize,
    "blur": _blur,
    "noise": _noise,
    "crop": _crop,
    "brightness": _brightness,
    "occlusion": _occlusion,
}
KINDS = tuple(_CHANGES)
