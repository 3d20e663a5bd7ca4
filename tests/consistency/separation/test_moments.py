from __future__ import annotations

import itertools

import numpy as np
import pytest

from retrieval.consistency import labelled
from retrieval.consistency.pairs import tiles
from retrieval.consistency.separation.moments import class_moments, d_prime, pooled_moments


def test_moments_agree_with_one_pair_at_a_time_whatever_the_tile(family, monkeypatch: pytest.MonkeyPatch) -> None:
    rows, labels = family(np.random.default_rng(0), n_classes=5, n_images=4)
    vectors = labelled(rows, labels)
    expected = np.zeros((5, 2, 3))
    for i, j in itertools.combinations(range(20), 2):
        score, first, second = float(vectors.query[i] @ vectors.gallery[j]), vectors.codes[i], vectors.codes[j]
        for code in {first, second}:
            expected[code, int(first != second)] += 1, score, score**2
    for tile in (3, 7, 100):
        monkeypatch.setattr(tiles, "TILE", tile)
        assert class_moments(vectors) == pytest.approx(expected, abs=1e-6)
    assert expected[:, :, 0].tolist() == [[6, 64]] * 5
    assert pooled_moments(expected)[:, 0].tolist() == [30, 160]


def test_d_prime_by_hand() -> None:
    # within 1, 3: mean 2, variance 1; between -1, 1: mean 0, variance 1
    assert d_prime(np.array([[2.0, 4, 10], [2, 0, 2]])) == pytest.approx(2.0)
    # no spread: apart, alike
    assert d_prime(np.array([[[2.0, 4, 8], [2, 0, 0]], [[2.0, 4, 8], [2, 4, 8]]])).tolist() == [np.inf, 0]
