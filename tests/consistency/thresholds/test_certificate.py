from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray

from retrieval.consistency import certify, certify_mean, labelled, operating_curves
from retrieval.errors import InvalidInput, NotEnoughEvidence


def needed(rows: NDArray[np.float32], codes: NDArray[np.int64], alpha: float, *, of_new: int = 0) -> list[float]:
    """Each class's smallest threshold with FAR at most alpha, from its sorted scores."""
    scores, found = rows @ rows.T, []
    for code in np.unique(codes):
        own = codes == code
        negatives = np.sort(scores[np.ix_(own, ~own)].ravel())[::-1]
        extra = own.sum() * of_new
        allowed = math.floor(alpha * (len(negatives) + extra) - extra + 1e-9)
        found.append(float(np.nextafter(negatives[allowed], np.float32(9))))
    return found


@pytest.mark.parametrize(("delta", "rank"), [(0.1, 18), (0.05, 19)])
@pytest.mark.parametrize("strict", [False, True])
def test_it_is_the_order_statistic_of_what_classes_need(delta: float, rank: int, strict: bool, family) -> None:
    """ceil(20 * 0.9) = 18: the 18th smallest of 19 needed thresholds; with delta 0.05 the 19th."""
    rows, labels = family(np.random.default_rng(0), n_classes=19, n_images=5, spread=0.3)
    codes = np.repeat(np.arange(19), 5)
    kept = np.random.default_rng(1).permutation(95)[:80]
    rows, codes = rows[kept], codes[kept]
    largest = int(np.bincount(codes).max())
    expected = sorted(needed(rows, codes, 0.2, of_new=largest if strict else 0))[rank - 1]
    found = certify(labelled(rows, [labels[5 * code] for code in codes]), alpha=0.2, delta=delta, strict=strict)
    assert found.threshold == pytest.approx(expected, abs=1e-6)  # products of other tiles differ in the last digit
    curves = operating_curves(labelled(rows, [labels[5 * code] for code in codes]), thresholds=[found.threshold])
    assert (found.far, found.tar) == (curves.pooled_far[0], curves.pooled_tar[0])
    assert np.count_nonzero(curves.far[:, 0] <= 0.2) >= rank
    assert f"FAR <= 0.2 with probability >= {1 - delta:g} (from 19 classes" in str(found)


def test_no_lower_float32_is_certified(family) -> None:
    rows, labels = family(np.random.default_rng(2), n_classes=30, n_images=4, spread=0.3)
    found = certify(labelled(rows, labels), alpha=0.1, delta=0.1, strict=False)
    below = float(np.nextafter(np.float32(found.threshold), np.float32(-1)))
    keeping = (operating_curves(labelled(rows, labels), thresholds=[below, found.threshold]).far <= 0.1).sum(axis=0)
    assert keeping[0] < math.ceil(31 * 0.9) == 28 <= keeping[1]
    mean = certify_mean(labelled(rows, labels), alpha=0.1, strict=False)
    below = float(np.nextafter(np.float32(mean.threshold), np.float32(-1)))
    risk = (operating_curves(labelled(rows, labels), thresholds=[below, mean.threshold]).far.sum(axis=0) + 1) / 31
    assert risk[1] <= 0.1 + 1e-12 < risk[0]


def test_frr_is_certified_from_the_other_side(family) -> None:
    """The highest threshold at which enough classes keep FRR; their own pairs alone decide."""
    rows, labels = family(np.random.default_rng(3), n_classes=40, n_images=4, spread=0.3)
    found = certify(labelled(rows, labels), alpha=0.5, delta=0.1, rate="frr")
    above = float(np.nextafter(np.float32(found.threshold), np.float32(9)))
    keeping = (operating_curves(labelled(rows, labels), thresholds=[found.threshold, above]).tar >= 0.5).sum(axis=0)
    assert keeping[1] < math.ceil(41 * 0.9) <= keeping[0]
    mean = certify_mean(labelled(rows, labels), alpha=0.3, rate="frr")
    above = float(np.nextafter(np.float32(mean.threshold), np.float32(9)))
    frr = 1 - operating_curves(labelled(rows, labels), thresholds=[mean.threshold, above]).tar
    risk = (frr.sum(axis=0) + 1) / 41
    assert risk[0] <= 0.3 + 1e-12 < risk[1]
    assert not found.strict
    assert "FRR of a new class is <= 0.3 on average (from 40 classes)" in str(mean)


