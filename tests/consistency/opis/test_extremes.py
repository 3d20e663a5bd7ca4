from __future__ import annotations

import numpy as np
import pytest

from retrieval.consistency.opis.extremes import extreme_gap, extreme_gap_floor
from retrieval.consistency.opis.noise import SharedCurve
from retrieval.consistency.opis.utility import Band

BAND = Band(np.array([0.1, 0.2]), np.array([1.0, 0.9]), np.array([0.1, 0.1]))


def test_gap_by_hand() -> None:
    """Ten classes of utility 0 to 0.9: the worst and best two at 20 % are 0.05 and 0.85 in the mean."""
    utilities = np.tile(np.random.default_rng(0).permutation(10)[:, None] / 10, (1, 2))
    equal = np.full(10, 0.1)
    assert extreme_gap(utilities, BAND, equal, 20) == pytest.approx(0.64)
    assert extreme_gap(utilities, BAND, equal, 1) == pytest.approx(0.81)
    assert extreme_gap(utilities, BAND, np.stack([equal, equal]), 20) == pytest.approx([0.64, 0.64])


def test_a_heavy_class_fills_its_end_alone() -> None:
    """Weight 0.5 on the worst of three classes, a third of the weight at either end."""
    utilities = np.array([[0.2, 0.2], [0.6, 0.6], [0.8, 0.8]])
    assert extreme_gap(utilities, BAND, np.array([0.5, 0.25, 0.25]), 34) == pytest.approx(
        (0.75 * 0.8 + 0.25 * 0.6 - 0.2) ** 2
    )


def test_classes_are_ranked_once_by_their_mean_over_the_band() -> None:
    utilities = np.array([[0.0, 0.9], [0.5, 0.5]])
    assert extreme_gap(utilities, BAND, np.full(2, 0.5), 50) == pytest.approx((0.5**2 + 0.4**2) / 2)


def test_floor_falls_with_images_and_agrees_with_the_definition(family) -> None:
    draw = np.random.default_rng(1)
    equal, tar = np.full(50, 0.02), np.array([0.7, 0.6])
    nulls = [SharedCurve(BAND, tar, np.full(50, size * (size - 1) / 2), equal, c=1.0) for size in (3, 6, 20)]
    floors = [extreme_gap_floor(null, 10.0, draw) for null in nulls]
    assert floors[0] > floors[1] > floors[2] > 0
    gaps = []
    for _ in range(300):  # one pair at a time, accepted at neither, the first or both thresholds
        level = draw.random((50, 15))
        rates = np.stack([(level < chance).mean(axis=1) for chance in tar], axis=1)
        utilities = 2 * 0.9 * rates / (0.9 + rates)
        ranked = utilities[np.argsort(utilities.mean(axis=1))]
        gaps.append(((ranked[:5].mean(axis=0) - ranked[-5:].mean(axis=0)) ** 2).mean())
    assert floors[1] == pytest.approx(np.mean(gaps), rel=0.1)
