from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest

from retrieval.consistency import DriftState
from retrieval.errors import InvalidInput


def two_bins() -> DriftState:
    """A reference of 3 scores, cut at its median 0.5: two gaps on either side."""
    prior = (0.5, *[0.5 / 3] * 3)
    return DriftState(
        edges=(0.5,),
        tie_breaks=(0.5,),
        gaps=(2, 2),
        counts=(0, 0),
        memories=((0.0, 0.0),) * 3,
        log_wealth=tuple(map(math.log, prior)),
    )


def test_verdict_is_read_off_the_highest_e_value() -> None:
    """Found at e = 25 and not taken back when the e-value falls; at 15 not found at 0.05 but at 0.1."""
    found = replace(two_bins(), n_looks=3, log_e=0.0, log_peak=math.log(25))
    assert found.p_value == pytest.approx(0.04)
    assert found.drifted(0.05)
    assert not found.drifted(0.01)
    assert not replace(found, log_peak=math.log(15)).drifted(0.05)
    assert str(found) == (
        "drift found after 3 looks at 0 scores against a reference of 3: anytime-valid p 0.04, e-value now 1"
    )


def test_survives_json() -> None:
    state = replace(two_bins(), counts=(3, 4), n_looks=2, log_e=0.1, log_peak=1 / 3)
    assert DriftState.from_json(json.loads(json.dumps(state.to_json()))) == state


@pytest.mark.parametrize("alpha", [0.0, 1.0])
def test_an_impossible_level_is_refused(alpha: float) -> None:
    with pytest.raises(InvalidInput, match="alpha"):
        two_bins().drifted(alpha)


def test_documents_that_are_no_state_are_refused() -> None:
    document = two_bins().to_json()
    for broken in ({}, document | {"kind": "isotonic"}, {"kind": "drift"}, document | {"gaps": ["x", 1]}):
        with pytest.raises(InvalidInput, match=r"kind 'drift'|malformed"):
            DriftState.from_json(broken)
    for changed in ({"counts": [0]}, {"gaps": [0, 2]}, {"log_wealth": [0.0]}, {"log_e": float("nan")}):
        with pytest.raises(InvalidInput, match="start a new one"):
            DriftState.from_json(document | changed)
    with pytest.raises(InvalidInput, match="start a new one"):
        replace(two_bins(), counts=(-1, 0))
