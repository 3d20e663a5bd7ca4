"""Whatever is done to a file, decoding it ends soon, with an image or with a declared error."""

from __future__ import annotations

import contextlib
import io
import time
from collections import Counter

import numpy as np
import pillow_heif
import pytest

from retrieval.contract.limits import ImageLimits
from retrieval.contract.preprocessing import Preprocessing, decode
from retrieval.engine.decoding.lanes import Decoders
from retrieval.errors import ImageTooLarge, InvalidImage
from tests import hostile, pictures
from tests.contract.test_pixels import ordinary
from tests.fuzzing import mutated, rounds
from tests.pictures import encoded

LIMITS = ImageLimits(pixels=2_000_000)
PREPROCESSING = Preprocessing(resize=48, crop=32, mean=(120.0, 115.0, 100.0), std=(58.0, 57.0, 59.0))


def rarer() -> dict[str, bytes]:
    """Formats of large libraries, animations, and files with much beside their pixels."""
    noise, more = pictures.noise(64), [pictures.noise(64, seed=n) for n in range(1, 4)]
    heif = io.BytesIO()
    pillow_heif.from_pillow(noise).save(heif, quality=50)
    files = {
        f"tiff {mode} {kind}": encoded(noise.convert(mode), "TIFF", compression=kind)
        for mode, kind in (
            ("RGB", "jpeg"),
            ("CMYK", "tiff_adobe_deflate"),
            ("L", "packbits"),
            ("1", "group4"),
            ("LAB", None),
        )
    }
    return {
        **files,
        "tiff big": encoded(noise, "TIFF", big_tiff=True),
        "avif": encoded(noise, "AVIF", speed=10),
        "heif": heif.getvalue(),
        "jpeg 2000": encoded(noise, "JPEG2000"),
        "gif animated": encoded(noise.convert("P"), "GIF", save_all=True, append_images=more),
        "webp animated": encoded(noise, "WEBP", save_all=True, append_images=more),
        "webp lossless": encoded(noise, "WEBP", lossless=True),
        "png animated": encoded(noise, "PNG", save_all=True, append_images=more),
        "png interlaced text": hostile.png_with(hostile.chunk(b"zTXt", b"k\0\0x\x9c\x03\0\0\0\0\x01")),
        "bmp 1": encoded(noise.convert("1"), "BMP"),
        "eps": encoded(noise, "EPS"),
    }  # fmt: skip


@pytest.mark.slow
def test_mutated_images_of_every_format_cost_one_request_each() -> None:
    """In the processes of the server, which a library may crash: the next image is decoded all the same."""
    images, decoders, outcomes = list(rarer().values()), Decoders(1), Counter[str]()
    for rng in rounds(600):
        data = mutated(images[rng.integers(0, len(images))], rng, images)
        try:
            assert decoders.prepare(data, PREPROCESSING, LIMITS).shape == (3, 32, 32)
            outcomes["decoded"] += 1
        except (InvalidImage, ImageTooLarge) as error:
            outcomes[type(error).__name__] += 1
            outcomes["slow"] += "CPU seconds" in str(error)
    assert outcomes["slow"] == 0, "a small file took ten seconds"
    assert outcomes["decoded"] > 20
    assert outcomes["InvalidImage"] > 20


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # Pillow's, about the metadata of damaged files
def test_mutated_images_are_decoded_or_refused_soon() -> None:
    images = [
        *ordinary().values(),
        hostile.run_length_bmp(64),
        hostile.gif_with_comment(100),
        hostile.many_scans(64, 30),
        hostile.png_of_samples(np.arange(64).reshape(8, 8) * 900, 16, 0, b"\x03\x84"),
    ]
    for rng in rounds(1500):
        data = mutated(images[rng.integers(0, len(images))], rng, images)
        started = time.process_time()
        with contextlib.suppress(InvalidImage, ImageTooLarge):
            assert decode(data, limits=LIMITS).mode == "RGB"
        assert time.process_time() - started < 2
