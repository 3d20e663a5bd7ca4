from __future__ import annotations

import json
import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from retrieval.consistency import DriftState, look_for_drift, start_drift
from retrieval.consistency.drift.watch import MIN_REFERENCE
from retrieval.errors import InvalidInput, NotEnoughEvidence
from tests.consistency.drift.test_state import two_bins

RNG = np.random.default_rng


def urn(gaps: list[Fraction], bins: list[int]) -> Fraction:
    """Probability of these bins in this order when each score adds a gap to its bin: the definition."""
    urn, probability = list(gaps), Fraction(1)
    for row in bins:
        probability *= urn[row] / sum(urn)
        urn[row] += 1
    return probability


def test_one_look_by_hand() -> None:
    """Both scores in the upper bin. Urn: 2/4 * 3/5 = 0.3; a bettor of concentration 10: 5/10 * 6/11 = 0.2727."""
    state = look_for_drift(two_bins(), np.array([0.6, 0.7]), rng=RNG(0))
    assert math.exp(state.log_e) == pytest.approx(0.5 + 0.5 * (3 / 11) / 0.3)
    assert state.counts == (0, 2)
    assert state.memories == ((0.0, 2.0), (0.0, 1.8), (0.0, 1.0))
    assert state.p_value == 1.0  # the e-value never exceeded its start


