"""Reads the structure of an image file before it is decoded: how much work it asks for, and what in it is no pixel.

Decoders follow a file wherever it leads: a JPEG of 200 kB may hold thousands of passes over the whole picture. Here the
parts are counted without being decoded. `preprocessing.py` decodes.
"""

import re
import struct
import zlib
from collections.abc import Callable, Iterator

from retrieval.contract.limits import ImageLimits
from retrieval.errors import ImageTooLarge, InvalidImage

_MAX_PARTS = 65_536  # segments, chunks, blocks: decoders step over each in Python; real files hold a few hundred
_MAX_GIF_BLOCKS = 4096  # before the first frame; Pillow's time for a comment grows with the square of its blocks
_PNG, _JPEG, _GIF = b"\x89PNG\r\n\x1a\n", b"\xff\xd8", b"GIF8"
# A marker of a JPEG: not a stuffed zero, a fill byte or a restart.
_MARKER = re.compile(rb"\xff([^\x00\xff\xd0-\xd7])")
_SOS, _EOI, _WITHOUT_LENGTH = 0xDA, 0xD9, (0x01, 0xD8)
_APP0, _APP1, _APP15, _COMMENT = 0xE0, 0xE1, 0xEF, 0xFE
_COLOUR_BYTES = {_APP0: 18, 0xEE: 16}  # JFIF and Adobe
_PNG_PIXELS = (b"IHDR", b"PLTE", b"IDAT", b"IEND")
_WEBP_PIXELS = (b"VP8X", b"VP8 ", b"VP8L", b"ALPH", b"ANIM", b"ANMF")
_WEBP_METADATA_FLAGS = 0x2C  # ICC, EXIF, XMP
# The tags of a TIFF that say how its pixels are stored, and its orientation.
_TIFF_PIXELS = {254, *range(256, 260), 262, 266, 273, 274, *range(277, 280), 284, 292, 293, 317, *range(320, 326)}
_TIFF_PIXELS |= {332, 338, 339, 347, *range(512, 522), *range(529, 533)}
_TIFF = (b"II*\x00", b"MM\x00*", b"II+\x00", b"MM\x00+")
_JPEG_IN_TIFF = (6, 7)  # kinds of compression
_TIFF_OFFSETS = (273, 324)


def check_parts(data: bytes, limits: ImageLimits) -> None:
    """Raise ImageTooLarge or InvalidImage if the file holds more parts, or scans of a JPEG, than any real image."""
    if data.startswith(_JPEG):
        n_scans = sum(marker == _SOS for marker, _, _ in _counted(_segments(data)))
        if n_scans > limits.jpeg_scans:
            raise ImageTooLarge(
                f"the JPEG has {n_scans:,} scans, the limit is {limits.jpeg_scans}: save it again, as a baseline JPEG"
            )
    elif data.startswith(_PNG):
        for _ in _counted(_chunks(data, len(_PNG), ">")):
            pass
    elif data.startswith(_GIF):
        _check_gif(data)
    elif data[:4] in (b"II*\x00", b"MM\x00*"):
        for tag, count, _ in _tiff_entries(data):
            if tag in _TIFF_OFFSETS and count > _MAX_PARTS:
                raise InvalidImage(f"expected at most {_MAX_PARTS:,} strips or tiles in a TIFF, found {count:,}")


