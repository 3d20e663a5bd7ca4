"""Decoded images in another process: the same rows without a second decoding, or one's own where that is not to be."""

from __future__ import annotations

import gc
import pickle
from dataclasses import replace
from pathlib import Path

import pytest
from numpy.testing import assert_array_equal

from retrieval.contract.manifest import Item
from tests.training.data.conftest import PREPROCESSING, configured, ignore, opened
from training.data import open_images_together
from training.data.sharing import borrow, lend


@pytest.mark.slow
def test_what_is_borrowed_is_what_was_lent(items_with_damage: list[Item], tmp_path: Path) -> None:
    """All but the pixels travels; they lie in one file, which is gone with whoever lent it."""
    images = opened(items_with_damage, tmp_path, configured(data={"max_unreadable": 0.1}))
    message = pickle.dumps(lend(images))
    assert len(message) < 10_000
    lent = pickle.loads(message)
    borrowed = borrow(lent)
    assert images.pixels is not None
    assert borrowed.pixels is not None
    assert_array_equal(borrowed.pixels, images.pixels)
    assert not borrowed.pixels.flags.writeable
    assert (borrowed.items, borrowed.classes, borrowed.digest) == (images.items, images.classes, images.digest)
    assert borrowed.unreadable == images.unreadable
    images.pixels[3] = 7
    assert (borrowed.square(3) == 7).all()
    del images
    gc.collect()
    with pytest.raises(OSError, match="No such file"):
        borrow(lent)
    assert (borrowed.square(3) == 7).all()


def test_who_cannot_borrow_decodes(training_items: list[Item], tmp_path: Path) -> None:
    config = configured().data
    alone = opened(training_items, tmp_path)
    unreachable = replace(lend(alone), path="/proc/0/fd/0")
    images = open_images_together(
        training_items, PREPROCESSING, config, cache=tmp_path, progress=ignore, on_each_machine=lambda _: unreachable
    )
    assert images.file is not None
    assert images.digest == alone.digest
