from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retrieval.consistency import drift_size
from retrieval.errors import InvalidInput, NotEnoughEvidence

RNG = np.random.default_rng


def test_distances_agree_with_their_definitions() -> None:
    """Equal sizes: the mean distance of scores of equal rank; KS by trying every score."""
    old, new = RNG(0).normal(size=60), RNG(1).normal(0.4, 1.5, size=60)
    size = drift_size(old, new, rng=RNG(2))
    assert size.wasserstein == pytest.approx(np.abs(np.sort(old) - np.sort(new)).mean())
    gaps = {float(at): abs((old <= at).mean() - (new <= at).mean()) for at in np.concatenate([old, new])}
    assert size.ks == pytest.approx(max(gaps.values()))
    assert gaps[size.below] == pytest.approx(size.ks)


@pytest.mark.slow
def test_intervals_hold_the_truth_and_chance_explains_no_drift() -> None:
    held, by_chance = [], []
    for seed in range(40):
        rng = RNG(seed)
        size = drift_size(rng.normal(size=150), rng.normal(0.5, 1, size=100), rng=rng)
        held.append(0.5 in size.median_shift_interval)
        same = drift_size(rng.normal(size=100), rng.normal(size=100), rng=rng)
        by_chance.append(same.wasserstein <= same.wasserstein_by_chance)
    assert np.mean(held) >= 0.86  # 0.95 less 2.5 standard errors of 40 draws
    assert 0.3 <= np.mean(by_chance) <= 0.7


@given(st.floats(-5, 5), st.floats(0.1, 10))
@settings(max_examples=15, deadline=None)
def test_moves_with_the_scores(shift: float, scale: float) -> None:
    old, new = RNG(0).normal(size=40), RNG(1).normal(size=30)
    plain = drift_size(old, new, rng=RNG(2))
    changed = drift_size(shift + scale * old, shift + scale * new, rng=RNG(2))
    assert changed.median_shift == pytest.approx(scale * plain.median_shift, abs=1e-9)
    assert changed.wasserstein == pytest.approx(scale * plain.wasserstein, abs=1e-9)
    assert changed.ks == pytest.approx(plain.ks)
    assert changed.ks_by_chance == pytest.approx(plain.ks_by_chance, abs=1e-9)


def test_says_what_it_found() -> None:
    text = str(drift_size(np.arange(100.0), np.arange(100.0) + 7, rng=RNG(0)))
    assert text.startswith("median moved by +7.0000 (95 % interval ")
    assert text.endswith("100 scores against 100")


def test_few_or_wrong_scores_are_refused() -> None:
    enough = np.arange(10.0)
    with pytest.raises(NotEnoughEvidence, match="at least 10 scores, found 9"):
        drift_size(enough, enough[:9], rng=RNG(0))
    with pytest.raises(InvalidInput, match="one finite number per query"):
        drift_size(np.array([*enough, np.nan]), enough, rng=RNG(0))
