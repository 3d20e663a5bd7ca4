"""The results of an evaluation: ranking, one threshold for all classes, consistency, identification.

`measuring.py` computes the figures, `report.py` writes tables and plots.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from pydantic import TypeAdapter, ValidationError

from retrieval.consistency import Axis, IdentificationRates, Interval
from retrieval.errors import CorruptArtifact


@dataclass(frozen=True, slots=True, kw_only=True)
class Consistency:
    """OPIS over the pooled FARs far_low to far_high, on the axis of distance or of log FAR.

    opis, eps_opis: measured values, with their expected values for equal classes of these sizes (floor, eps_floor) and
    95 % intervals over the draw of classes. debiased: OPIS without the part by chance, None with too few images.
    """

    axis: Axis
    far_low: float
    far_high: float
    opis: float
    floor: float
    interval: Interval
    debiased: float | None
    debiased_interval: Interval | None
    eps_opis: float
    eps_floor: float
    eps_interval: Interval


@dataclass(frozen=True, slots=True, kw_only=True)
class RateAtFar:
    """Pooled TAR at the lowest threshold whose pooled FAR on these images is at most `far`."""

    far: float
    threshold: float
    tar: float


@dataclass(frozen=True, slots=True, kw_only=True)
class OtherClasses:
    """Rates at thresholds for the FAR target that were chosen on one half of the classes and measured on the other.

    far, tar: pooled over n_splits splits; far_range: the lowest and the highest FAR of a half; worst_tar, worst_far:
    means over the tenth of the classes with the lowest TAR and with the highest FAR.
    """

    far: float
    tar: float
    far_range: Interval
    worst_tar: float
    worst_far: float
    n_splits: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """A leave-one-out evaluation over all images.

    n_single: classes with one image, which have no positive pair. r_at_1, 2, 4, 8, map_at_r: of the ranking.
    threshold: the lowest with a pooled pair FAR of at most far_target on these images; tar: pooled TAR at it. opis:
    over FAR 1e-2 to 1e-1 on the axis of distance, with its noise floor and, if the images allow it, the debiased
    estimate. consistency: the same with intervals, also on the axis of log FAR, over the decade around far_target and
    over a decade on either side of it. tar_at_far: at each FAR that the number of pairs allows. other_classes,
    identification: at thresholds chosen on other classes. missing: why a figure is missing, by its name. warnings:
    what the rates at the threshold rest on, as calibration prints it. Fields with a default are measured only by a full
    evaluation.
    """

    n_images: int
    n_classes: int
    n_single: int
    n_unreadable: int
    r_at_1: float
    r_at_2: float | None = None
    r_at_4: float | None = None
    r_at_8: float | None = None
    map_at_r: float | None = None
    far_target: float
    threshold: float
    tar: float
    opis: float
    opis_floor: float
    opis_debiased: float | None
    consistency: tuple[Consistency, ...] = ()
    tar_at_far: tuple[RateAtFar, ...] = ()
    other_classes: OtherClasses | None = None
    identification: tuple[IdentificationRates, ...] = ()
    missing: Mapping[str, str] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()

    def __str__(self) -> str:
        return (
            f"{self.n_images} images of {self.n_classes} classes: R@1 {self.r_at_1:.3f}, TAR {self.tar:.3f} at FAR "
            f"{self.far_target:g} (threshold {self.threshold:.3f}), "
            f"OPIS {self.opis:.2e} (noise floor {self.opis_floor:.2e})"
        )

    def to_json(self) -> dict[str, Any]:
        """Return a plain dictionary that `from_json` turns back into an equal value."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "Evaluation":
        """Undo `to_json`. Raises CorruptArtifact if the values are not those of an evaluation."""
        try:
            evaluation: Evaluation = TypeAdapter(cls).validate_python(values)
        except ValidationError as error:
            problems = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
            raise CorruptArtifact(f"an evaluation cannot be read: {problems}") from error
        return evaluation
