"""Images of every mode become the same 8-bit RGB, whole or in rows."""

from __future__ import annotations

import io
import struct

import numpy as np
import pytest
from PIL import Image, ImageOps

from retrieval.contract import pixels
from retrieval.contract.preprocessing import decode
from retrieval.errors import InvalidImage
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


def grey_tiff(samples: np.ndarray, *, white_is_zero: bool = False) -> bytes:
    """One strip of grey as it is in memory, little-endian."""
    height, width = samples.shape
    form = {"u": 1, "i": 2, "f": 3}[samples.dtype.kind]
    bits, photometric = 8 * samples.dtype.itemsize, int(not white_is_zero)
    tags = [(256, width), (257, height), (258, bits), (259, 1), (262, photometric), (273, 134), (277, 1), (278, height)]
    tags += [(279, samples.nbytes), (339, form)]
    entries = b"".join(struct.pack("<HHII", tag, 4 if tag in (273, 279) else 3, 1, value) for tag, value in tags)
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4) + samples.tobytes()


RAMP = np.linspace(0, 1, 16 * 16).reshape(16, 16)


@pytest.mark.parametrize("form", ["f4", "i4", "u4"])
@pytest.mark.parametrize("white", [255, 4095, 65_535, 2**24 - 1, 2**31 - 1, 2**32 - 1])
def test_deep_grey_is_as_bright_as_its_picture(form: str, white: int) -> None:
    """Whatever number is white in it: the usual depths of cameras and programs are recognised by the values."""
    if form == "i4" and white > 2**31:
        return
    samples = (RAMP * white).astype(form)
    np.testing.assert_allclose(np.asarray(decode(grey_tiff(samples)))[..., 0], RAMP * 255, atol=1)


@pytest.mark.parametrize("white", [1.0, 255.0])
@pytest.mark.parametrize("over", [1.0, 1.01, 1.5])
def test_floats_that_overshoot_are_as_bright(white: float, over: float) -> None:
    """Resampling rings: one value above white must not make the picture black."""
    samples = (RAMP * white).astype(np.float32)
    samples[-1, -1] = white * over
    np.testing.assert_allclose(np.asarray(decode(grey_tiff(samples)))[..., 0], RAMP * 255, atol=1)


@pytest.mark.parametrize("form", ["u1", "u2", "f4"])
def test_grey_whose_zero_is_white_is_no_negative(form: str) -> None:
    """Pillow turns it round for 8 bits only."""
    white = 1.0 if form == "f4" else 2.0 ** (8 * np.dtype(form).itemsize) - 1
    decoded = np.asarray(decode(grey_tiff((RAMP * white).astype(form), white_is_zero=True)))[..., 0]
    np.testing.assert_allclose(decoded, 255 - RAMP * 255, atol=1)


def test_a_kind_of_a_known_format_that_cannot_be_decoded_is_named() -> None:
    """Doubles, which Pillow does not read: the message must not deny that it is a TIFF."""
    with pytest.raises(InvalidImage, match="a kind of TIFF that cannot be decoded: convert it"):
        decode(grey_tiff(RAMP))