def n_scans(data: bytes) -> int:
    """Return the number of passes over the pixels that a JPEG, or a TIFF of JPEGs, asks for; 1 for other formats."""
    if data[:4] in _TIFF:
        n_streams = data.count(b"\xff\xd8\xff")  # each with one scan, if it is not progressive
        return -(-data.count(b"\xff\xda") // n_streams) if n_streams and _is_jpeg_tiff(data) else 1
    if not data.startswith(_JPEG):
        return 1
    return max(1, sum(marker == _SOS for marker, _, _ in _segments(data)))


def _is_jpeg_tiff(data: bytes) -> bool:
    order = "<" if data.startswith(b"II") else ">"
    kinds = [struct.unpack_from(f"{order}H", data, place + 8)[0] for tag, _, place in _tiff_entries(data) if tag == 259]
    return any(kind in _JPEG_IN_TIFF for kind in kinds) or data[2:3] == b"+" or data[3:4] == b"+"


def without_metadata(data: bytes, *, keep_orientation: bool) -> bytes:
    """Return a file with the same pixels and without profiles, texts and other metadata.

    Parts with a wrong checksum are dropped, except the pixels. `keep_orientation` keeps EXIF, which holds it.
    """
    strip: Callable[[bytes, bool], bytes]
    if data.startswith(_JPEG):
        strip = _strip_jpeg
    elif data.startswith(_PNG):
        strip = _strip_png
    elif data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        strip = _strip_webp
    elif data[:4] in (b"II*\x00", b"MM\x00*"):
        strip = _strip_tiff
    else:
        return data
    return strip(data, keep_orientation)


def _counted(parts: Iterator[tuple[int, int, int]]) -> Iterator[tuple[int, int, int]]:
    for number, part in enumerate(parts):
        if number >= _MAX_PARTS:
            raise InvalidImage(f"expected at most {_MAX_PARTS:,} parts in an image file, found more")
        yield part


def _segments(data: bytes) -> Iterator[tuple[int, int, int]]:
    """Yield marker, start and end of each segment of a JPEG until its end; pixels lie between them, after a scan."""
    position = 2
    while (found := _MARKER.search(data, position)) is not None:
        marker = found.group(1)[0]
        start, position = found.start(), found.end()
        if marker == _EOI:
            return
        if marker not in _WITHOUT_LENGTH:
            position += max(2, int.from_bytes(data[position : position + 2], "big"))
        yield marker, start, min(position, len(data))


def _chunks(data: bytes, position: int, order: str) -> Iterator[tuple[int, int, int]]:
    """Yield the place of the name, the start and the end of the content of each chunk of a PNG or a RIFF."""
    while position + 8 <= len(data):
        at = position + (4 if order == ">" else 0)
        (length,) = struct.unpack_from(f"{order}I", data, position + (0 if order == ">" else 4))
        start, end = position + 8, min(position + 8 + length, len(data))
        yield at, start, end
        position = end + (4 if order == ">" else length & 1)


def _check_gif(data: bytes) -> None:
    """Count the blocks before the first frame."""
    position = 13 + (3 << ((data[10] & 7) + 1) if len(data) > 10 and data[10] & 0x80 else 0)
    n_blocks = 0
    while position + 1 < len(data) and data[position] == 0x21:
        position += 2
        while position < len(data) and data[position]:
            position += 1 + data[position]
            n_blocks += 1
            if n_blocks > _MAX_GIF_BLOCKS:
                raise InvalidImage(f"expected at most {_MAX_GIF_BLOCKS:,} blocks before the first frame, found more")
        position += 1


def _strip_jpeg(data: bytes, keep_orientation: bool) -> bytes:
    kept, position = [], 0
    for marker, start, end in _segments(data):
        is_exif = marker == _APP1 and data[start + 4 : start + 10] == b"Exif\x00\x00" and keep_orientation
        # libjpeg reads the colour space from these two, if they are long enough
        is_colour = end - start >= _COLOUR_BYTES.get(marker, len(data))
        is_metadata = (_APP0 <= marker <= _APP15 and not is_colour) or marker == _COMMENT
        if is_metadata and not is_exif:
            kept.append(data[position:start])
            position = end
    return b"".join([*kept, data[position:]])


def _strip_png(data: bytes, keep_orientation: bool) -> bytes:
    kept = [_PNG]
    for at, _, end in _chunks(data, len(_PNG), ">"):
        name = data[at : at + 4]
        is_whole = zlib.crc32(data[at:end]).to_bytes(4, "big") == data[end : end + 4]
        is_useful = name == b"tRNS" or (name == b"eXIf" and keep_orientation)
        if name in _PNG_PIXELS or (is_useful and is_whole):
            kept.append(data[at - 4 : end + 4])
    return b"".join(kept)


def _strip_webp(data: bytes, keep_orientation: bool) -> bytes:
    kept = []
    for at, start, end in _chunks(data, 12, "<"):
        name = data[at : at + 4]
        is_exif = name == b"EXIF" and keep_orientation
        if name not in _WEBP_PIXELS and not is_exif:
            continue
        content = data[start : end + (end - start) % 2]
        if name == b"VP8X" and content:
            dropped = _WEBP_METADATA_FLAGS & ~(0x08 if keep_orientation else 0)
            content = bytes([content[0] & ~dropped]) + content[1:]
        kept.append(data[at:start] + content)
    body = b"WEBP" + b"".join(kept)
    return b"RIFF" + struct.pack("<I", len(body)) + body


def _tiff_entries(data: bytes) -> Iterator[tuple[int, int, int]]:
    """Yield tag, count and place of each entry of the first directory of a TIFF."""
    order = "<" if data.startswith(b"II") else ">"
    if len(data) < 8:
        return
    (directory,) = struct.unpack_from(f"{order}I", data, 4)
    if directory + 2 > len(data):
        return
    (n_entries,) = struct.unpack_from(f"{order}H", data, directory)
    for place in range(directory + 2, min(directory + 2 + 12 * n_entries, len(data) - 11), 12):
        tag, _, count = struct.unpack_from(f"{order}HHI", data, place)
        yield tag, count, place


def _strip_tiff(data: bytes, keep_orientation: bool) -> bytes:
    """Turn every entry that is not about pixels into an empty one of a private tag; offsets stay as they are."""
    content = bytearray(data)
    order = "<" if data.startswith(b"II") else ">"
    for tag, _, place in _tiff_entries(data):
        if tag not in _TIFF_PIXELS or (tag == 274 and not keep_orientation):
            struct.pack_into(f"{order}HHII", content, place, 65_000, 1, 1, 0)
    return bytes(content)
