"""The seven kinds of target for a threshold, and how far counted pairs achieve one.

Finding the threshold is in `reaching`, its uncertainty in `choice` and `near_optimum`.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

import numpy as np

from retrieval.consistency.arguments import check_fields, checked
from retrieval.consistency.curves import OperatingCurves, Rates
from retrieval.consistency.opis.utility import utility
from retrieval.errors import InvalidInput

TargetKind: TypeAlias = Literal["far", "class-far", "frr", "precision", "f", "utility", "false-matches"]
Choice: TypeAlias = Literal["lowest", "highest", "best"]

_WRITTEN = (
    "far=0.01, class-far=0.01, frr=0.1, precision=0.9@0.01, f1@0.01, utility or false-matches=1@1000000 "
    "(after @: the share of matches; for false-matches the size of the gallery)"
)
_NUMBER = r"([0-9.][0-9.eE+-]*)"
_PATTERNS: dict[TargetKind, re.Pattern[str]] = {
    "far": re.compile(f"far={_NUMBER}"),
    "class-far": re.compile(f"class-far={_NUMBER}"),
    "frr": re.compile(f"frr={_NUMBER}"),
    "precision": re.compile(f"precision={_NUMBER}@{_NUMBER}"),
    "f": re.compile(f"f{_NUMBER}@{_NUMBER}"),
    "utility": re.compile(f"utility(?:={_NUMBER})?"),
    "false-matches": re.compile(f"false-matches={_NUMBER}@{_NUMBER}"),
}


@dataclass(frozen=True, slots=True)
class Target:
    """One target; `parse_target` reads it from text and `str` writes that text.

    kind         value                     at            the threshold is
    far          FAR in (0, 1)                           the lowest whose pooled FAR is at most value
    class-far    FAR in (0, 1)                           the lowest whose class mean of FAR is at most value
    frr          FRR in (0, 1)                           the highest whose pooled FRR is at most value
    precision    precision in (0, 1)       prevalence    the lowest whose precision is at least value
    f            beta > 0                  prevalence    the one of the largest F-beta
    utility      c > 0                                   the one of the largest class mean of utility
    false-matches  matches per query > 0   gallery size  the lowest whose pooled FAR is at most value / at

    prevalence: share of matches among the pairs that are compared, in (0, 1). Precision and F-beta are those of pooled
    TAR and FAR at that prevalence. False matches assume a gallery drawn like the images of other classes here; a
    gallery of look-alikes has more of them.

    Raises:
        InvalidInput: at construction, a number outside its range.

    >>> str(Target("precision", 0.9, 0.01)), Target("false-matches", 1, 1000).far
    ('precision=0.9@0.01', 0.001)
    """

    kind: TargetKind
    value: float
    at: float | None = None

    def __post_init__(self) -> None:
        check_fields(self)
        if self.kind not in get_args(TargetKind):
            raise InvalidInput(f"unknown kind of target {self.kind!r}; write one of {_WRITTEN}")
        share = self.kind in {"far", "class-far", "frr", "precision"}
        if not 0 < self.value < (1 if share else math.inf):
            raise InvalidInput(
                f"{self.kind}: expected a number {'between 0 and 1' if share else 'above 0'}, found {self.value}"
            )
        if (self.at is not None) != (self.kind in {"precision", "f", "false-matches"}):
            raise InvalidInput(f"{self.kind}: found {self.at} after @; write one of {_WRITTEN}")
        if self.kind in {"precision", "f"} and not 0 < self._at < 1:
            raise InvalidInput(f"{self.kind}: expected a share of matches between 0 and 1 after @, found {self.at}")
        if self.kind == "false-matches" and not self.value < self._at < math.inf:
            raise InvalidInput(f"false-matches: expected a gallery larger than {self.value:g}, found {self.at}")

    @property
    def _at(self) -> float:
        return math.nan if self.at is None else self.at

    @property
    def far(self) -> float | None:
        """The pooled FAR of the target; None for a target that is not a pooled FAR."""
        if self.kind == "far":
            return self.value
        return self.value / self._at if self.kind == "false-matches" else None

    @property
    def choice(self) -> Choice:
        """Which of the thresholds: the lowest or the highest that reaches `level`, or the best."""
        if self.kind == "frr":
            return "highest"
        return "best" if self.kind in {"f", "utility"} else "lowest"

    @property
    def level(self) -> float:
        """The least that `achieved` must be; infinite if the maximum is wanted."""
        if self.choice == "best":
            return math.inf
        if self.kind == "precision":
            return self.value
        # A mean over classes of exactly the target may come out a rounding error above it.
        return -(self.far or self.value) * (1 + 1e-12 if self.kind == "class-far" else 1)

    def achieved(self, curves: OperatingCurves) -> Rates:
        """Return the value that must reach `level`, or be largest, at the thresholds of the curves: [m] float64.

        It is -FAR, -FRR, precision, F-beta or mean utility: it never falls as TAR rises, nor rises as FAR rises.
        """
        if self.kind == "class-far":
            return -curves.mean_far
        if self.kind == "frr":  # from counts: 1 - TAR would miss the target by a rounding error
            total = curves.positives.sum()
            return np.asarray((curves.positives_accepted.sum(axis=0) - total) / total, dtype=np.float64)
        if self.kind == "utility":
            utilities = utility(curves.tar, curves.far[curves.with_positives], self.value)
            return np.asarray(utilities.mean(axis=0), dtype=np.float64)
        return self.of_rates(curves.pooled_tar, curves.pooled_far)

    def of_rates(self, tar: Rates, far: Rates) -> Rates:
        """Return `achieved` from pooled rates, for the kinds that need nothing else: shape of tar and far, float64.

        Precision is 0 if nothing is accepted.
        """
        if self.kind in {"far", "false-matches"}:
            return -far
        matches, others = self._at * tar, (1 - self._at) * far
        if self.kind == "precision":
            accepted = matches + others
            return np.divide(matches, accepted, out=np.zeros_like(accepted), where=accepted > 0)
        weight = self.value**2
        return np.asarray((1 + weight) * matches / (matches + others + weight * self._at), dtype=np.float64)

    def __str__(self) -> str:
        if self.kind == "f":
            return f"f{_digits(self.value)}@{_digits(self._at)}"
        if self.kind == "utility":
            return "utility" if self.value == 1 else f"utility={_digits(self.value)}"
        return f"{self.kind}={_digits(self.value)}" + ("" if self.at is None else f"@{_digits(self.at)}")

    def describe(self) -> str:
        """Return the target in words.

        >>> Target("far", 0.01).describe(), Target("f", 1, 0.01).describe()
        ('pooled FAR at most 0.01', 'the largest F1 if a share of 0.01 of the pairs match')
        """
        words = {
            "far": f"pooled FAR at most {self.value:g}",
            "class-far": f"class-mean FAR at most {self.value:g}",
            "frr": f"FRR at most {self.value:g}",
            "precision": f"precision at least {self.value:g} if a share of {self._at:g} of the pairs match",
            "f": f"the largest F{self.value:g} if a share of {self._at:g} of the pairs match",
            "utility": f"the largest mean utility of classes (c = {self.value:g})",
            "false-matches": f"at most {self.value:g} false match{'' if self.value == 1 else 'es'} per query in a "
            f"gallery of {_digits(self._at)}",
        }
        return words[self.kind]


@checked
def parse_target(text: str) -> Target:
    """Parse a target from its text.

    Raises:
        InvalidInput: the text names none, or a number is outside its range.

    >>> parse_target("class-far=0.01")
    Target(kind='class-far', value=0.01, at=None)
    >>> parse_target("f2@0.01"), parse_target("utility")
    (Target(kind='f', value=2.0, at=0.01), Target(kind='utility', value=1.0, at=None))
    """
    for kind, pattern in _PATTERNS.items():
        if found := pattern.fullmatch(text.strip().lower()):
            try:
                numbers = [1.0 if group is None else float(group) for group in found.groups()]
            except ValueError:
                break
            return Target(kind, *numbers)
    raise InvalidInput(f"{text!r} is no target; write one of {_WRITTEN}")


def _digits(number: float) -> str:
    """Return the shortest text of the number."""
    return repr(float(number)).removesuffix(".0")
