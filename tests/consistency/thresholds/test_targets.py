from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from retrieval.consistency import Target, labelled, operating_curves, parse_target
from retrieval.errors import InvalidInput

shares = st.floats(1e-9, 1, exclude_max=True)
amounts = st.floats(1e-3, 1e9)
targets = st.one_of(
    st.builds(Target, st.sampled_from(["far", "class-far", "frr"]), shares),
    st.builds(Target, st.just("precision"), shares, shares),
    st.builds(Target, st.just("f"), amounts, shares),
    st.builds(Target, st.just("utility"), amounts),
    st.builds(Target, st.just("false-matches"), amounts, st.floats(1e10, 1e30)),
)


@pytest.mark.parametrize(
    ("text", "target"),
    [
        ("far=0.01", Target("far", 0.01)),
        ("class-far=1e-3", Target("class-far", 0.001)),
        ("frr=0.1", Target("frr", 0.1)),
        (" Precision=0.9@0.01 ", Target("precision", 0.9, 0.01)),
        ("f1@0.01", Target("f", 1, 0.01)),
        ("f0.5@0.2", Target("f", 0.5, 0.2)),
        ("utility", Target("utility", 1)),
        ("utility=2", Target("utility", 2)),
        ("false-matches=1@1000000", Target("false-matches", 1, 1e6)),
    ],
)
def test_every_kind_is_read_from_text(text: str, target: Target) -> None:
    assert parse_target(text) == target


@given(targets)
def test_text_reads_back_as_the_same_target(target: Target) -> None:
    assert parse_target(str(target)) == target
    assert target.describe()


@pytest.mark.parametrize(
    "text",
    ["", "far", "far=", "far=0", "far=1", "far=x", "far=0.1@0.1", "far=-0.1", "frr=2", "precision=0.9", "f@0.1", "f1",
     "f0@0.1", "precision=0.9@0", "precision=0.9@1", "precision=1@0.1", "f1@2", "utility=0", "utility@0.1", "far=nan",
     "false-matches=1", "false-matches=5@5", "false-matches=0@9", "false-matches=1@inf", "far=1.2.3", "threshold=0.5"],
)  # fmt: skip
def test_what_is_no_target_is_refused(text: str) -> None:
    with pytest.raises(InvalidInput, match=r"write one of|expected a (number|share|gallery)"):
        parse_target(text)


def test_unknown_kinds_are_refused() -> None:
    with pytest.raises(InvalidInput, match="unknown kind of target 'eer'"):
        Target("eer", 0.1)  # type: ignore[arg-type]  # what a caller without types may do


def test_false_matches_are_a_far() -> None:
    """Two expected among a hundred strangers: two in a hundred."""
    assert Target("false-matches", 2, 100).far == Target("far", 0.02).far == 0.02
    assert Target("utility", 1).far is None


def test_achieved_by_hand() -> None:
    """Positives 0.8, 0.28; negatives 0.6, 0 and others below: at 0.5 TAR is 1/2 and FAR 1/8."""
    rows = np.array([[1, 0], [0.8, 0.6], [0, 1], [-0.96, 0.28]], dtype=np.float32)
    labels = ["a", "a", "b", "b"]  # positives: 0.8 and 0.28; negatives 0, -0.96, 0.6, -0.6
    curves = operating_curves(labelled(rows, labels), thresholds=[-2, 0.5, 0.7, 2])
    assert curves.pooled_tar.tolist() == [1, 0.5, 0.5, 0]
    assert curves.pooled_far.tolist() == [1, 0.25, 0, 0]
    expected = {
        "far=0.1": [-1, -0.25, 0, 0],
        "class-far=0.1": [-1, -0.25, 0, 0],
        "frr=0.1": [0, -0.5, -0.5, -1],
        # at a prevalence of 1/5: 0.1 right among 0.1 + 0.2 accepted
        "precision=0.5@0.2": [0.2, 0.1 / 0.3, 1, 0],
        # 2 P R / (P + R)
        "f1@0.2": [2 * 0.2 / 1.2, 2 * (1 / 3) * 0.5 / (1 / 3 + 0.5), 2 * 0.5 / 1.5, 0],
        # class a accepts its pair and 1 of 4 negatives, class b rejects its pair
        "utility": [0, 0.5 * 2 * 0.75 / 1.75, 0.5, 0],
    }
    for text, values in expected.items():
        assert parse_target(text).achieved(curves) == pytest.approx(values), text
