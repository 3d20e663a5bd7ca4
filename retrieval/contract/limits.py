"""The largest image that is accepted: one default for training, serving and the settings."""

from dataclasses import dataclass

_MIB = 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageLimits:
    """The largest allowed image; both limits are checked before a pixel is decoded."""

    image_bytes: int = 20 * _MIB
    pixels: int = 50_000_000


DEFAULT_LIMITS = ImageLimits()
