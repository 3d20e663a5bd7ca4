"""Measures how a conversion changes decisions: shifts of similarity near the threshold, and pairs whose decision flips.

Arrays in, values out. The caller decides the images, the target of the threshold, and the limit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retrieval.consistency import decision_flips, labelled, operating_curves, recall_at_k, scores_of, thresholds_at_far
from retrieval.contract.bundle import Bundle
from retrieval.errors import NotEnoughEvidence, ValidationFailed

Vectors = NDArray[np.float32]

_TILE = 1024  # rows at a time, to bound the memory
# Half the width of the band around the threshold in which the shift is measured: only decisions there can flip.
BAND = 0.02
# Flips as a share of accepted pairs. On emoji at FAR 1e-2, moving the threshold by its standard error over the draw of
# 120 calibration classes flips 10 to 11 %: a conversion should flip no more than another draw of classes.
DEFAULT_MAX_FLIPS = 0.1
_MIN_ACCEPTED = 100  # fewer cannot show a share of one per cent


@dataclass(frozen=True, slots=True, kw_only=True)
class PrecisionShift:
    """The changes from the trained embedder (before) to the exported one (after), on all pairs of labelled images.

    threshold: the lowest one, before, with a pooled FAR of at most far_target; all rates except tar_own are at this
    threshold. own_threshold: the same, after; tar_own: TAR, after, at own_threshold, as a new calibration would give.
    shift_*: of similarity, after minus before, over the n_band pairs within BAND of the threshold; shift_p99: 99th
    percentile of its absolute value. n_accepted: pairs accepted before. n_lost, n_won: true pairs that are no longer
    accepted, or newly accepted; n_dropped, n_gained: the same for pairs of two classes.
    """

    n_images: int
    n_classes: int
    far_target: float
    threshold: float
    own_threshold: float
    n_band: int
    shift_mean: float
    shift_std: float
    shift_p99: float
    n_accepted: int
    n_lost: int
    n_won: int
    n_gained: int
    n_dropped: int
    tar_before: float
    tar_after: float
    tar_own: float
    far_before: float
    far_after: float
    r_at_1_before: float
    r_at_1_after: float

    @property
    def flips(self) -> float:
        """Return the pairs whose decision changed, as a share of the pairs accepted before."""
        return (self.n_lost + self.n_won + self.n_gained + self.n_dropped) / self.n_accepted

    def to_json(self) -> dict[str, Any]:
        """Return a plain dictionary that `shift_of` turns back into an equal value, and the share of flips."""
        return asdict(self) | {"flips": self.flips}

    def __str__(self) -> str:
        rows = (
            ("TAR", self.tar_before, self.tar_after),
            ("TAR at the threshold with the same FAR", self.tar_before, self.tar_own),
            ("FAR", self.far_before, self.far_after),
            ("R@1", self.r_at_1_before, self.r_at_1_after),
        )
        lines = [
            (
                f"{self.n_images:,} images of {self.n_classes:,} classes at FAR {self.far_target:g}, threshold "
                f"{self.threshold:.4f}:"
            ),
            (
                f"  shift near the threshold ({self.n_band:,} pairs): mean {self.shift_mean:+.1e}, standard deviation "
                f"{self.shift_std:.1e}, 99 % within {self.shift_p99:.1e}"
            ),
            (
                f"  decisions that flip: {self.flips:.2%} of {self.n_accepted:,} accepted pairs (true pairs: "
                f"{self.n_lost} lost, {self.n_won} won; false ones: {self.n_gained} gained, {self.n_dropped} dropped)"
            ),
            *(f"  {name:<40} {before:.4f} -> {after:.4f}" for name, before, after in rows),
        ]
        return "\n".join(lines)


def shift_of(bundle: Bundle) -> PrecisionShift | None:
    """Return the shift that was measured when `bundle` was exported; None if none was measured."""
    stored = bundle.evaluation.get("export", {}).get("shift")
    if stored is None:
        return None
    return PrecisionShift(**{field.name: stored[field.name] for field in fields(PrecisionShift)})


def measure_shift(before: Vectors, after: Vectors, labels: Sequence[str], *, far_target: float) -> PrecisionShift:
    """Measure the shift between embeddings [n, d] float32, unit rows, of the same n images. Cost: O(n * n * d).

    Raises NotEnoughEvidence if the images have too few classes, pairs or accepted pairs for the target.
    """
    old, new = labelled(before, labels), labelled(after, labels)
    threshold, own_threshold = (float(thresholds_at_far(vectors, [far_target])[0]) for vectors in (old, new))
    flips = decision_flips(old, {"conversion": new}, threshold, sides=["both"]).flips[0]
    n_accepted = flips.lost.total + flips.dropped.total
    if n_accepted < _MIN_ACCEPTED:
        raise NotEnoughEvidence(
            f"{n_accepted} pairs of {len(labels)} images are accepted at FAR {far_target:g}, at least {_MIN_ACCEPTED} "
            "are needed to measure the share that flips: add labelled images, or raise --far"
        )
    shift = _shift_in_band(before, after, threshold)
    return PrecisionShift(
        n_images=len(labels),
        n_classes=len(set(labels)),
        far_target=far_target,
        threshold=threshold,
        own_threshold=own_threshold,
        n_band=len(shift),
        shift_mean=float(shift.mean()) if len(shift) else 0.0,
        shift_std=float(shift.std()) if len(shift) else 0.0,
        shift_p99=float(np.quantile(np.abs(shift), 0.99)) if len(shift) else 0.0,
        n_accepted=n_accepted,
        n_lost=flips.lost.count,
        n_won=flips.won.count,
        n_gained=flips.gained.count,
        n_dropped=flips.dropped.count,
        tar_before=flips.tar_clean,
        tar_after=flips.tar,
        tar_own=float(operating_curves(new, thresholds=[own_threshold]).pooled_tar[0]),
        far_before=flips.far_clean,
        far_after=flips.far,
        r_at_1_before=recall_at_k(old)[1],
        r_at_1_after=recall_at_k(new)[1],
    )


def check_flips(shift: PrecisionShift, max_flips: float, *, precision: str) -> None:
    """Raise ValidationFailed if the decision of more than a share `max_flips` of the accepted pairs changed."""
    if not shift.flips <= max_flips:
        raise ValidationFailed(
            f"{precision} flips {shift.flips:.2%} of the {shift.n_accepted:,} pairs that the trained embedder accepts "
            f"at FAR {shift.far_target:g} (threshold {shift.threshold:.4f}, {shift.n_images:,} images), at most "
            f"{max_flips:.2%} are allowed: nothing was written; "
            + ("use a higher precision, or allow more" if precision != "fp32" else "rounding moved them, allow more")
            + " with --max-flips"
        )


def _shift_in_band(before: Vectors, after: Vectors, threshold: float) -> NDArray[np.float32]:
    """Return the shift of each pair whose similarity, before, is within BAND of the threshold."""
    parts = [np.empty(0, dtype=np.float32)]
    for start in range(0, len(before), _TILE):
        for column in range(start, len(before), _TILE):
            rows, columns = slice(start, start + _TILE), slice(column, column + _TILE)
            old = scores_of(before[rows], before[columns])
            near = np.abs(old - threshold) <= BAND
            if rows == columns:
                near = np.triu(near, k=1)
            parts.append((scores_of(after[rows], after[columns]) - old)[near])
    return np.concatenate(parts)
