"""Files that ask for too much are refused before they are decoded, and damaged metadata does not matter."""

from __future__ import annotations

import struct
import subprocess
import sys
import time
import zlib

import numpy as np
import pytest
from PIL import Image

from retrieval.contract.image_files import n_scans, without_metadata
from retrieval.contract.limits import DEFAULT_LIMITS, ImageLimits
from retrieval.contract.preprocessing import decode, open_image
from retrieval.errors import ImageTooLarge, InvalidImage
from tests import hostile, pictures
from tests.pictures import encoded

BROKEN_EXIF = b"this is no exif at all"


def exif(orientation: int, *, broken: bool) -> bytes:
    """A TIFF directory with an orientation, and with a text of no characters if `broken`."""
    entries = struct.pack("<HHIHH", 0x0112, 3, 1, orientation, 0)
    if broken:
        entries += struct.pack("<HHII", 0x0213, 2, 2, 0x31)
    return b"II*\x00" + struct.pack("<IH", 8, len(entries) // 12) + entries + bytes(4)


def picture() -> Image.Image:
    return pictures.noise(64).crop((0, 0, 64, 48))


@pytest.mark.parametrize(
    "extra",
    [
        hostile.chunk(b"eXIf", BROKEN_EXIF),
        hostile.chunk(b"eXIf", exif(1, broken=True)),
        hostile.chunk(b"iCCP", b"icc\x00\x00" + zlib.compress(bytes(3_000_000))),
        hostile.chunk(b"iCCP", b"icc\x00\x00no zlib"),
        hostile.chunk(b"zTXt", b"key\x00\x00" + zlib.compress(b"a" * 3_000_000)),
        hostile.chunk(b"zTXt", b"key\x00\x09" + zlib.compress(b"a")),
        hostile.chunk(b"iTXt", b"key"),
        hostile.chunk(b"tEXt", b"key\x00value", checksum=1),
        hostile.chunk(b"pHYs", b"\x00"),
        hostile.chunk(b"pHYs", b""),
        hostile.chunk(b"gAMA", b""),
        hostile.chunk(b"cHRM", b"a"),
        hostile.chunk(b"sRGB", b""),
        hostile.chunk(b"acTL", b""),
        hostile.chunk(b"tRNS", b"\x00", checksum=1),
        hostile.chunk(b"tIME", b"x", checksum=0),
    ],
    ids=lambda extra: extra[4:8].decode(),
)
def test_pixels_of_a_png_decide(extra: bytes) -> None:
    """No profile, text or other metadata makes whole pixels a damaged image."""
    np.testing.assert_array_equal(np.asarray(decode(hostile.png_with(extra, picture()))), np.asarray(picture()))


@pytest.mark.parametrize(
    ("marker", "content"),
    [
        (0xE1, b"Exif\x00\x00" + BROKEN_EXIF),
        (0xE1, b"Exif\x00\x00" + exif(1, broken=True)),
        (0xE1, b"Exif\x00\x00"),
        (0xE0, b"JFIF\x00"),
        (0xE2, b"ICC_PROFILE\x00"),
        (0xE2, b"ICC_PROFILE\x00\x00\x00abc"),
        (0xE2, b"MPF\x00II*\x00\xff\xff\xff\xff"),
        (0xED, b"Photoshop 3.0\x008BIM\x03\xed\x00\x00\x00"),
        (0xEE, b"Adobe"),
        (0xFE, b""),
    ],
)
def test_pixels_of_a_jpeg_decide(marker: int, content: bytes) -> None:
    expected = np.asarray(decode(encoded(picture(), "JPEG", quality=95)))
    np.testing.assert_array_equal(np.asarray(decode(hostile.jpeg_with(marker, content, picture()))), expected)


@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("broken", [False, True])
def test_an_orientation_next_to_a_broken_tag_is_applied(image_format: str, broken: bool) -> None:
    content = b"Exif\x00\x00" + exif(6, broken=broken)
    options = {"lossless": True} if image_format == "WEBP" else {"quality": 95} if image_format == "JPEG" else {}
    data = encoded(picture(), image_format, exif=content, **options)
    expected = np.asarray(decode(encoded(picture(), image_format, **options)).transpose(Image.Transpose.ROTATE_270))
    np.testing.assert_array_equal(np.asarray(decode(data)), expected)


def test_an_orientation_next_to_another_broken_chunk_is_applied() -> None:
    extra = hostile.chunk(b"eXIf", exif(6, broken=False)) + hostile.chunk(b"pHYs", b"")
    assert decode(hostile.png_with(extra, picture())).size == (48, 64)


def test_pixels_of_a_tiff_decide() -> None:
    """Directories of EXIF and GPS that lead nowhere are not followed."""
    data = bytearray(encoded(picture(), "TIFF", tiffinfo={0x8769: 12, 305: "software"}))
    place = data.index(struct.pack("<HH", 0x8769, 4))
    data[place + 8 : place + 12] = struct.pack("<I", 0xFFFFFF00)
    np.testing.assert_array_equal(np.asarray(decode(bytes(data))), np.asarray(picture()))


@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_a_file_without_metadata_has_the_same_pixels(image_format: str, mode: str) -> None:
    orientation = b"Exif\x00\x00" + exif(3, broken=False)
    data = encoded(picture().convert(mode), image_format, exif=orientation, dpi=(72, 72), icc_profile=b"x" * 200)
    plain = without_metadata(data, keep_orientation=False)
    upright = decode(encoded(picture().convert(mode), image_format))
    np.testing.assert_array_equal(np.asarray(decode(plain)), np.asarray(upright))
    assert b"x" * 200 not in without_metadata(data, keep_orientation=True) or image_format == "TIFF"
    turned = np.asarray(decode(without_metadata(data, keep_orientation=True)))
    np.testing.assert_array_equal(turned, np.asarray(upright.transpose(Image.Transpose.ROTATE_180)))


@pytest.mark.parametrize("progressive", [False, True])
def test_scans_are_counted_without_decoding(progressive: bool) -> None:
    """A thumbnail in the metadata, which has scans of its own, does not count."""
    data = encoded(pictures.noise(64), "JPEG", progressive=progressive)
    thumbnail = b"Exif\x00\x00" + encoded(pictures.noise(16), "JPEG", progressive=True)
    with_thumbnail = data[:2] + b"\xff\xe1" + struct.pack(">H", len(thumbnail) + 2) + thumbnail + data[2:]
    assert n_scans(data) == n_scans(with_thumbnail) == (10 if progressive else 1)
    assert n_scans(encoded(pictures.noise(8))) == 1


@pytest.mark.parametrize(("side", "scans"), [(64, 101), (2000, 2000), (6000, 40)])
def test_a_jpeg_of_many_scans_is_refused_unseen(side: int, scans: int) -> None:
    data = hostile.many_scans(side, scans)
    assert n_scans(data) == scans
    started = time.process_time()
    with pytest.raises(ImageTooLarge, match=r"scans, the limit is 100|40 passes over 36,000,000 pixels"):
        decode(data)
    assert time.process_time() - started < 0.1


def test_every_progressive_jpeg_of_an_encoder_is_accepted() -> None:
    """The limit leaves room for a progressive CMYK picture, of 18 scans, that has as many pixels as are allowed."""
    data = encoded(Image.new("CMYK", (100, 100), (1, 2, 3, 4)), "JPEG", progressive=True)
    assert 10 < n_scans(data) <= 20
    assert decode(data, limits=ImageLimits(pixels=10_000)).size == (100, 100)
    assert decode(hostile.many_scans(64, 100)).size == (64, 64)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (hostile.png_with(hostile.chunk(b"teST", b"") * 70_000), "at most 65,536 parts"),
        (b"\xff\xd8" + b"\xff\xfe\x00\x02" * 70_000, "at most 65,536 parts"),
        (hostile.gif_with_comment(1_000_000), "at most 4,096 blocks"),
        (hostile.run_length_bmp(4000), "100 passes over 16,000,000 pixels"),
    ],
    ids=["png", "jpeg", "gif", "bmp"],
)
def test_files_of_very_many_parts_are_refused_unseen(data: bytes, message: str) -> None:
    """Pillow would step over each part, or each pixel, in Python."""
    started = time.process_time()
    with pytest.raises((InvalidImage, ImageTooLarge), match=message):
        decode(data)
    assert time.process_time() - started < 0.2


