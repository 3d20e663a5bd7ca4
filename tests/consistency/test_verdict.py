"""Only harm fails the verdict: too many false accepts, too few true ones, or a group that surely exceeds its limit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest

from retrieval.consistency import Finding, GroupRates, Interval, PromisedRate, VerdictLimits, judge
from retrieval.consistency.verdict import is_passed, noted
from retrieval.errors import InvalidInput

FAR, TAR = Interval(0.005, 0.02), Interval(0.6, 0.8)
GROUP = GroupRates(
    name="first",
    n_images=60,
    positives=100,
    negatives=1000,
    far=0.2,
    frr=0.1,
    far_interval=Interval(0.15, 0.25),
    frr_interval=Interval(0.05, 0.2),
    small=False,
)


def verdict(far: float, tar: float, groups: Sequence[GroupRates] = ()) -> list[Finding]:
    return judge(
        PromisedRate(measured=far, promised=FAR),
        PromisedRate(measured=tar, promised=TAR),
        {"half": groups} if groups else {},
        target_far=0.01,
        limits=VerdictLimits(group_far_factor=3),
    )


@pytest.mark.parametrize(
    ("far", "tar", "passed"),
    [
        (0.01, 0.7, [True, True]),
        (0.02, 0.6, [True, True]),
        (0.021, 0.7, [False, True]),
        (0.001, 0.9, [True, True]),
        (0.01, 0.59, [True, False]),
    ],
)
def test_the_verdict_on_rates(far: float, tar: float, passed: list[bool]) -> None:
    """A lower FAR or a higher TAR than promised passes, and the explanation mentions it."""
    findings = verdict(far, tar)
    assert [finding.passed for finding in findings] == passed
    assert is_passed(findings) == all(passed)
    assert ("stricter than needed" in findings[0].explanation) == (far < 0.005)
    assert ("higher than promised" in findings[1].explanation) == (tar > 0.8)


@pytest.mark.parametrize(("far", "passed"), [(0.01, True), (0.02, True), (0.021, False), (0.001, True)])
def test_strangers_have_a_promise_of_their_own(far: float, passed: bool) -> None:
    """Without one there is no such finding."""
    members = PromisedRate(measured=0.01, promised=FAR), PromisedRate(measured=0.7, promised=TAR)
    strangers = PromisedRate(measured=far, promised=FAR)
    *others, found = judge(*members, {}, target_far=0.01, strangers=strangers)
    assert others == judge(*members, {}, target_far=0.01)
    assert (found.limit, found.passed) == ("stranger_far_within_promise", passed)
    assert found.explanation.startswith(
        f"FAR of strangers, whose class the gallery does not hold, {far:.3%}; calibration promised 0.50% to 2.00%"
    )
    assert found.explanation.endswith("lower than promised") == (far < 0.005)


@pytest.mark.parametrize(
    ("group", "passed"),
    [
        (GROUP, False),
        (replace(GROUP, far_interval=Interval(0.02, 0.5)), True),
        (replace(GROUP, small=True), True),
        (replace(GROUP, far=None, far_interval=Interval(0.0, 1.0)), True),
    ],
    ids=["surely above", "uncertain", "small", "no pairs"],
)
def test_a_group_fails_if_its_far_is_surely_above_the_factor(group: GroupRates, passed: bool) -> None:
    last = verdict(0.01, 0.7, [group, replace(GROUP, name="second", far=0.01, far_interval=FAR)])[-1]
    assert (last.limit, last.passed) == ("group_far:half", passed)
    assert ("exceeded by first 20.00%" in last.explanation) == (not passed)
    assert "must not exceed 3.00% (3 times the target)" in last.explanation


def test_notes_stand_in_the_explanation() -> None:
    finding = Finding(limit="far", passed=True, explanation="FAR 1 %")
    assert noted(finding, ()) == finding
    with_notes = noted(finding, ("class 'a' holds 90% of the true pairs", "another"))
    assert with_notes.explanation == "FAR 1 %; note: class 'a' holds 90% of the true pairs; note: another"
    assert replace(with_notes, explanation=finding.explanation) == finding


@pytest.mark.parametrize("target", [-0.1, 1.5, float("nan")])
def test_an_impossible_target_is_refused(target: float) -> None:
    """NaN would have passed every group, for no rate is above it."""
    with pytest.raises(InvalidInput, match="target_far: expected a share between 0 and 1"):
        judge(
            PromisedRate(measured=0.01, promised=FAR),
            PromisedRate(measured=0.7, promised=TAR),
            {"half": [GROUP]},
            target_far=target,
        )
