"""Every kind of image that users send is decoded right or refused, limits first."""

from __future__ import annotations

import json
import subprocess
import sys
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from retrieval.contract.limits import ImageLimits
from retrieval.contract.preprocessing import Preprocessing, decode, preprocess, to_array
from retrieval.errors import CorruptArtifact, ImageTooLarge, InvalidImage
from tests import pictures
from tests.pictures import BLUE, GREEN, RED, WHITE, encoded

PREPROCESSING = Preprocessing(resize=48, crop=32, mean=(120.0, 115.0, 100.0), std=(58.0, 57.0, 59.0))

# Decodes a file in a fresh process and prints the class of the error and how much its peak memory grew, in KiB.
PEAK_OF_DECODING = """
import resource, sys
from retrieval.contract.preprocessing import decode
from retrieval.errors import RetrievalError
data = sys.stdin.buffer.read()
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    decode(data)
except RetrievalError as error:
    print(type(error).__name__, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def colours(image: Image.Image) -> list[tuple[int, ...]]:
    """The colours in the middle of the four quarters: above left, above right, below left, below right."""
    width, height = image.size
    points = [(x, y) for y in (height // 4, 3 * height // 4) for x in (width // 4, 3 * width // 4)]
    return [tuple(int(v) for v in np.asarray(image)[y, x]) for x, y in points]


def assert_colours(image: Image.Image, expected: list[tuple[int, int, int]], tolerance: int = 0) -> None:
    assert image.mode == "RGB"
    np.testing.assert_allclose(colours(image), expected, atol=tolerance)


@pytest.mark.parametrize("image_format", ["PNG", "BMP", "TIFF"])
def test_lossless_formats_keep_every_pixel(image_format: str) -> None:
    image = pictures.noise(20)
    np.testing.assert_array_equal(np.asarray(decode(encoded(image, image_format))), np.asarray(image))


@pytest.mark.parametrize("image_format", ["JPEG", "WEBP"])
def test_lossy_formats_keep_the_colours(image_format: str) -> None:
    # JPEG and WebP at high quality change flat colours by a few levels
    assert_colours(decode(encoded(pictures.quarters(), image_format, quality=95)), [RED, GREEN, BLUE, WHITE], 6)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation_is_applied(orientation: int) -> None:
    """However the camera was held, the picture stands upright."""
    assert_colours(decode(pictures.rotated_jpeg(orientation)), [RED, GREEN, BLUE, WHITE], 6)


@pytest.mark.parametrize("image_format", ["GIF", "WEBP"])
def test_animations_give_their_first_frame(image_format: str) -> None:
    assert_colours(decode(pictures.animated(image_format)), [RED] * 4, 6)


@pytest.mark.parametrize("colour", [RED, GREEN, BLUE, WHITE])
def test_cmyk(colour: tuple[int, int, int]) -> None:
    assert_colours(decode(pictures.cmyk_jpeg(colour)), [colour] * 4, 6)


@pytest.mark.parametrize(("value", "expected"), [(0, 0), (257, 1), (32_896, 128), (65_535, 255)])
def test_16_bit_grey_is_scaled_not_clipped(value: int, expected: int) -> None:
    assert_colours(decode(pictures.grey_16_bit(value)), [(expected,) * 3] * 4)


def test_dark_16_bit_images_stay_dark() -> None:
    """The scale of a 16-bit image does not depend on its content."""
    dark = Image.fromarray(np.full((8, 8), 200, dtype=np.uint16))
    assert_colours(decode(encoded(dark)), [(1, 1, 1)] * 4)


def test_floating_point_images() -> None:
    """A TIFF of floats is taken as 0 to 255, or as 0 to 65,535 where it exceeds that."""
    values = Image.fromarray(np.full((8, 8), 100.0, dtype=np.float32))
    assert_colours(decode(encoded(values, "TIFF")), [(100, 100, 100)] * 4)


@pytest.mark.parametrize("mode", ["1", "L", "P"])
def test_black_white_grey_and_palette(mode: str) -> None:
    assert_colours(decode(encoded(pictures.plain(WHITE).convert(mode))), [WHITE] * 4)


@pytest.mark.parametrize("data", [pictures.transparent_png(), pictures.transparent_palette_png()])
@pytest.mark.parametrize("background", [WHITE, BLUE])
def test_transparency_lies_over_the_background(data: bytes, background: tuple[int, int, int]) -> None:
    """What nobody sees, the colour under full transparency, does not reach the model."""
    assert_colours(decode(data, background=background), [RED, background, RED, background])


def test_half_transparency_is_mixed() -> None:
    image = Image.new("RGBA", (8, 8), (255, 0, 0, 128))
    assert_colours(decode(encoded(image)), [(255, 127, 127)] * 4, 1)


def test_grey_with_alpha() -> None:
    image = Image.new("LA", (8, 8), (50, 0))
    assert_colours(decode(encoded(image)), [WHITE] * 4)


def test_one_pixel() -> None:
    pixels = preprocess(encoded(pictures.plain(RED, (1, 1))), PREPROCESSING)
    assert pixels.shape == (3, 32, 32)
    np.testing.assert_allclose(pixels[:, 0, 0], [(255 - 120) / 58, -115 / 57, -100 / 59], rtol=1e-6)
    assert (pixels == pixels[:, :1, :1]).all()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"hello, this is no image",
        b"\x00" * 1000,
        b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        b"%PDF-1.4",
        pictures.truncated_jpeg(),
        encoded(pictures.noise(32))[:-200],
        encoded(pictures.noise(32), "WEBP")[:-200],
        encoded(pictures.noise(32), "TIFF")[:-200],
        pictures.animated("GIF")[:40],
        b"\xff\xd8\xff\xe0",
    ],
)
def test_what_is_no_image_is_refused(data: bytes) -> None:
    with pytest.raises(InvalidImage, match=r"found 0 bytes|bytes of something else|is damaged or truncated"):
        decode(data)


@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"])
@given(data=st.data())
def test_damaged_files_are_refused_or_decoded(image_format: str, data: st.DataObject) -> None:
    """Whatever is done to a file, decoding it gives an RGB image or one of the two declared errors."""
    content = bytearray(encoded(pictures.noise(16), image_format))
    for _ in range(data.draw(st.integers(0, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    content = content[: data.draw(st.integers(0, len(content)))]
    try:
        image = decode(bytes(content), limits=ImageLimits(pixels=10_000))
    except (InvalidImage, ImageTooLarge):
        return
    assert image.mode == "RGB"


def test_too_many_bytes_are_refused_unread() -> None:
    """The limit on bytes is checked first: what they are does not matter."""
    with pytest.raises(ImageTooLarge, match=r"101 bytes, the limit is 100"):
        decode(b"x" * 101, limits=ImageLimits(image_bytes=100))
    with pytest.raises(InvalidImage, match="found 100 bytes of something else"):
        decode(b"x" * 100, limits=ImageLimits(image_bytes=100))


def test_limit_on_pixels_is_inclusive() -> None:
    data = encoded(pictures.noise(10))
    assert decode(data, limits=ImageLimits(pixels=100)).size == (10, 10)
    with pytest.raises(ImageTooLarge, match=r"10 x 10 pixels, the limit is 99"):
        decode(data, limits=ImageLimits(pixels=99))


def test_a_hundred_megapixels_in_a_few_kb_cost_nothing() -> None:
    """A bomb is refused by its header: its pixels may be cut away, and neither memory nor time is spent on them."""
    bomb = pictures.huge_png()
    assert len(bomb) < 20_000
    with pytest.raises(ImageTooLarge, match="10000 x 10000 pixels"):
        decode(bomb[:100])
    assert_refused_cheaply(bomb)


@pytest.mark.parametrize("image_format", ["JPEG", "GIF", "BMP", "WEBP"])
def test_headers_that_claim_too_much_cost_nothing(image_format: str) -> None:
    """No decoder sets memory aside for what a header claims."""
    assert_refused_cheaply(pictures.huge_claim(image_format))


def assert_refused_cheaply(data: bytes) -> None:
    started = time.perf_counter()
    with pytest.raises(ImageTooLarge, match=r"pixels, the limit is 50,000,000"):
        decode(data)
    assert time.perf_counter() - started < 0.1  # decoding takes 0.3 s and more
    child = subprocess.run([sys.executable, "-c", PEAK_OF_DECODING], input=data, capture_output=True, check=True)
    error, grown_kib = child.stdout.split()
    assert error == b"ImageTooLarge"
    assert int(grown_kib) < 4096  # decoded, the images take 100 MB and more


def test_the_bomb_is_a_real_image() -> None:
    """The same file, smaller, decodes: it is refused for its size and for nothing else."""
    assert_colours(decode(pictures.huge_png(64)), [(0, 0, 0)] * 4)


def reference(image: Image.Image, preprocessing: Preprocessing) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    """Resize the whole image, then cut the middle: the definition, for sizes that divide well."""
    scale = preprocessing.resize / min(image.size)
    width, height = (round(side * scale) for side in image.size)
    resampling = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
    resized = np.asarray(image.resize((width, height), resampling[preprocessing.interpolation]), dtype=np.float64)
    left, top = (width - preprocessing.crop) // 2, (height - preprocessing.crop) // 2
    cut = resized[top : top + preprocessing.crop, left : left + preprocessing.crop]
    return ((cut - preprocessing.mean) / preprocessing.std).transpose(2, 0, 1)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("size", [(48, 48), (96, 96), (96, 144), (24, 48), (240, 96), (12, 12)])
def test_equals_resize_then_crop(interpolation: str, size: tuple[int, int]) -> None:
    """Only the visible part is resized, and it is what resizing everything would give there."""
    preprocessing = Preprocessing(
        resize=48, crop=32, mean=(120.0, 115.0, 100.0), std=(58.0, 57.0, 59.0), interpolation=interpolation
    )
    # Mid-tones: where bicubic overshoots 0 or 255, the order of Pillow's two passes shows
    image = pictures.noise(256).crop((0, 0, *size)).point(lambda level: 80 + level // 3)
    array = to_array(image, preprocessing)
    assert array.dtype == np.float32
    assert array.shape == (3, 32, 32)
    assert array.flags["C_CONTIGUOUS"]
    # Pillow rounds to whole levels after each of its two passes: 2 levels of about 57
    np.testing.assert_allclose(array, reference(image, preprocessing), atol=2 / 57)


@pytest.mark.parametrize("size", [(1, 20_000), (20_000, 1), (3, 9_999)])
def test_slivers_cost_little(size: tuple[int, int]) -> None:
    """A line of pixels is not blown up to its full length before the crop."""
    started = time.perf_counter()
    pixels = to_array(pictures.plain(RED, size), PREPROCESSING)
    assert time.perf_counter() - started < 0.1  # whole, 1 x 20,000 would become 48 x 960,000 pixels
    np.testing.assert_allclose(pixels[:, 16, 16], [(255 - 120) / 58, -115 / 57, -100 / 59], rtol=1e-6)


def test_the_crop_is_the_middle() -> None:
    image = pictures.plain(RED, (30, 90))
    image.paste(BLUE, (0, 30, 30, 60))
    pixels = to_array(image, Preprocessing(resize=30, crop=30, mean=(0, 0, 0), std=(1, 1, 1)))
    assert (pixels[2] == 255).all()
    assert (pixels[0] == 0).all()


@given(
    resize=st.integers(1, 512),
    data=st.data(),
    interpolation=st.sampled_from(["bilinear", "bicubic"]),
    background=st.tuples(*[st.integers(0, 255)] * 3),
)
def test_json_round_trip(
    resize: int, data: st.DataObject, interpolation: str, background: tuple[int, int, int]
) -> None:
    numbers = st.floats(0.01, 255)
    value = Preprocessing(
        resize=resize,
        crop=data.draw(st.integers(1, resize)),
        mean=data.draw(st.tuples(numbers, numbers, numbers)),
        std=data.draw(st.tuples(numbers, numbers, numbers)),
        interpolation=interpolation,
        background=background,
    )
    assert Preprocessing.from_json(json.loads(json.dumps(value.to_json()))) == value


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"crop": 100}, "1 <= crop <= resize, found 100 and 48"),
        ({"crop": 0}, "1 <= crop <= resize"),
        ({"std": [1.0, 0.0, 1.0]}, "every std must be positive"),
        ({"interpolation": "nearest"}, "'nearest'"),
        ({"sharpen": True}, "sharpen"),
        ({"crop": "32"}, "preprocessing"),
        ({"mean": [1.0, 2.0]}, "mean"),
    ],
)
def test_unusable_json_is_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(CorruptArtifact, match=message):
        Preprocessing.from_json(PREPROCESSING.to_json() | change)


def test_missing_fields_are_refused() -> None:
    with pytest.raises(CorruptArtifact, match="std"):
        Preprocessing.from_json({"resize": 2, "crop": 2, "mean": [0, 0, 0]})
