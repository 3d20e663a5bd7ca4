"""Small image files that ask for much: of time, of memory, or of patience with their metadata."""

from __future__ import annotations

import re
import struct
import zlib

import numpy as np
from PIL import Image

from tests.pictures import encoded, noise

_SCAN = re.compile(rb"\xff\xda")


def chunk(name: bytes, content: bytes, *, checksum: int | None = None) -> bytes:
    """A chunk of a PNG, with a wrong checksum if one is given."""
    checksum = zlib.crc32(name + content) if checksum is None else checksum
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", checksum)


def png_with(extra: bytes, image: Image.Image | None = None) -> bytes:
    """A PNG with more chunks after its header."""
    data = encoded(image or noise(32))
    return data[:33] + extra + data[33:]


def jpeg_with(marker: int, content: bytes, image: Image.Image | None = None) -> bytes:
    """A JPEG with one more segment at its start."""
    data = encoded(image or noise(32), "JPEG", quality=95)
    return data[:2] + bytes([0xFF, marker]) + struct.pack(">H", len(content) + 2) + content + data[2:]


def many_scans(side: int, n_scans: int) -> bytes:
    """A progressive JPEG whose last scan, almost empty, is repeated."""
    data = encoded(Image.new("RGB", (side, side), (120, 90, 60)), "JPEG", progressive=True)
    starts = [found.start() for found in _SCAN.finditer(data)]
    return data[:-2] + data[starts[-1] : -2] * (n_scans - len(starts)) + data[-2:]


def grey_16_bit_png(side: int) -> bytes:
    """A black 16-bit PNG: a few kB for any size."""
    rows = zlib.compress(bytes((1 + 2 * side) * side), 9)
    header = struct.pack(">IIBBBBB", side, side, 16, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def png_of_samples(samples: np.ndarray, bits: int, colour_type: int, transparent: bytes) -> bytes:
    """A PNG of big-endian samples [h, w] or [h, w, 3], with a transparent colour."""
    height, width = samples.shape[:2]
    if bits < 8:
        packed = np.packbits(
            np.unpackbits(samples.astype(np.uint8)[..., None], axis=-1)[..., -bits:].reshape(height, -1), axis=1
        )
        content = b"".join(b"\x00" + row.tobytes() for row in packed)
    else:
        content = b"".join(b"\x00" + row.astype(">u2").tobytes() for row in samples)
    header = struct.pack(">IIBBBBB", width, height, bits, colour_type, 0, 0, 0)
    parts = [
        chunk(b"IHDR", header),
        chunk(b"tRNS", transparent),
        chunk(b"IDAT", zlib.compress(content)),
        chunk(b"IEND", b""),
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def run_length_bmp(side: int) -> bytes:
    """A black run-length BMP of 4 bits a pixel."""
    body = (b"\xff\x00" * (side // 255) + bytes([side % 255, 0]) + b"\x00\x00") * side + b"\x00\x01"
    header = struct.pack("<IiiHHIIiiII", 40, side, side, 1, 4, 2, len(body), 0, 0, 16, 0)
    palette = bytes(16 * 4)
    start = 14 + len(header) + len(palette)
    return struct.pack("<2sIHHI", b"BM", start + len(body), 0, 0, start) + header + palette + body


def gif_with_comment(n_blocks: int) -> bytes:
    """A GIF with a comment in blocks of one byte."""
    data = encoded(noise(8).convert("P"), "GIF")
    start = 13 + (3 << ((data[10] & 7) + 1) if data[10] & 0x80 else 0)
    return data[:start] + b"\x21\xfe" + b"\x01a" * n_blocks + b"\x00" + data[start:]


def tiff_of_jpeg(jpeg: bytes, side: int) -> bytes:
    """A TIFF whose one strip is this JPEG."""
    entries = [
        (256, 4, side), (257, 4, side), (258, 3, 8), (259, 3, 7), (262, 3, 6), (273, 4, 146),
        (277, 3, 3),
        (278, 4, side), (279, 4, len(jpeg)), (284, 3, 1), (530, 3, 2 | 2 << 16),
    ]  # fmt: skip
    directory = b"".join(struct.pack("<HHII", tag, kind, 2 if tag == 530 else 1, value) for tag, kind, value in entries)
    return b"II*\0" + struct.pack("<IH", 8, len(entries)) + directory + bytes(4) + jpeg