def test_files_of_some_parts_are_decoded() -> None:
    assert decode(hostile.gif_with_comment(4000)).size == (8, 8)
    assert decode(hostile.run_length_bmp(64)).size == (64, 64)
    assert decode(hostile.png_with(hostile.chunk(b"teST", b"") * 1000)).size == (32, 32)


# Decodes a file in a fresh process and prints how much its peak memory grew, in bytes, and what was foretold.
PEAK = """
import resource, sys
from retrieval.contract.preprocessing import decode, open_image
data = sys.stdin.buffer.read()
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
decode(data)
print(1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before), open_image(data).peak_bytes)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "data",
    [
        hostile.grey_16_bit_png(3000),
        encoded(Image.new("RGBA", (3000, 3000), (1, 2, 3, 4))),
        encoded(Image.new("LA", (3000, 3000), (1, 2))),
        encoded(Image.new("F", (3000, 3000), 0.5), "TIFF", compression="tiff_lzw"),
        encoded(Image.new("RGB", (3000, 3000), (9, 8, 7)), "JPEG", progressive=True),
        encoded(Image.new("RGB", (3000, 3000), (9, 8, 7)), "JPEG", exif=b"Exif\x00\x00" + exif(6, broken=False)),
        encoded(Image.new("RGB", (3000, 3000), (9, 8, 7)), "WEBP"),
        encoded(Image.new("CMYK", (3000, 3000), (9, 8, 7, 6)), "JPEG", progressive=True),
        encoded(Image.new("P", (3000, 3000), 1), "GIF"),
    ],
    ids=["grey 16", "rgba", "la", "float", "progressive", "rotated", "webp", "cmyk", "gif"],
)
def test_memory_is_foretold(data: bytes) -> None:
    """Decoding takes no more memory than the header lets expect."""
    child = subprocess.run([sys.executable, "-c", PEAK], input=data, capture_output=True, check=True)
    grown, foretold = map(int, child.stdout.split())
    assert grown <= foretold + 2**24, f"{grown:,} against {foretold:,}"  # 16 MiB: rows under conversion, libraries
    assert foretold <= 24 * 9_000_000


def test_a_16_bit_image_of_the_largest_size_is_foretold_within_the_budget() -> None:
    data = hostile.grey_16_bit_png(7070)
    assert open_image(data).peak_bytes < DEFAULT_LIMITS.memory_bytes / 2


def test_scans_of_a_jpeg_in_a_tiff_count() -> None:
    """A TIFF holds a JPEG for each strip or tile."""
    ordinary = encoded(pictures.noise(600), "TIFF", compression="jpeg")
    assert open_image(ordinary).work == 600 * 600
    with pytest.raises(ImageTooLarge, match=r"asks for 100 passes over 12,250,000 pixels"):
        open_image(hostile.tiff_of_jpeg(hostile.many_scans(3500, 100), 3500))


@pytest.mark.parametrize("kind", [b"zTXt", b"iTXt"])
def test_compressed_texts_take_no_memory(kind: bytes) -> None:
    """60 kB would unpack to 60 MB, which count in no budget."""
    text = b"\0\0" if kind == b"zTXt" else b"\0\1\0\0\0"
    data = hostile.png_with(
        b"".join(hostile.chunk(kind, b"k%d" % n + text + zlib.compress(bytes(10**6), 9)) for n in range(60))
    )
    code = """
import resource, sys
from retrieval.contract.preprocessing import decode, open_image
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
decode(sys.stdin.buffer.read())
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    done = subprocess.run([sys.executable, "-c", code], input=data, capture_output=True, check=True)
    assert int(done.stdout) < 15_000


@pytest.mark.parametrize("format", ["EPS", "DDS", "ICO", "JPEG2000"])
def test_other_formats_of_pillow_are_no_images(format: str) -> None:
    """Each decoder is a way in, and that of EPS starts another program."""
    with pytest.raises(InvalidImage, match=r"found .* bytes of something else"):
        open_image(encoded(pictures.noise(32), format))


@pytest.mark.parametrize(
    "data",
    [
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(/tmp/x) (w) file\n",
        b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>',
        b"8BPS\0\1" + bytes(100),
        b"PK\3\4" + bytes(100),
        b"%PDF-1.4\n",
        b"\xd7\xcd\xc6\x9a" + bytes(100),
    ],
)
def test_programs_and_archives_are_no_images(data: bytes) -> None:
    with pytest.raises(InvalidImage, match=r"found .* bytes of something else"):
        open_image(data)
