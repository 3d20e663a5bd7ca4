from __future__ import annotations

import numpy as np
import pytest

from retrieval.consistency import OperatingCurves, certify
from retrieval.errors import InvalidInput, NotEnoughEvidence

THRESHOLDS = np.linspace(0, 1, 501)


def curves_of(needed: np.ndarray, thresholds: np.ndarray = THRESHOLDS) -> OperatingCurves:
    """Class i has FAR 0.5 below needed[i] and 0.01 from there on."""
    n, m = len(needed), len(thresholds)
    return OperatingCurves(
        classes=tuple(str(row) for row in range(n)),
        n_images=np.full(n, 5),
        thresholds=thresholds,
        positives_accepted=np.zeros((n, m), dtype=np.int64),
        negatives_accepted=np.where(thresholds >= needed[:, None], 1, 50),
        positives=np.full(n, 10),
        negatives=np.full(n, 100),
        cosine=True,
    )


def test_nineteen_classes_by_hand() -> None:
    """ceil(20 * 0.9) = 18: the 18th smallest of 19 needed thresholds; with delta 0.05 the 19th."""
    curves = curves_of(np.random.default_rng(0).permutation(THRESHOLDS[20:400:20]))
    assert certify(curves, alpha=0.02, delta=0.1).threshold == THRESHOLDS[360]
    certificate = certify(curves, alpha=0.02, delta=0.05)
    assert certificate.threshold == THRESHOLDS[380]
    assert "FAR <= 0.02 with probability >= 0.95 (from 19 classes)" in str(certificate)


def test_too_few_classes_are_refused_with_the_number_that_suffices() -> None:
    curves = curves_of(np.linspace(0.1, 0.5, 18))
    with pytest.raises(NotEnoughEvidence, match="at least 19 classes, found 18"):
        certify(curves, alpha=0.02, delta=0.05)


def test_curves_that_end_too_low_are_refused() -> None:
    curves = curves_of(np.full(30, 0.9), thresholds=np.array([0.1, 0.5]))
    with pytest.raises(NotEnoughEvidence, match=r"30 of 30 classes exceed FAR 0\.02"):
        certify(curves, alpha=0.02, delta=0.1)


def test_certificate_holds_for_unseen_classes() -> None:
    """Over 2,000 draws of 40 classes a new one keeps alpha at least 1 - delta of the time, and not much more often."""
    rng = np.random.default_rng(1)
    held = []
    for _ in range(2000):
        needed = rng.beta(2, 5, size=41)
        certificate = certify(curves_of(needed[:40]), alpha=0.02, delta=0.1)
        held.append(certificate.threshold >= needed[40])
    # The guarantee is 37 / 41 = 0.902; binomial error 0.007, rounding up to the grid adds a little.
    assert 0.885 <= np.mean(held) <= 0.925


@pytest.mark.parametrize(("alpha", "delta"), [(0, 0.1), (1, 0.1), (0.1, 0), (0.1, 1)])
def test_impossible_levels_are_refused(alpha: float, delta: float) -> None:
    with pytest.raises(InvalidInput, match="alpha and delta"):
        certify(curves_of(np.linspace(0.1, 0.5, 18)), alpha=alpha, delta=delta)
