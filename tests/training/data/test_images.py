"""Images to train on: kept decoded in a nameless file or not kept, and refused where they teach nothing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal

from retrieval.contract.manifest import Item, read_manifest
from retrieval.contract.preprocessing import Preprocessing
from retrieval.errors import InvalidInput, NotEnoughEvidence
from tests.pictures import encoded, noise, write_class_folders
from tests.training.data.conftest import PREPROCESSING, configured, ignore, opened
from training.data import Unreadable, open_training_images, read_items, remarks, unchanged

UNCACHED = configured(data={"cache": "none"})


def test_an_unreadable_image_is_skipped_and_named(items_with_damage: list[Item], tmp_path: Path) -> None:
    images = opened(items_with_damage, tmp_path, configured(data={"max_unreadable": 0.1}))
    assert images.pixels is not None
    assert images.pixels.shape == (11, 24, 24, 3)
    assert [len(rows) for rows in images.members] == [4, 3, 4]
    assert [images.items[row].label for row in images.members[1]] == ["class_001"] * 3
    (failure,) = images.unreadable
    assert failure.item.id == "class_001/2.png"
    assert "truncated" in failure.reason


def test_nothing_stays_on_the_disk(training_items: list[Item], tmp_path: Path) -> None:
    opened(training_items, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_kept_and_fresh_pixels_are_the_same(training_items: list[Item], tmp_path: Path) -> None:
    kept, fresh = opened(training_items, tmp_path), opened(training_items, tmp_path, UNCACHED)
    assert fresh.pixels is None
    for row in range(len(training_items)):
        assert_array_equal(kept.square(row), fresh.square(row))


def test_unchanged_images_are_what_production_sees(items_with_damage: list[Item], tmp_path: Path) -> None:
    """Equal to float32 rounding, whether pixels are kept or not; an unreadable row is left out."""
    square = Preprocessing(resize=24, crop=24, mean=(0, 0, 0), std=(1, 1, 1))
    (production,) = read_items(items_with_damage, square, max_unreadable=0.1, progress=ignore)
    mean, std = (np.array(c, dtype=np.float32).reshape(3, 1, 1) for c in (PREPROCESSING.mean, PREPROCESSING.std))
    expected = (production.pixels[:, :, 2:22, 2:22] - mean) / std
    for config in (configured(data={"max_unreadable": 0.1}), UNCACHED):
        images = opened(items_with_damage, tmp_path, config)
        stretches = list(unchanged(images, PREPROCESSING, size=5))
        assert_allclose(torch.cat([pixels for _, pixels in stretches]).numpy(), expected, atol=1e-5)
        rows = np.concatenate([rows for rows, _ in stretches])
        assert [images.items[row] for row in rows] == list(production.items)


@pytest.mark.parametrize("cache", ["decoded", "none"])
@pytest.mark.parametrize(("n_classes", "n_images"), [(1, 4), (4, 1)])
def test_too_little_to_train_on_is_refused(tmp_path: Path, n_classes: int, n_images: int, cache: str) -> None:
    """One class, and one image per class."""
    folder = write_class_folders(tmp_path / "pictures", n_classes=n_classes, n_images=n_images)
    with pytest.raises(NotEnoughEvidence, match=f"two images of a class, found 4 images of {n_classes} classes"):
        opened(read_manifest(str(folder)), tmp_path, configured(data={"cache": cache}))


def test_images_without_a_label_are_refused(training_items: list[Item], tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"1 have none, for instance 'class_000/0\.png'"):
        opened([replace(training_items[0], label=""), *training_items[1:]], tmp_path)


def test_a_class_with_one_image_is_remarked_on(tmp_path: Path) -> None:
    folder = write_class_folders(tmp_path / "pictures", n_classes=2, n_images=3)
    (folder / "lonely").mkdir()
    (folder / "lonely" / "0.png").write_bytes(encoded(noise(32)))
    images = opened(read_manifest(str(folder)), tmp_path)
    assert images.single_image_classes == ("lonely",)
    told = remarks(images, configured(schedule={"classes": 5}).schedule)
    assert told[0] == "7 images of 3 classes to train on"
    assert told[1].startswith("1 classes have only one image and no true positive pair, for instance 'lonely'")
    assert told[2] == "schedule.classes is 5, but there are only 3 classes: a batch holds all of them"


def test_a_disk_without_room_is_refused_before_it_is_filled(training_items: list[Item], tmp_path: Path) -> None:
    """More bytes than any disk has: the message says how many, and what to do; nothing is left behind."""
    vast = replace(PREPROCESSING, resize=16_384)
    many = training_items * 10_000
    n_bytes = f"{len(many) * 16_384**2 * 3:,}"
    with pytest.raises(InvalidInput, match=rf'need {n_bytes} bytes, .* data\.cache = "none"'):
        open_training_images(many, vast, configured().data, cache=tmp_path, progress=ignore)
    assert list(tmp_path.iterdir()) == []


def test_a_lost_image_is_found_when_it_is_drawn(training_items: list[Item], tmp_path: Path) -> None:
    lost = replace(training_items[0], uri="file:///nowhere/lost.png")
    images = opened([lost, *training_items[1:]], tmp_path, UNCACHED)
    failure = images.square(0)
    assert isinstance(failure, Unreadable)
    assert failure.item == lost


def test_what_was_read_has_a_digest(training_items: list[Item], items_with_damage: list[Item], tmp_path: Path) -> None:
    """Of the rows, and of pixels that are kept; not of where they lie."""
    kept = opened(training_items, tmp_path)
    moved = tmp_path / "moved.png"
    moved.write_bytes(Path(training_items[0].uri.removeprefix("file://")).read_bytes())
    elsewhere = [replace(training_items[0], uri=f"file://{moved}"), *training_items[1:]]
    assert opened(elsewhere, tmp_path).digest == kept.digest
    moved.write_bytes(encoded(noise(32)))
    assert opened(elsewhere, tmp_path).digest != kept.digest
    assert opened(elsewhere, tmp_path, UNCACHED).digest == opened(training_items, tmp_path, UNCACHED).digest
    some = configured(data={"max_unreadable": 0.1})
    without = [item for item in items_with_damage if item.id != "class_001/2.png"]
    assert opened(items_with_damage, tmp_path, some).digest == opened(without, tmp_path, some).digest
