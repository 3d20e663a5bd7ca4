"""Whatever is done to a file, decoding it ends soon, with an image or with a declared error."""

from __future__ import annotations

import contextlib
import time

import numpy as np
import pytest

from retrieval.contract.limits import ImageLimits
from retrieval.contract.preprocessing import decode
from retrieval.errors import ImageTooLarge, InvalidImage
from tests import hostile
from tests.contract.test_pixels import ordinary
from tests.fuzzing import mutated, rounds

LIMITS = ImageLimits(pixels=2_000_000)


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
