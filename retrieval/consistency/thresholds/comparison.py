"""Compare a proposed threshold with the active one, decision by decision, on the same labelled pairs.

Both thresholds apply to one score, so every changed decision changes in the same direction.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from retrieval.consistency.arguments import checked
from retrieval.consistency.curves import count_accepted
from retrieval.consistency.pairs.vectors import LabelledVectors, check_positives
from retrieval.errors import InvalidInput


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassDecisionChange:
    """Pairs of one class, and how many more (negative: fewer) of them the proposed threshold accepts."""

    name: str
    positives: int
    negatives: int  # a negative pair counts for the classes of both its ends
    true_accepts: int
    false_accepts: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ThresholdComparison:
    """Two thresholds on the same pairs.

    The changes are counts of these pairs, so they have no interval; `ThresholdChoice` has the intervals of the rates.
    """

    active: float
    proposed: float
    active_far: float  # pooled, as all rates here
    proposed_far: float
    active_tar: float
    proposed_tar: float
    positives: int
    negatives: int
    true_accepts: int  # how many more (negative: fewer) positive pairs the proposed one accepts
    false_accepts: int  # and negative pairs
    classes: tuple[ClassDecisionChange, ...]  # the same for every class, sorted by name

    @property
    def n_changed(self) -> int:
        """Number of pairs whose decision changes."""
        return abs(self.true_accepts) + abs(self.false_accepts)

    @property
    def n_improved(self) -> int:
        """Number of pairs whose decision changes and becomes right."""
        return max(self.true_accepts, 0) + max(-self.false_accepts, 0)

    def __str__(self) -> str:
        verb = "accepted" if self.proposed < self.active else "rejected"
        touched = sum(1 for change in self.classes if change.true_accepts or change.false_accepts)
        return (
            f"threshold {self.active:.4f} -> {self.proposed:.4f}: {self.n_changed} of "
            f"{self.positives + self.negatives} decisions change, {abs(self.true_accepts)} matches and "
            f"{abs(self.false_accepts)} others are newly {verb}, in {touched} of {len(self.classes)} classes; "
            f"TAR {self.active_tar:.4g} -> {self.proposed_tar:.4g}, "
            f"FAR {self.active_far:.4g} -> {self.proposed_far:.4g}"
        )


@checked
def compare_thresholds(vectors: LabelledVectors, *, active: float, proposed: float) -> ThresholdComparison:
    """Return what changes on the labelled pairs if the proposed threshold replaces the active one.

    Cost: one pass.

    Raises:
        InvalidInput: a threshold is not finite.
        NotEnoughEvidence: no class with two images.

    >>> from retrieval.consistency import labelled
    >>> rows = np.array([[1, 0], [0.8, 0.6], [0, 1]], dtype=np.float32)  # a match at 0.8, others at 0 and 0.6
    >>> print(compare_thresholds(labelled(rows, ["a", "a", "b"]), active=0.9, proposed=0.5))
    threshold 0.9000 -> 0.5000: 2 of 3 decisions change, 1 matches and 1 others are newly accepted, in 2 of 2 classes; \
TAR 0 -> 1, FAR 0 -> 0.5
    """
    if not np.isfinite([active, proposed]).all():
        raise InvalidInput(f"thresholds must be finite, found {active} and {proposed}")
    check_positives(vectors)
    curves = count_accepted(vectors, np.unique([active, proposed]))
    before, after = curves.at(active), curves.at(proposed)
    true_accepts = after.positives_accepted[:, 0] - before.positives_accepted[:, 0]
    false_accepts = after.negatives_accepted[:, 0] - before.negatives_accepted[:, 0]
    return ThresholdComparison(
        active=active,
        proposed=proposed,
        active_far=float(before.pooled_far[0]),
        proposed_far=float(after.pooled_far[0]),
        active_tar=float(before.pooled_tar[0]),
        proposed_tar=float(after.pooled_tar[0]),
        positives=vectors.n_positives,
        negatives=vectors.n_negatives,
        true_accepts=int(true_accepts.sum()),
        false_accepts=int(false_accepts.sum()) // 2,
        classes=tuple(
            ClassDecisionChange(
                name=name,
                positives=int(before.positives[row]),
                negatives=int(before.negatives[row]),
                true_accepts=int(true_accepts[row]),
                false_accepts=int(false_accepts[row]),
            )
            for row, name in enumerate(before.classes)
        ),
    )
