from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit

from retrieval.consistency import (
    BetaCalibrator,
    Calibrator,
    IsotonicCalibrator,
    PlattCalibrator,
    VennAbersCalibrator,
    calibrator_from_json,
)
from retrieval.consistency.calibration.kinds import MAX_KNOTS, interpolate
from retrieval.errors import InvalidInput

PLATT = PlattCalibrator(3.0, -1.5, 0.1, 10, 20)
BETA = BetaCalibrator(8.0, -4.0, 0.7, 1.3, -2.0, 0.1, 10, 20)
ISOTONIC = IsotonicCalibrator((0.1, 0.5), (0.2, 0.9), 0.1, 10, 20)
VENN_ABERS = VennAbersCalibrator((0.0, 1.0), (0.1, 0.6), (0.2, 0.9), 0.1, 10, 20)
EVERY: list[Calibrator] = [PLATT, BETA, ISOTONIC, VENN_ABERS]
of_every_kind = pytest.mark.parametrize("calibrator", EVERY, ids=lambda calibrator: calibrator.kind)


@of_every_kind
def test_json_is_plain_and_comes_back_equal(calibrator: Calibrator) -> None:
    document = calibrator.to_json()
    assert document == json.loads(json.dumps(document))
    assert document["kind"] == calibrator.kind
    assert calibrator_from_json(document) == calibrator


def test_documents_of_stored_operating_points_are_still_read() -> None:
    """Written before there were other kinds: these very fields."""
    stored = {
        "kind": "isotonic",
        "scores": [0.1, 0.5],
        "probabilities": [0.2, 0.9],
        "prevalence": 0.1,
        "n_positives": 10,
        "n_negatives": 20,
    }
    assert calibrator_from_json(stored) == ISOTONIC
    assert ISOTONIC.to_json() == stored


@of_every_kind
@settings(deadline=None, max_examples=50)
@given(scores=st.lists(st.floats(-1e6, 1e6) | st.floats(-1.5, 1.5), min_size=1, max_size=30))
def test_probability_never_falls_as_the_score_rises(calibrator: Calibrator, scores: list[float]) -> None:
    probabilities = calibrator.probability(sorted(scores))
    assert (np.diff(probabilities) >= 0).all()
    assert ((probabilities >= 0) & (probabilities <= 1)).all()


@of_every_kind
def test_nan_is_refused(calibrator: Calibrator) -> None:
    with pytest.raises(InvalidInput, match="NaN"):
        calibrator.probability([0.1, float("nan")])


def test_beta_by_its_definition() -> None:
    """log(p / (1 - p)) = a log u - b log(1 - u) + c; equal a and b are Platt scaling."""
    s = np.linspace(-1, 1, 9)
    u = expit(8 * s - 4)
    np.testing.assert_allclose(BETA.probability(s), expit(0.7 * np.log(u) - 1.3 * np.log(1 - u) - 2))
    equal = BetaCalibrator(8.0, -4.0, 0.5, 0.5, 0.3, 0.1, 10, 20)
    np.testing.assert_allclose(equal.probability(s), PlattCalibrator(4.0, -1.7, 0.1, 10, 20).probability(s), rtol=1e-12)


def test_venn_abers_merges_its_two_answers() -> None:
    lower, upper = VENN_ABERS.interval([-1, 0.5, 2])
    np.testing.assert_allclose(lower, [0.1, 0.35, 0.6])
    np.testing.assert_allclose(upper, [0.2, 0.55, 0.9])
    np.testing.assert_allclose(VENN_ABERS.width([-1, 2]), [0.1, 0.3])
    np.testing.assert_allclose(VENN_ABERS.probability([-1, 2]), [0.2 / 1.1, 0.9 / 1.3])


def test_interpolation_ends_exactly_on_its_knots() -> None:
    """np.interp may pass a knot by a rounding error, and then fall."""
    rng = np.random.default_rng(0)
    knots = np.sort(rng.random(50))
    values = np.sort(rng.random(50))
    at = np.sort(np.concatenate([knots, np.nextafter(knots, -1), np.nextafter(knots, 2), rng.random(1000)]))
    found = interpolate(at, tuple(knots.tolist()), tuple(values.tolist()))
    np.testing.assert_allclose(found, np.interp(at, knots, values), rtol=1e-12)
    assert (np.diff(found) >= 0).all()


@pytest.mark.parametrize(
    ("calibrator", "change"),
    [
        (PLATT, {"kind": "guess"}),
        (PLATT, {"kind": None}),
        (PLATT, {"kind": ["platt"]}),
        (PLATT, {"slope": -0.1}),
        (PLATT, {"slope": None}),
        (PLATT, {"intercept": float("inf")}),
        (PLATT, {"prevalence": 1.0}),
        (PLATT, {"prevalence": "often"}),
        (BETA, {"a": -1}),
        (BETA, {"scale": -1}),
        (BETA, {"c": float("nan")}),
        (ISOTONIC, {"scores": None}),
        (ISOTONIC, {"scores": [0.5, 0.1]}),
        (ISOTONIC, {"scores": [0.1]}),
        (ISOTONIC, {"probabilities": [0.9, 0.1]}),
        (ISOTONIC, {"probabilities": [0.1, 1.0]}),
        (ISOTONIC, {"probabilities": [0.0, 0.5]}),
        (ISOTONIC, {"scores": [], "probabilities": []}),
        (ISOTONIC, {"scores": list(range(257)), "probabilities": [0.5] * 257}),
        (ISOTONIC, {"n_positives": "many"}),
        (VENN_ABERS, {"lower": [0.3, 0.6]}),
        (VENN_ABERS, {"upper": [0.9, 0.8]}),
        (VENN_ABERS, {"lower": [0.1, 1.0], "upper": [0.2, 1.0]}),
        (VENN_ABERS, {"lower": [0.0, 0.1], "upper": [0.0, 0.2]}),
        (VENN_ABERS, {"lower": [-0.1, 0.1]}),
    ],
)
def test_broken_documents_are_refused(calibrator: Calibrator, change: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput, match="calibrator"):
        calibrator_from_json({**calibrator.to_json(), **change})


@of_every_kind
def test_a_missing_field_or_another_kind_is_refused(calibrator: Calibrator) -> None:
    for name in calibrator.to_json():
        with pytest.raises(InvalidInput, match="calibrator"):
            calibrator_from_json({key: value for key, value in calibrator.to_json().items() if key != name})
    other = PlattCalibrator if calibrator.kind != "platt" else IsotonicCalibrator
    with pytest.raises(InvalidInput, match=f"expected a calibrator of kind '{other.kind}', found '{calibrator.kind}'"):
        other.from_json(calibrator.to_json())


def test_knots_are_bounded() -> None:
    assert MAX_KNOTS == 256