def test_strict_is_never_below_plain(family) -> None:
    rows, labels = family(np.random.default_rng(4), n_classes=50, n_images=3, spread=0.3)
    for alpha in (0.1, 0.3):
        plain, strict = (certify(labelled(rows, labels), alpha=alpha, delta=0.1, strict=s) for s in (False, True))
        assert plain.threshold <= strict.threshold
        plain_mean, strict_mean = (certify_mean(labelled(rows, labels), alpha=alpha, strict=s) for s in (False, True))
        assert plain_mean.threshold <= strict_mean.threshold


@pytest.mark.slow
def test_promises_hold_for_unseen_classes(family) -> None:
    """Over 150 draws of 30 classes and 10 new ones: the strict promises are kept, on average over everything drawn."""
    rng, kept, means, rejected = np.random.default_rng(5), [], [], []
    for _ in range(150):
        rows, labels = family(rng, n_classes=40, n_images=2, dimension=12, spread=0.3, crowding=0.8)
        old = (rows[:60], labels[:60])
        scores = rows[60:] @ rows[:60].T
        for certificate, found in (
            (certify(labelled(*old), alpha=0.2, delta=0.1), kept),
            (certify_mean(labelled(*old), alpha=0.2), means),
        ):
            far = (scores >= certificate.threshold).reshape(10, -1).mean(axis=1)
            found.append((far <= 0.2).mean() if found is kept else far.mean())
        own = (rows[60::2] * rows[61::2]).sum(axis=1)
        rejected.append((own < certify_mean(labelled(*old), alpha=0.3, rate="frr").threshold).mean())
    # Standard errors over draws are below 0.01.
    assert np.mean(kept) >= 0.9 - 0.02
    assert np.mean(means) <= 0.2 + 0.02
    assert 0.2 <= np.mean(rejected) <= 0.3 + 0.03


def test_too_few_classes_are_refused_with_the_number_that_suffices(family) -> None:
    rows, labels = family(np.random.default_rng(6), n_classes=18, n_images=3)
    with pytest.raises(NotEnoughEvidence, match="at least 19 classes, found 18"):
        certify(labelled(rows, labels), alpha=0.2, delta=0.05)
    with pytest.raises(
        NotEnoughEvidence, match=r"at no threshold do 18 of 18 classes keep FAR <= 0.02.* about 50 classes"
    ):
        certify(labelled(rows, labels), alpha=0.02, delta=0.06)
    with pytest.raises(NotEnoughEvidence, match="at least 19 classes, found 18"):
        certify_mean(labelled(rows, labels), alpha=0.05, strict=False)
    with pytest.raises(NotEnoughEvidence, match="at least 39 classes, found 18"):
        certify_mean(labelled(rows, labels), alpha=0.05)
    alone = [f"{label} {row}" if row % 3 else label for row, label in enumerate(labels)]
    with pytest.raises(NotEnoughEvidence, match="at least 9 classes, found 0"):
        certify(labelled(rows, alone), alpha=0.2, delta=0.1, rate="frr")


@pytest.mark.parametrize(("alpha", "delta"), [(0, 0.1), (1, 0.1), (0.1, 0), (0.1, 1), (float("nan"), 0.1)])
def test_impossible_levels_are_refused(alpha: float, delta: float, family) -> None:
    rows, labels = family(np.random.default_rng(7), n_classes=20, n_images=2)
    with pytest.raises(InvalidInput, match="alpha and delta must lie"):
        certify(labelled(rows, labels), alpha=alpha, delta=delta)
    with pytest.raises(InvalidInput, match="'far' or 'frr', found 'eer'"):
        certify_mean(labelled(rows, labels), alpha=0.2, rate="eer")  # type: ignore[arg-type]  # without types
