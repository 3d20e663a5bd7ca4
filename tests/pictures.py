"""Real image files of every kind that users send, small and made on the spot."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)
_EXIF_ORIENTATION = 0x0112
_GRID = 4  # colours a side of a class's pattern


def encoded(image: Image.Image, image_format: str = "PNG", **options: object) -> bytes:
    """The image as the bytes of a file."""
    buffer = io.BytesIO()
    image.save(buffer, image_format, **options)
    return buffer.getvalue()


def plain(colour: tuple[int, int, int] = RED, size: tuple[int, int] = (32, 32)) -> Image.Image:
    return Image.new("RGB", size, colour)


def quarters(size: int = 64) -> Image.Image:
    """Four quarters: red and green above, blue and white below."""
    image = Image.new("RGB", (size, size), WHITE)
    half = size // 2
    for colour, corner in ((RED, (0, 0)), (GREEN, (half, 0)), (BLUE, (0, half))):
        image.paste(colour, (*corner, corner[0] + half, corner[1] + half))
    return image


def jpeg(image: Image.Image | None = None) -> bytes:
    return encoded(image or quarters(), "JPEG", quality=95)


def truncated_jpeg() -> bytes:
    data = jpeg(noise(64))
    return data[: len(data) // 2]


def cmyk_jpeg(colour: tuple[int, int, int] = RED) -> bytes:
    return encoded(plain(colour).convert("CMYK"), "JPEG", quality=95)


def grey_16_bit(value: int) -> bytes:
    """A 16-bit grey PNG of one value, 0 to 65535, with a black and a white corner so that its range is seen."""
    pixels = np.full((32, 32), value, dtype=np.uint16)
    pixels[0, 0], pixels[0, 1] = 0, 65535
    return encoded(Image.fromarray(pixels))


def transparent_png() -> bytes:
    """Opaque red on the left, fully transparent green on the right."""
    image = Image.new("RGBA", (32, 32), (*RED, 255))
    image.paste((*GREEN, 0), (16, 0, 32, 32))
    return encoded(image)


def transparent_palette_png() -> bytes:
    """A palette image: entry 0 is red, entry 1 is transparent and covers the right half."""
    image = Image.new("P", (32, 32), 0)
    image.putpalette([*RED, *GREEN])
    image.paste(1, (16, 0, 32, 32))
    return encoded(image, transparency=1)


def rotated_jpeg(orientation: int) -> bytes:
    """`quarters` as a camera stores it: turned pixels, and an EXIF orientation (1 to 8) that turns them back."""
    stored = {
        1: None,
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }[orientation]
    image = quarters() if stored is None else quarters().transpose(stored)
    exif = Image.Exif()
    exif[_EXIF_ORIENTATION] = orientation
    return encoded(image, "JPEG", quality=95, exif=exif)


def animated(image_format: str) -> bytes:
    """Two frames, red then blue, as GIF or WEBP."""
    return encoded(plain(RED), image_format, save_all=True, append_images=[plain(BLUE)], duration=100, loop=0)


def huge_png(side: int = 10_000) -> bytes:
    """A valid black PNG of `side` x `side` pixels in a few kB: one bit a pixel, all alike."""
    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    rows = zlib.compress(bytes((1 + (side + 7) // 8) * side), 9)
    chunks = [(b"IHDR", header), (b"IDAT", rows), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in chunks
    )


def huge_claim(image_format: str, side: int = 16_000) -> bytes:
    """A small file whose header claims `side` x `side` pixels, as JPEG, GIF, BMP or WEBP."""
    data = bytearray(animated("WEBP") if image_format == "WEBP" else encoded(plain(), image_format))
    if image_format == "JPEG":
        start_of_frame = data.index(b"\xff\xc0")
        data[start_of_frame + 5 : start_of_frame + 9] = struct.pack(">HH", side, side)
    elif image_format == "GIF":
        data[6:10] = struct.pack("<HH", side, side)
    elif image_format == "BMP":
        data[18:26] = struct.pack("<ii", side, side)
    else:
        data[24:30] = 2 * (side - 1).to_bytes(3, "little")
    return bytes(data)


def noise(side: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8))


def class_picture(class_number: int, variant: int, *, spread: float = 40.0, size: int = 32) -> Image.Image:
    """A picture of a class: its own 4 x 4 pattern of colours, disturbed by `spread` grey levels for each variant."""
    pattern = np.random.default_rng([1, class_number]).integers(0, 256, (_GRID, _GRID, 3))
    disturbed = pattern + np.random.default_rng([2, class_number, variant]).normal(0, spread, pattern.shape)
    blocks = np.clip(disturbed, 0, 255).astype(np.uint8).repeat(size // _GRID, axis=0).repeat(size // _GRID, axis=1)
    return Image.fromarray(blocks)


def write_class_folders(folder: Path, *, n_classes: int, n_images: int, first_class: int = 0) -> Path:
    """A folder per class with `n_images` pictures each, as a user keeps them."""
    for number in range(first_class, first_class + n_classes):
        class_folder = folder / f"class_{number:03d}"
        class_folder.mkdir(parents=True)
        for variant in range(n_images):
            (class_folder / f"{variant}.png").write_bytes(encoded(class_picture(number, variant)))
    return folder
