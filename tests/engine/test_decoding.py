"""Large images take no thread and no memory from small ones."""

from __future__ import annotations

import asyncio
import threading
import time

import numpy as np
import pytest
from PIL import Image

from retrieval.contract.limits import DEFAULT_LIMITS, ImageLimits
from retrieval.contract.preprocessing import OpenedImage, Preprocessing, preprocess
from retrieval.engine import decoding
from retrieval.engine.decoding import Decoders, MemoryBudget, prepare
from retrieval.errors import ImageTooLarge, InvalidImage, Overloaded
from tests import hostile, pictures
from tests.pictures import encoded

PREPROCESSING = Preprocessing(resize=48, crop=32, mean=(120.0, 115.0, 100.0), std=(58.0, 57.0, 59.0))
SMALL = encoded(pictures.noise(64), "JPEG")


@pytest.fixture
def large(monkeypatch: pytest.MonkeyPatch) -> bytes:
    """An image that counts as large and is decoded fast."""
    monkeypatch.setattr(decoding, "_SMALL_WORK", 64 * 64)
    return encoded(pictures.noise(65), "JPEG")


def test_queries_and_indexing_prepare_alike(large: bytes) -> None:
    """An image gives the same input in every lane, or the same error."""
    for data in (SMALL, large):
        queried = asyncio.run(Decoders(2).prepare(data, PREPROCESSING, DEFAULT_LIMITS))
        np.testing.assert_array_equal(queried, preprocess(data, PREPROCESSING))
        np.testing.assert_array_equal(queried, prepare(data, PREPROCESSING, DEFAULT_LIMITS))
    with pytest.raises(InvalidImage, match="something else"):
        asyncio.run(Decoders(1).prepare(b"no image", PREPROCESSING, DEFAULT_LIMITS))


def test_small_images_pass_large_ones(large: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many large images are under way, and whether their callers wait or left, small ones are decoded."""
    go_on = threading.Event()
    decode = OpenedImage.decode

    def slow(self: OpenedImage, background: tuple[int, int, int]) -> Image.Image:
        if self.data == large:
            assert go_on.wait(30)
        return decode(self, background)

    monkeypatch.setattr(OpenedImage, "decode", slow)

    async def run() -> None:
        decoders = Decoders(2)
        waiting = [asyncio.create_task(decoders.prepare(large, PREPROCESSING, DEFAULT_LIMITS)) for _ in range(17)]
        done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        with pytest.raises(Overloaded, match="16 large images wait"):
            await done.pop()
        for task in waiting[:8]:
            task.cancel()
        for _ in range(10):
            await asyncio.wait_for(decoders.prepare(SMALL, PREPROCESSING, DEFAULT_LIMITS), 10)
        go_on.set()
        results = await asyncio.gather(*waiting, return_exceptions=True)
        assert sum(isinstance(result, np.ndarray) for result in results) == 8
        await decoders.prepare(large, PREPROCESSING, DEFAULT_LIMITS)  # what was cancelled takes no place any more

    asyncio.run(run())


def test_memory_is_shared_out_in_order() -> None:
    """Images wait until their memory is free, and none is overtaken for ever."""
    budget, order = MemoryBudget(), []

    def take(n_bytes: int) -> None:
        with budget.taken(n_bytes, 100):
            order.append(n_bytes)

    threads = [threading.Thread(target=take, args=(n_bytes,)) for n_bytes in (80, 30)]
    with budget.taken(60, 100):
        for thread in threads:
            thread.start()
            time.sleep(0.05)  # they line up in this order
        assert order == []
    for thread in threads:
        thread.join(10)
    assert order == [80, 30]


def test_memory_is_given_back_after_an_error() -> None:
    budget = MemoryBudget()
    with pytest.raises(ValueError, match="damaged"), budget.taken(100, 100):
        raise ValueError("damaged")
    with budget.taken(100, 100):
        pass


def test_an_image_that_takes_more_memory_than_there_is_is_refused_unseen() -> None:
    limits = ImageLimits(memory_bytes=64 * 2**20)
    with pytest.raises(ImageTooLarge, match="81,000,000 bytes of memory while it is decoded, the limit is 50,331,648"):
        prepare(hostile.grey_16_bit_png(3000), PREPROCESSING, limits)


def test_every_image_within_the_limit_on_pixels_fits_the_memory() -> None:
    """The defaults agree: the hungriest format takes 20 bytes a pixel."""
    assert 20 * DEFAULT_LIMITS.pixels <= DEFAULT_LIMITS.largest_bytes
