"""What a proposed threshold would change, decision by decision, on the same labelled pairs as the active one.

Both thresholds are of one score, so every change goes the same way. Whether it is worth it is decided by the reader.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from retrieval.consistency.curves.curves import OperatingCurves, count_accepted
from retrieval.consistency.pairs.pairs import Vectors, check_positives, labelled_vectors
from retrieval.errors import InvalidInput


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassDecisionChange:
    """Of one class: its pairs, and how many more (fewer: negative) of them the proposed threshold accepts.

    A negative pair counts for the classes of both its ends.
    """

    name: str
    positives: int
    negatives: int
    true_accepts: int
    false_accepts: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ThresholdComparison:
    """Two thresholds on the same pairs.

    active, proposed: the thresholds; active_far, proposed_far, active_tar, proposed_tar: pooled rates;
    true_accepts, false_accepts: how many more (fewer: negative) positive and negative pairs the proposed one accepts;
    classes: the same for every class, sorted by name.

    Both thresholds are judged on the same pairs, so the changes are counts of these pairs and carry no interval; how
    far the rates may be from those of other classes is said by `ThresholdChoice`.
    """

    active: float
    proposed: float
    active_far: float
    proposed_far: float
    active_tar: float
    proposed_tar: float
    positives: int
    negatives: int
    true_accepts: int
    false_accepts: int
    classes: tuple[ClassDecisionChange, ...]

    @property
    def n_changed(self) -> int:
        """Number of pairs that are decided otherwise."""
        return abs(self.true_accepts) + abs(self.false_accepts)

    @property
    def n_improved(self) -> int:
        """Number of pairs that are decided otherwise and then rightly."""
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


def compare_thresholds(
    query_vectors: Vectors,
    labels: Sequence[str],
    *,
    active: float,
    proposed: float,
    gallery_vectors: Vectors | None = None,
    tile: int = 1024,
) -> ThresholdComparison:
    """Return what changes on the labelled pairs when the proposed threshold takes the place of the active one.

    query_vectors, gallery_vectors: [n, D] float32, see `labelled_vectors`; labels: n strings. Cost: one pass.

    Raises:
        InvalidInput: a threshold is not finite.
        NotEnoughEvidence: fewer than two classes, or no class with two images.
        InvalidEmbeddings: see `labelled_vectors`.

    >>> rows = np.array([[1, 0], [0.8, 0.6], [0, 1]], dtype=np.float32)  # a match at 0.8, others at 0 and 0.6
    >>> print(compare_thresholds(rows, ["a", "a", "b"], active=0.9, proposed=0.5))
    threshold 0.9000 -> 0.5000: 2 of 3 decisions change, 1 matches and 1 others are newly accepted, in 2 of 2 classes; \
TAR 0 -> 1, FAR 0 -> 0.5
    """
    if not np.isfinite([active, proposed]).all():
        raise InvalidInput(f"thresholds must be finite, found {active} and {proposed}")
    vectors = labelled_vectors(query_vectors, labels, gallery_vectors)
    check_positives(vectors)
    curves = count_accepted(vectors, np.unique([active, proposed]), tile=tile)
    before, after = curves.at(active), curves.at(proposed)
    classes = _changes(before, after)
    return ThresholdComparison(
        active=active,
        proposed=proposed,
        active_far=float(before.pooled_far[0]),
        proposed_far=float(after.pooled_far[0]),
        active_tar=float(before.pooled_tar[0]),
        proposed_tar=float(after.pooled_tar[0]),
        positives=vectors.n_positives,
        negatives=vectors.n_negatives,
        true_accepts=sum(change.true_accepts for change in classes),
        false_accepts=sum(change.false_accepts for change in classes) // 2,
        classes=classes,
    )


def _changes(before: OperatingCurves, after: OperatingCurves) -> tuple[ClassDecisionChange, ...]:
    true_accepts = after.positives_accepted[:, 0] - before.positives_accepted[:, 0]
    false_accepts = after.negatives_accepted[:, 0] - before.negatives_accepted[:, 0]
    return tuple(
        ClassDecisionChange(
            name=name,
            positives=int(before.positives[row]),
            negatives=int(before.negatives[row]),
            true_accepts=int(true_accepts[row]),
            false_accepts=int(false_accepts[row]),
        )
        for row, name in enumerate(before.classes)
    )
