"""Training images: the production pixels, damaged files skipped and counted, batches of classes, augmentation."""

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal

from retrieval.contract.manifest import Item, read_manifest
from retrieval.contract.preprocessing import Preprocessing, preprocess
from retrieval.errors import NotEnoughEvidence, TooManyFailures
from tests.pictures import encoded, noise, truncated_jpeg, write_class_folders
from training.config import AugmentationConfig
from training.data import augment, draw_batch, load_training_images, normalise, read_items

PREPROCESSING = Preprocessing(resize=24, crop=20, mean=(127.0, 120.0, 110.0), std=(60.0, 58.0, 57.0))
UNCHANGED = AugmentationConfig(
    zoom=0, stretch=0, rotate_degrees=0, shift=0, flip=0, grey=0, mix_colours=0, brightness=0
)


def ignore(done: int, total: int) -> None: ...


def white_and_coloured(n: int) -> torch.Tensor:
    """A white image and n - 1 of noise: [n, 24, 24, 3] uint8."""
    images = np.stack([np.asarray(noise(24, seed)) for seed in range(n)])
    images[0] = 255
    return torch.from_numpy(images)


def with_damaged_file(tmp_path: Path) -> list[Item]:
    folder = write_class_folders(tmp_path / "pictures", n_classes=3, n_images=4)
    (folder / "class_001" / "2.png").write_bytes(truncated_jpeg())
    return read_manifest(str(folder))


def test_items_are_read_as_production_reads_them(training_items: list[Item]) -> None:
    calls: list[tuple[int, int]] = []
    batches = list(
        read_items(training_items, PREPROCESSING, max_unreadable=0, progress=lambda *call: calls.append(call))
    )
    expected = [preprocess(Path(i.uri.removeprefix("file://")).read_bytes(), PREPROCESSING) for i in training_items]
    assert_array_equal(np.concatenate([batch.pixels for batch in batches]), np.stack(expected))
    assert [item for batch in batches for item in batch.items] == training_items
    assert calls[-1] == (len(training_items), len(training_items))


def test_an_unreadable_image_is_skipped_and_named(tmp_path: Path) -> None:
    images = load_training_images(
        with_damaged_file(tmp_path), PREPROCESSING, tmp_path / "cache.npy", max_unreadable=0.1, progress=ignore
    )
    assert images.pixels.shape == (11, 24, 24, 3)
    assert np.bincount(images.labels).tolist() == [4, 3, 4]
    (failure,) = images.unreadable
    assert failure.item.id == "class_001/2.png"
    assert "truncated" in failure.reason
    assert not (tmp_path / "cache.npy").exists()


def test_a_missing_file_is_unreadable_too(training_items: list[Item]) -> None:
    lost = Item(id="lost", uri="file:///nowhere/lost.png", label="x", attributes={})
    (batch,) = read_items([*training_items, lost], PREPROCESSING, max_unreadable=0.1, progress=ignore)
    assert [failure.item.id for failure in batch.unreadable] == ["lost"]
    assert len(batch.items) == len(batch.pixels) == len(training_items)


def test_too_many_unreadable_images_stop_the_run(tmp_path: Path) -> None:
    with pytest.raises(TooManyFailures, match=r"1 of the first 12 images .*class_001/2\.png"):
        list(read_items(with_damaged_file(tmp_path), PREPROCESSING, max_unreadable=0.05, progress=ignore))


@pytest.mark.parametrize(("n_classes", "n_images"), [(1, 4), (4, 1)])
def test_too_little_to_train_on_is_refused(tmp_path: Path, n_classes: int, n_images: int) -> None:
    folder = write_class_folders(tmp_path / "pictures", n_classes=n_classes, n_images=n_images)
    with pytest.raises(NotEnoughEvidence, match=f"found 4 images of {n_classes} classes"):
        load_training_images(
            read_manifest(str(folder)), PREPROCESSING, tmp_path / "cache.npy", max_unreadable=0, progress=ignore
        )