def reference_e_value(reference: NDArray[np.float64], looks: list[NDArray[np.float64]], n_bins: int) -> float:
    """The e-value score by score, in fractions and floats, from the definition; no ties."""
    ends = np.round(np.linspace(0, len(reference) + 1, n_bins + 1)).astype(int)
    edges, gaps = np.sort(reference)[ends[1:-1] - 1], np.diff(ends)
    resolutions = [2**level for level in range(1, n_bins.bit_length())]
    bettors = [(coarse, fading) for coarse in resolutions for fading in (1.0, 0.9, 0.5)]
    prior = [0.5, *[0.5 / len(bettors)] * len(bettors)]
    wealth, e_value = list(prior), 1.0
    for number, look in enumerate(looks):
        bins = [int(np.sum(edges < score)) for score in look]
        for which, (coarse, fading) in enumerate(bettors, start=1):
            own = [10 * float(gap) / float(gaps.sum()) for gap in gaps]
            of_null = [Fraction(int(gap)) for gap in gaps]
            for age, earlier in enumerate(reversed(looks[:number]), start=1):
                for score in earlier:
                    own[int(np.sum(edges < score))] += fading**age
                    of_null[int(np.sum(edges < score))] += 1
            width = n_bins // coarse
            merged = [row // width for row in bins]
            own_merged = [Fraction(sum(own[i : i + width])) for i in range(0, n_bins, width)]
            null_merged = [sum(of_null[i : i + width], Fraction(0)) for i in range(0, n_bins, width)]
            wealth[which] *= float(urn(own_merged, merged) / urn(null_merged, merged))
        e_value = sum(wealth)
        wealth = [0.98 * own_wealth + 0.02 * e_value * dealt for own_wealth, dealt in zip(wealth, prior, strict=True)]
    return e_value


def test_agrees_with_a_score_by_score_reference() -> None:
    rng = RNG(1)
    reference, looks = rng.normal(size=70), [rng.normal(0.5, 1, size=size) for size in (5, 1, 12)]
    state = start_drift(reference, rng=rng)
    for look in looks:
        state = look_for_drift(state, look, rng=rng)
    assert math.exp(state.log_e) == pytest.approx(reference_e_value(reference, looks, len(state.gaps)))


@pytest.mark.slow
def test_no_false_alarm_budget_is_exceeded_over_many_looks() -> None:
    """Small reference, 60 looks, 400 repetitions: at most alpha, within the binomial error of the simulation.

    What the urn is there for: p-values against the same reference taken as independent exceed it (see the bench).
    """
    rng, alarms = RNG(2), 0
    for _ in range(400):
        state = start_drift(rng.random(63), rng=rng)
        for _ in range(60):
            state = look_for_drift(state, rng.random(8), rng=rng)
        alarms += state.drifted(0.1)
    assert alarms / 400 <= 0.1


@pytest.mark.slow
def test_ties_do_not_raise_false_alarms() -> None:
    """Scores of three values only: ordered at random among equals, they keep the promise."""
    rng, alarms = RNG(3), 0
    for _ in range(200):
        state = start_drift(rng.integers(3, size=100).astype(float), rng=rng)
        for _ in range(30):
            state = look_for_drift(state, rng.integers(3, size=10).astype(float), rng=rng)
        alarms += state.drifted(0.1)
    assert alarms / 200 <= 0.1


@pytest.mark.parametrize("n_quiet", [0, 15])
def test_a_shift_is_found_early_or_late(n_quiet: int) -> None:
    rng = RNG(4)
    state = start_drift(rng.normal(size=1000), rng=rng)
    for _ in range(n_quiet):
        state = look_for_drift(state, rng.normal(size=50), rng=rng)
    assert not state.drifted()
    for _ in range(6):
        state = look_for_drift(state, rng.normal(0.5, 1, size=50), rng=rng)
    assert state.drifted()
    assert str(state).startswith(f"drift found after {n_quiet + 6} looks")


@given(
    st.lists(st.lists(st.floats(-1, 1, width=32), max_size=20), min_size=1, max_size=4),
    st.randoms(use_true_random=False),
)
@settings(max_examples=30, deadline=None)
def test_order_inside_a_look_and_rescaling_do_not_matter(looks: list[list[float]], random: object) -> None:
    """Only ranks count. The reference's values are ones that no score takes, so that nothing ties."""
    reference = np.linspace(-1.001, 1.001, 80) + 1e-7
    plain, changed = start_drift(reference, rng=RNG(0)), start_drift(np.exp(reference), rng=RNG(0))
    for look in looks:
        plain = look_for_drift(plain, np.array(look), rng=RNG(1))
        changed = look_for_drift(changed, np.exp(np.array(look)[::-1]), rng=RNG(2))
    assert (plain.counts, plain.log_e) == (changed.counts, changed.log_e)


def test_going_on_from_json_gives_the_same_bits() -> None:
    rng = RNG(5)
    state = look_for_drift(start_drift(rng.random(200), rng=rng), rng.random(30), rng=rng)
    again = DriftState.from_json(json.loads(json.dumps(state.to_json())))
    assert again == state
    scores = rng.random(30)
    assert look_for_drift(again, scores, rng=RNG(6)) == look_for_drift(state, scores, rng=RNG(6))


def test_an_empty_look_leaves_the_state_as_it_was() -> None:
    state = start_drift(np.linspace(0, 1, 100), rng=RNG(0))
    assert look_for_drift(state, np.array([]), rng=RNG(0)) is state


def test_extreme_evidence_stays_finite() -> None:
    state = start_drift(np.linspace(0, 1, 5000), rng=RNG(0))
    for _ in range(3):
        state = look_for_drift(state, np.full(20_000, 2.0), rng=RNG(0))
    assert state.log_e > 1000
    assert state.p_value == 0.0
    assert "anytime-valid p 0" in str(state)


@pytest.mark.parametrize("scores", [np.array([np.nan]), np.array([np.inf]), np.zeros((2, 2))])
def test_scores_that_are_no_numbers_are_refused(scores: NDArray[np.float64]) -> None:
    state = start_drift(np.linspace(0, 1, 100), rng=RNG(0))
    with pytest.raises(InvalidInput, match="one finite number per query"):
        look_for_drift(state, scores, rng=RNG(0))
    with pytest.raises(InvalidInput, match="reference must be"):
        start_drift(scores, rng=RNG(0))


def test_a_small_reference_is_refused() -> None:
    with pytest.raises(NotEnoughEvidence, match=f"at least {MIN_REFERENCE} scores, found 62"):
        start_drift(np.linspace(0, 1, 62), rng=RNG(0))
