"""First bytes name a format; HEIC and AVIF are read where a plug-in is, and named with the remedy elsewhere."""

from __future__ import annotations

import io

import numpy as np
import pytest

from retrieval.contract import preprocessing
from retrieval.contract.formats import HEAD_BYTES, sniffed
from retrieval.contract.preprocessing import decode
from retrieval.errors import InvalidImage
from tests.pictures import encoded, quarters

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")


def modern(name: str) -> bytes:
    """Four quarters as HEIC or AVIF; the test is skipped where nothing can write it."""
    if name == "AVIF":
        if "AVIF" not in preprocessing._FORMATS:
            pytest.skip("this Pillow is built without AVIF")
        return encoded(quarters(), "AVIF", quality=95)
    heif = pytest.importorskip("pillow_heif")
    buffer = io.BytesIO()
    heif.from_pillow(quarters()).save(buffer, quality=95)
    return buffer.getvalue()


@pytest.mark.parametrize("name", FORMATS)
def test_formats_by_their_first_bytes(name: str) -> None:
    assert sniffed(encoded(quarters(), name)[:HEAD_BYTES]) == name


@pytest.mark.parametrize(
    "head",
    [
        b"",
        b"BM",
        b"BMW and other makers of cars, in a list of 64 bytes",
        b"RIFF\0\0\0\0WAVEfmt ",
        b"%PDF-1.7",
        b"<svg>",
    ],
)
def test_what_is_no_image(head: bytes) -> None:
    assert sniffed(head) == ""


@pytest.mark.parametrize(
    ("brands", "expected"),
    [
        (b"heic\0\0\0\0mif1heic", "HEIC"),
        (b"mif1\0\0\0\0mif1avif", "AVIF"),
        (b"avif\0\0\0\0avifmif1", "AVIF"),
        (b"isom\0\0\0\0isommp42", ""),  # a film
    ],
)
def test_images_in_iso_media_files(brands: bytes, expected: str) -> None:
    assert sniffed((8 + len(brands)).to_bytes(4, "big") + b"ftyp" + brands + b"\0\0\0\x10avif") == expected


@pytest.mark.parametrize("name", ["HEIC", "AVIF"])
def test_modern_formats_are_read_with_their_plug_in(name: str) -> None:
    data = modern(name)
    assert sniffed(data[:HEAD_BYTES]) == name
    difference = np.asarray(decode(data), np.float32) - np.asarray(quarters(), np.float32)
    assert np.abs(difference).mean() < 8


@pytest.mark.parametrize(
    ("name", "remedy"), [("HEIC", r"threshold-retrieval\[heif\]"), ("AVIF", "Pillow that is built with AVIF")]
)
def test_without_a_plug_in_the_remedy_is_named(name: str, remedy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    data = modern(name)
    monkeypatch.setattr(preprocessing, "_FORMATS", FORMATS)
    with pytest.raises(InvalidImage, match=f"the image is {name}: install .*{remedy}"):
        decode(data)
