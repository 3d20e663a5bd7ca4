"""Augmentation: nothing changed is production, each change is what its name says, and draws repeat."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from numpy.typing import NDArray
from scipy.ndimage import map_coordinates

from retrieval.contract.preprocessing import Preprocessing
from tests.pictures import noise
from tests.training.data.conftest import PREPROCESSING, UNCHANGED
from training.config import AugmentationConfig
from training.data.augmentation import Change, apply_change, draw_changes

PLAIN = Preprocessing(resize=24, crop=20, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
SQUARE = np.array(noise(24, 3))


def change(**amounts: float) -> Change:
    (only,) = draw_changes(replace(UNCHANGED, **amounts), 1, np.random.default_rng(0))
    return only


def changed(square: NDArray[np.uint8], what: Change, preprocessing: Preprocessing = PLAIN) -> NDArray[np.float32]:
    return apply_change(square, what, preprocessing).numpy()


def test_without_changes_it_is_the_centre_square_normalised() -> None:
    mean, std = (np.array(values, dtype=np.float32) for values in (PREPROCESSING.mean, PREPROCESSING.std))
    expected = ((SQUARE[2:22, 2:22] - mean) / std).transpose(2, 0, 1)
    assert_allclose(changed(SQUARE, change(), PREPROCESSING), expected, atol=1e-4)


@pytest.mark.parametrize("crop", [20, 21, 24])
def test_geometry_against_an_independent_interpolation(crop: int) -> None:
    """Every pixel is where SciPy finds it; the edge is mirrored, also far outside."""
    for seed in range(5):
        (what,) = draw_changes(
            replace(UNCHANGED, zoom=0.7, stretch=0.3, rotate_degrees=40, shift=0.3), 1, np.random.default_rng(seed)
        )
        offsets = np.stack(np.meshgrid(np.arange(crop), np.arange(crop))).reshape(2, -1) - (crop - 1) / 2  # x, y
        x, y = what.geometry @ offsets + (what.shift * 24 + 11.5)[:, None]
        expected = [
            map_coordinates(SQUARE[..., channel].astype(float), [y, x], order=1, mode="reflect") for channel in range(3)
        ]
        found = changed(SQUARE, what, replace(PLAIN, crop=crop))
        assert_allclose(found, np.reshape(expected, (3, crop, crop)), atol=2e-2)  # float32 places a pixel to 1e-5


def test_amounts_of_geometry() -> None:
    """Zoom by its exponent, rotation by its angle, shift by its share: hand-computed from the drawn numbers."""
    zoom, stretch, angle, _ = np.random.default_rng(0).uniform(-1, 1, (4, 1))[:, 0]
    assert_allclose(change(zoom=0.2).geometry, np.eye(2) * np.exp(0.2 * zoom))
    aspect = np.exp(0.1 * stretch / 2)
    assert_allclose(change(stretch=0.1).geometry, [[aspect, 0], [0, 1 / aspect]])
    turn = np.deg2rad(10 * angle)
    assert_allclose(change(rotate_degrees=10).geometry, [[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    assert np.abs(change(shift=0.1).shift).max() <= 0.1


def test_flip_mirrors_left_and_right() -> None:
    assert_allclose(changed(SQUARE, change(flip=1.0)), changed(SQUARE, change())[:, :, ::-1], atol=1e-3)


def test_grey_has_one_value_a_pixel() -> None:
    grey = changed(SQUARE, change(grey=1.0))
    assert_array_equal(grey[0], grey[1])
    assert_array_equal(grey[0], grey[2])


def test_grey_and_mixed_colours_leave_white_white() -> None:
    """The background of a drawing is no clue to which change it went through."""
    white = np.full((24, 24, 3), 255, dtype=np.uint8)
    for what in draw_changes(replace(UNCHANGED, grey=0.5, mix_colours=0.1), 10, np.random.default_rng(0)):
        assert_allclose(changed(white, what), 255.0, atol=0.03)  # the weights of grey sum to 0.9999


def test_brightness_is_a_factor() -> None:
    dark = SQUARE // 4
    what = change(brightness=0.5)
    assert what.brightness != 1
    assert_allclose(changed(dark, what), changed(dark, change()) * what.brightness, rtol=1e-4, atol=1e-2)


def test_an_amount_moves_no_other() -> None:
    """Without rotation the rest is drawn as with it."""
    some, more = change(shift=0.1, brightness=0.2), change(shift=0.1, brightness=0.2, rotate_degrees=5, grey=1)
    assert_array_equal(some.shift, more.shift)
    assert some.brightness == more.brightness


def test_images_of_a_batch_are_changed_each_in_its_way() -> None:
    first, second = draw_changes(AugmentationConfig(), 2, np.random.default_rng(1))
    assert not np.allclose(changed(SQUARE, first), changed(SQUARE, second), atol=10)
    (again, _) = draw_changes(AugmentationConfig(), 2, np.random.default_rng(1))
    assert_array_equal(changed(SQUARE, first), changed(SQUARE, again))
