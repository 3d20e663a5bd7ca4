"""Few repetitions of `tests.bench.promises_kept --only rounds`, which has the settings and the figures."""

from __future__ import annotations

import numpy as np
import pytest

from tests.bench.measuring.coverage_in_rounds import ALPHA, DELTA, SEARCHES, promises


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "n_draws"),
    [
        ("40 of 2, FAR 1e-2", 25),
        ("60 of 4, heavy tails, FAR 1e-2", 15),
        ("20 families of 6", 15),
        ("20 families of 6, named", 15),
    ],
)
def test_promises_hold_in_rounds(name: str, n_draws: int) -> None:
    """Each 95 % interval and prediction, and both certificates, within three standard errors of few draws."""
    (searches,) = [searches for searches in SEARCHES if searches.name == name]
    found = promises(searches, n_draws, seed=7)
    for promise, covered in found.covered.items():
        assert covered.share >= 0.95 - 3 * np.sqrt(0.95 * 0.05 / covered.draws), (promise, covered.share)
    for promise, values in found.kept.items():
        error = 3 * np.std(values) / np.sqrt(len(values))
        if promise == "certificate":
            assert np.mean(values) >= 1 - DELTA - error, promise
        else:
            assert np.mean(values) <= ALPHA + error, promise
