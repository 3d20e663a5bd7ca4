"""Judge measured rates by declared limits: each limit becomes a finding, and the verdict is passed if all of them hold.

What is measured, and on which images, is decided by the audit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from retrieval.consistency.arguments import check_fields, checked
from retrieval.consistency.intervals import Interval
from retrieval.consistency.subgroups.rates import GroupRates
from retrieval.errors import InvalidInput


@dataclass(frozen=True, slots=True, kw_only=True)
class VerdictLimits:
    """What must hold apart from the promises of calibration."""

    group_far_factor: float = 3.0  # how many times the target the FAR of a group may be; small groups are not judged

    def __post_init__(self) -> None:
        check_fields(self)
        if not self.group_far_factor > 0:
            raise InvalidInput(f"group_far_factor: expected a number above 0, found {self.group_far_factor}")


@dataclass(frozen=True, slots=True, kw_only=True)
class PromisedRate:
    """A measured rate, and the interval that calibration promised for it."""

    measured: float
    promised: Interval


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One limit, whether it holds, and why."""

    limit: str
    passed: bool
    explanation: str


@checked
def judge(
    far: PromisedRate,
    tar: PromisedRate,
    groups: Mapping[str, Sequence[GroupRates]],
    *,
    target_far: float,
    strangers: PromisedRate | None = None,
    limits: VerdictLimits = VerdictLimits(),
) -> list[Finding]:
    """Return one finding each for FAR, TAR, the FAR of strangers if there is one, and every column of groups.

    A FAR below its promise, or a TAR above, does no harm and passes; the explanation mentions it. A group fails if the
    whole interval of its FAR is above the limit.

    Raises:
        InvalidInput: target_far outside [0, 1].
    """
    if not 0 <= target_far <= 1:
        raise InvalidInput(f"target_far: expected a share between 0 and 1, found {target_far}")
    higher = "" if tar.measured <= tar.promised.high else ": higher than promised"
    findings = [
        _of_far("far_within_promise", "FAR", far, ": lower than promised, the threshold is stricter than needed"),
        Finding(
            limit="tar_within_promise",
            passed=tar.measured >= tar.promised.low,
            explanation=f"TAR {tar.measured:.1%}; calibration promised {_percent(tar.promised)}" + higher,
        ),
    ]
    if strangers is not None:
        limit, name = "stranger_far_within_promise", "FAR of strangers, whose class the gallery does not hold,"
        findings.append(_of_far(limit, name, strangers, ": lower than promised"))
    allowed = limits.group_far_factor * target_far
    for column, rates in groups.items():
        over = [r for r in rates if not r.small and r.far is not None and r.far_interval.low > allowed]
        named = ", ".join(f"{r.name} {r.far:.2%}" for r in over)
        findings.append(
            Finding(
                limit=f"group_far:{column}",
                passed=not over,
                explanation=f"FAR of every group of {column} must not exceed {allowed:.2%} "
                f"({limits.group_far_factor:g} times the target); " + (f"exceeded by {named}" if over else "none does"),
            )
        )
    return findings


def _of_far(limit: str, name: str, rate: PromisedRate, if_lower: str) -> Finding:
    """Return the finding for a FAR, which passes if it is not above its promise."""
    return Finding(
        limit=limit,
        passed=rate.measured <= rate.promised.high,
        explanation=f"{name} {rate.measured:.3%}; calibration promised {_percent(rate.promised)} for a set of new "
        "classes of this size" + (if_lower if rate.measured < rate.promised.low else ""),
    )


@checked
def noted(finding: Finding, notes: Sequence[str]) -> Finding:
    """Return the finding with notes on what it rests on, for instance of `warnings_at`, in its explanation."""
    return replace(finding, explanation="; note: ".join([finding.explanation, *notes]))


@checked
def is_passed(findings: Sequence[Finding]) -> bool:
    """Return whether every limit holds."""
    return all(finding.passed for finding in findings)


def _percent(interval: Interval) -> str:
    return f"{interval.low:.2%} to {interval.high:.2%}"
