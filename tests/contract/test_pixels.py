"""Images of every mode become the same 8-bit RGB, whole or in rows."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image, ImageOps

from retrieval.contract import pixels
from retrieval.contract.preprocessing import decode
from tests import hostile, pictures
from tests.pictures import encoded

SIDE = 64


def reference(data: bytes) -> np.ndarray:
    """The definition, for whole images: upright, deep grey to 8 bits, transparent pixels on white."""
    image = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    if image.mode.startswith("I"):
        values = np.asarray(image, dtype=np.float64)
        top = 65535.0 if image.mode.startswith("I;16") or values.max() > 255 else 255.0
        image = Image.fromarray(np.clip(values * (255.0 / top), 0, 255).round().astype(np.uint8))
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        image = Image.new("RGB", rgba.size, (255, 255, 255))
        image.paste(rgba, mask=rgba.getchannel("A"))
    return np.asarray(image.convert("RGB"))


def ordinary() -> dict[str, bytes]:
    """One image of each kind."""
    noise = pictures.noise(SIDE)
    alpha = Image.fromarray(np.random.default_rng(1).integers(0, 256, (SIDE, SIDE), dtype=np.uint8))
    rgba = noise.copy()
    rgba.putalpha(alpha)
    deep = np.random.default_rng(2).integers(0, 65536, (SIDE, SIDE), dtype=np.uint16)
    return {
        "png": encoded(noise),
        "png rgba": encoded(rgba),
        "png la": encoded(Image.merge("LA", (noise.getchannel(0), alpha))),
        "png p": encoded(noise.convert("P")),
        "png p transparent": encoded(noise.convert("P"), transparency=bytes(range(256))),
        "png l transparent": encoded(noise.convert("L"), transparency=100),
        "png rgb transparent": encoded(noise, transparency=noise.getpixel((3, 3))),
        "png 1": encoded(noise.convert("1")),
        "png 16": encoded(Image.fromarray(deep)),
        "tiff 16": encoded(Image.fromarray(deep), "TIFF"),
        "tiff 32": encoded(Image.fromarray(deep.astype(np.int32)), "TIFF"),
        "tiff lzw": encoded(noise, "TIFF", compression="tiff_lzw"),
        "jpeg": encoded(noise, "JPEG"),
        "jpeg progressive": encoded(noise, "JPEG", progressive=True),
        "jpeg grey": encoded(noise.convert("L"), "JPEG"),
        "jpeg cmyk": encoded(noise.convert("CMYK"), "JPEG"),
        "webp": encoded(noise, "WEBP"),
        "webp rgba": encoded(rgba, "WEBP"),
        "gif": encoded(noise.convert("P"), "GIF"),
        "gif transparent": encoded(noise.convert("P"), "GIF", transparency=7),
        "bmp": encoded(noise, "BMP"),
        **{f"jpeg orientation {number}": pictures.rotated_jpeg(number) for number in range(1, 9)},
    }


@pytest.mark.parametrize("name", ordinary())
@pytest.mark.parametrize("rows", [1, 7, 1000])
def test_ordinary_images_are_bit_identical_to_the_definition(
    name: str, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """How many rows are converted at a time does not show."""
    monkeypatch.setattr(pixels, "_ROW_PIXELS", rows * SIDE)
    data = ordinary()[name]
    np.testing.assert_array_equal(np.asarray(decode(data)), reference(data))


@pytest.mark.parametrize("largest", [0.5, 1.0, 1.2])
def test_floats_from_0_to_1_are_a_picture(largest: float) -> None:
    """The usual range of floats is not black; what overshoots 1 is white."""
    values = np.linspace(0, largest, SIDE * SIDE, dtype=np.float32).reshape(SIDE, SIDE)
    decoded = np.asarray(decode(encoded(Image.fromarray(values), "TIFF")))[..., 0]
    np.testing.assert_array_equal(decoded, np.clip(values.astype(np.float64) * 255.0, 0, 255).round().astype(np.uint8))


def test_floats_that_are_no_numbers_are_black_and_change_no_range() -> None:
    values = np.full((8, 8), 0.5, dtype=np.float32)
    values[0, :3] = np.nan, np.inf, -np.inf
    decoded = np.asarray(decode(encoded(Image.fromarray(values), "TIFF")))[..., 0]
    assert list(decoded[0, :4]) == [0, 255, 0, 128]


def test_negative_floats_are_black() -> None:
    values = np.array([[-3.0, 0.0], [0.5, 1.0]], dtype=np.float32)
    np.testing.assert_array_equal(
        np.asarray(decode(encoded(Image.fromarray(values), "TIFF")))[..., 0], [[0, 0], [128, 255]]
    )


@pytest.mark.parametrize("rows", [1, 1000])
def test_the_transparent_grey_of_16_bits_is_background(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only that very value is transparent, not its neighbours that look alike in 8 bits."""
    monkeypatch.setattr(pixels, "_ROW_PIXELS", 2 * rows)
    samples = np.array([[1000, 1001], [30_000, 1000]])
    data = hostile.png_of_samples(samples, 16, 0, (1000).to_bytes(2, "big"))
    red = np.asarray(decode(data, background=(255, 0, 0)))
    np.testing.assert_array_equal(red, [[[255, 0, 0], [4, 4, 4]], [[117, 117, 117], [255, 0, 0]]])


@pytest.mark.parametrize(("bits", "value"), [(2, 1), (2, 3), (4, 7), (4, 0)])
def test_the_transparent_grey_of_few_bits_is_background(bits: int, value: int) -> None:
    other = (value + 1) % 2**bits
    data = hostile.png_of_samples(np.array([[value, other]] * 2), bits, 0, value.to_bytes(2, "big"))
    level = other * 255 // (2**bits - 1)
    np.testing.assert_array_equal(np.asarray(decode(data, background=(0, 255, 0))), [[[0, 255, 0], [level] * 3]] * 2)


def test_the_transparent_colour_of_16_bits_is_background() -> None:
    samples = np.array([[[1000, 2000, 3000], [40_000, 2000, 3000]]])
    data = hostile.png_of_samples(samples, 16, 2, np.array([1000, 2000, 3000], ">u2").tobytes())
    np.testing.assert_array_equal(np.asarray(decode(data, background=(0, 255, 0))), [[[0, 255, 0], [156, 7, 11]]])