def test_a_class_with_one_image_is_named(tmp_path: Path) -> None:
    folder = write_class_folders(tmp_path / "pictures", n_classes=2, n_images=3)
    (folder / "lonely").mkdir()
    (folder / "lonely" / "0.png").write_bytes(encoded(noise(32)))
    images = load_training_images(
        read_manifest(str(folder)), PREPROCESSING, tmp_path / "cache.npy", max_unreadable=0, progress=ignore
    )
    assert images.single_image_classes == ("lonely",)


def test_a_batch_holds_as_many_images_of_as_many_classes_as_asked() -> None:
    members = [np.arange(10 * row, 10 * row + size) for row, size in enumerate([5, 1, 3, 8])]
    rows = draw_batch(members, classes=3, images=3, rng=np.random.default_rng(0)).reshape(3, 3)
    assert len({row[0] // 10 for row in rows}) == 3
    for row in rows:
        assert len(set(row // 10)) == 1
        assert len(set(row)) == min(3, len(members[row[0] // 10]))


def test_a_batch_takes_all_classes_where_there_are_too_few() -> None:
    members = [np.array([0, 1]), np.array([2, 3])]
    rows = draw_batch(members, classes=32, images=2, rng=np.random.default_rng(0))
    assert sorted(rows) == [0, 1, 2, 3]


def test_without_changes_training_sees_what_production_sees(training_items: list[Item], tmp_path: Path) -> None:
    """Cached, cropped, interpolated and normalised pixels equal production's to float32 rounding."""
    images = load_training_images(
        training_items, PREPROCESSING, tmp_path / "cache.npy", max_unreadable=0, progress=ignore
    )
    cached = torch.from_numpy(np.asarray(images.pixels))
    square = Preprocessing(resize=24, crop=24, mean=(0, 0, 0), std=(1, 1, 1))
    (production,) = read_items(training_items, square, max_unreadable=0, progress=ignore)
    mean, std = (np.array(c, dtype=np.float32).reshape(3, 1, 1) for c in (PREPROCESSING.mean, PREPROCESSING.std))
    expected = (production.pixels[:, :, 2:22, 2:22] - mean) / std
    assert_allclose(normalise(cached, PREPROCESSING).numpy(), expected, atol=1e-5)
    assert_allclose(augment(cached, UNCHANGED, PREPROCESSING).numpy(), expected, atol=1e-4)


def test_augmentation_changes_images_and_repeats_with_the_seed() -> None:
    pixels = white_and_coloured(6)
    changed = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        changed.append(augment(pixels, AugmentationConfig(), PREPROCESSING))
    assert changed[0].shape == (6, 3, 20, 20)
    assert torch.equal(changed[0], changed[1])
    assert not torch.allclose(changed[0][1:], changed[2][1:], atol=0.1)


def test_flip_mirrors_left_and_right() -> None:
    pixels = white_and_coloured(4)
    flipped = augment(pixels, AugmentationConfig(**{**_values(UNCHANGED), "flip": 1.0}), PREPROCESSING)
    assert_allclose(flipped.numpy(), normalise(pixels, PREPROCESSING).flip(3).numpy(), atol=1e-4)


def test_grey_and_mixed_colours_leave_white_white() -> None:
    """The background of a drawing is no clue to which change it went through."""
    config = AugmentationConfig(**{**_values(UNCHANGED), "grey": 0.5, "mix_colours": 0.1})
    white = normalise(white_and_coloured(1), PREPROCESSING)
    for seed in range(10):
        torch.manual_seed(seed)
        changed = augment(white_and_coloured(1), config, PREPROCESSING)
        assert_allclose(changed.numpy(), white.numpy(), atol=1e-4)


def _values(config: AugmentationConfig) -> dict[str, float]:
    return {name: getattr(config, name) for name in config.__slots__}
