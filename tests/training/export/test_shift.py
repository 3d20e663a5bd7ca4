"""Flips and shifts against a count by hand and a loop over pairs."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from numpy.typing import NDArray

from retrieval.errors import NotEnoughEvidence, ValidationFailed
from training.export.shift import BAND, PrecisionShift, check_flips, measure_shift


def _unit(rows: NDArray[np.float64]) -> NDArray[np.float32]:
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


@pytest.fixture(scope="module")
def images() -> tuple[NDArray[np.float32], NDArray[np.float32], list[str]]:
    """Twelve classes of six noisy unit vectors, before, and a little further on."""
    rng = np.random.default_rng(0)
    labels = [f"class {row // 6}" for row in range(72)]
    centres = rng.normal(size=(12, 8)).repeat(6, axis=0)
    before = _unit(centres + 0.7 * rng.normal(size=(72, 8)))
    return before, _unit(before + 0.02 * rng.normal(size=(72, 8))), labels


def test_it_equals_a_loop_over_pairs(images: tuple[NDArray[np.float32], NDArray[np.float32], list[str]]) -> None:
    before, after, labels = images
    shift = measure_shift(before, after, labels, far_target=0.05)
    lost = won = gained = dropped = accepted = 0
    shifts = []
    for a, b in combinations(range(72), 2):
        old, new = float(before[a] @ before[b]), float(after[a] @ after[b])
        was, now, same = old >= shift.threshold, new >= shift.threshold, labels[a] == labels[b]
        accepted += was
        lost += same and was and not now
        won += same and now and not was
        gained += not same and now and not was
        dropped += not same and was and not now
        if abs(old - shift.threshold) <= BAND:
            shifts.append(new - old)
    assert (shift.n_lost, shift.n_won, shift.n_gained, shift.n_dropped) == (lost, won, gained, dropped)
    assert lost + won + gained + dropped > 0
    assert shift.n_accepted == accepted
    assert shift.flips == pytest.approx((lost + won + gained + dropped) / accepted)
    assert shift.n_band == len(shifts)
    assert shift.shift_mean == pytest.approx(np.mean(shifts), abs=1e-6)
    assert shift.shift_std == pytest.approx(np.std(shifts), abs=1e-6)
    assert shift.shift_p99 == pytest.approx(np.quantile(np.abs(shifts), 0.99), abs=1e-6)


def test_the_same_embeddings_flip_nothing(images: tuple[NDArray[np.float32], NDArray[np.float32], list[str]]) -> None:
    before, _, labels = images
    shift = measure_shift(before, before, labels, far_target=0.05)
    assert shift.flips == shift.shift_std == shift.shift_p99 == 0
    assert shift.tar_before == shift.tar_after == shift.tar_own
    assert shift.own_threshold == shift.threshold


def test_the_order_of_images_does_not_matter(
    images: tuple[NDArray[np.float32], NDArray[np.float32], list[str]],
) -> None:
    before, after, labels = images
    order = np.random.default_rng(1).permutation(72)
    shuffled = measure_shift(before[order], after[order], [labels[row] for row in order], far_target=0.05)
    plain = measure_shift(before, after, labels, far_target=0.05)
    assert shuffled.flips == plain.flips
    assert shuffled.n_band == plain.n_band


def test_too_few_accepted_pairs_are_no_evidence(
    images: tuple[NDArray[np.float32], NDArray[np.float32], list[str]],
) -> None:
    before, after, labels = images
    with pytest.raises(NotEnoughEvidence, match="at least 100 are needed"):
        measure_shift(before[:24], after[:24], labels[:24], far_target=0.01)


def test_the_limit_is_on_flips_per_accepted_pair() -> None:
    """Four flips of 100 accepted pairs: 4 %, allowed at 0.04 and refused below."""
    shift = PrecisionShift(
        n_images=50,
        n_classes=10,
        far_target=0.01,
        threshold=0.5,
        own_threshold=0.5,
        n_band=7,
        shift_mean=0.0,
        shift_std=0.01,
        shift_p99=0.02,
        n_accepted=100,
        n_lost=1,
        n_won=1,
        n_gained=1,
        n_dropped=1,
        tar_before=0.8,
        tar_after=0.8,
        tar_own=0.8,
        far_before=0.01,
        far_after=0.01,
        r_at_1_before=0.9,
        r_at_1_after=0.9,
    )
    assert shift.flips == 0.04
    check_flips(shift, 0.04, precision="int8")
    with pytest.raises(ValidationFailed, match=r"int8 flips 4.00% of the 100 pairs .* at most 3.90% are allowed"):
        check_flips(shift, 0.039, precision="int8")
    assert "decisions that flip: 4.00% of 100 accepted pairs" in str(shift)
