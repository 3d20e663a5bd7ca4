from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from retrieval.consistency import ClassDecisionChange, compare_thresholds, labelled
from retrieval.errors import InvalidInput, NotEnoughEvidence

ROWS = np.array([[1, 0], [0.8, 0.6], [0, 1], [-0.96, 0.28]], dtype=np.float32)
LABELS = ["a", "a", "b", "b"]  # positives: 0.8 and 0.28; negatives 0, -0.96, 0.6, -0.6


def test_by_hand() -> None:
    found = compare_thresholds(labelled(ROWS, LABELS), active=0.7, proposed=0.2)
    assert (found.active_tar, found.proposed_tar) == (0.5, 1)
    assert (found.active_far, found.proposed_far) == (0, 0.25)
    assert (found.true_accepts, found.false_accepts, found.n_changed, found.n_improved) == (1, 1, 2, 1)
    assert found.classes == (
        ClassDecisionChange(name="a", positives=1, negatives=4, true_accepts=0, false_accepts=1),
        ClassDecisionChange(name="b", positives=1, negatives=4, true_accepts=1, false_accepts=1),
    )
    assert "2 of 6 decisions change, 1 matches and 1 others are newly accepted, in 2 of 2 classes" in str(found)


def test_stricter_is_the_reverse_of_looser() -> None:
    looser = compare_thresholds(labelled(ROWS, LABELS), active=0.7, proposed=0.2)
    stricter = compare_thresholds(labelled(ROWS, LABELS), active=0.2, proposed=0.7)
    assert (stricter.true_accepts, stricter.false_accepts) == (-1, -1)
    assert stricter.n_changed == looser.n_changed == 2
    assert stricter.n_improved == 1
    assert "newly rejected" in str(stricter)


def test_the_same_threshold_changes_nothing() -> None:
    found = compare_thresholds(labelled(ROWS, LABELS), active=0.3, proposed=0.3)
    assert found.n_changed == 0
    assert "in 0 of 2 classes" in str(found)


@given(st.integers(0, 10**6), st.floats(-1, 1), st.floats(-1, 1))
def test_against_decisions_pair_by_pair(seed: int, active: float, proposed: float) -> None:
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(9, 3))
    rows = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
    codes = np.sort(np.append(rng.integers(3, size=5), [0, 1, 1, 2]))
    found = compare_thresholds(labelled(rows, [str(code) for code in codes]), active=active, proposed=proposed)
    first, second = np.triu_indices(9, 1)
    scores = (rows @ rows.T)[first, second].astype(float)
    before, after, same = scores >= active, scores >= proposed, codes[first] == codes[second]
    assert found.n_changed == np.count_nonzero(before != after)
    assert found.n_improved == np.count_nonzero((before != after) & (after == same))
    assert found.positives == np.count_nonzero(same)
    assert sum(change.false_accepts for change in found.classes) == 2 * found.false_accepts


def test_bad_input_is_refused() -> None:
    with pytest.raises(InvalidInput, match="finite, found nan and"):
        compare_thresholds(labelled(ROWS, LABELS), active=float("nan"), proposed=0.1)
    with pytest.raises(NotEnoughEvidence, match="no class has two images"):
        compare_thresholds(labelled(ROWS, list("abcd")), active=0.1, proposed=0.2)
