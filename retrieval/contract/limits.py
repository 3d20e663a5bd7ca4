"""The largest image that is accepted and where it may be: one default for training, serving and the settings."""

from dataclasses import dataclass

_MIB = 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageLimits:
    """The largest allowed image; all limits are checked before a pixel is decoded.

    `jpeg_scans`: passes of a JPEG over its pixels; encoders write up to 18. `memory_bytes`: memory that images take
    while they are decoded, all threads of a process together; `memory.py` shares it out. `cpu_s`: CPU seconds
    that decoding one image may take, after which the process that does it is killed. `roots`: paths and URLs inside
    which images may be read; see `check_source` for none.
    """

    image_bytes: int = 20 * _MIB
    pixels: int = 50_000_000
    jpeg_scans: int = 100
    memory_bytes: int = 1536 * _MIB
    cpu_s: float = 10.0
    roots: tuple[str, ...] = ()

    @property
    def work(self) -> int:
        """Pixels times passes over them: the largest progressive JPEG of an encoder, about a second of a core."""
        return 20 * self.pixels

    @property
    def small_bytes(self) -> int:
        """Memory that is kept for small images, so that they do not wait for large ones."""
        return self.memory_bytes // 4

    @property
    def largest_bytes(self) -> int:
        """Memory that one image may take while it is decoded."""
        return self.memory_bytes - self.small_bytes


DEFAULT_LIMITS = ImageLimits()
