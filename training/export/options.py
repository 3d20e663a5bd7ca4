"""The options of an export, and the functions that receive its progress."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from retrieval.contract.manifest import Item
from training.export.precision import Precision
from training.export.shift import DEFAULT_MAX_FLIPS

NOT_STATED = "not stated"


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportOptions:
    """The options of an export.

    precision: of the backbone; pooling, head and unit norm are computed in float32. images: labelled images of classes
    not used for training, to measure the shift of similarity; required for fp16 and int8. calibration_images: required
    for int8, images of the kind that the model is used for, labels are not needed; the training images are suitable.
    far_target: FAR of the threshold, None for that of the run's evaluation. max_flips: largest share of the accepted
    pairs whose decision may change. licence: of the model, as text.
    """

    precision: Precision = "fp32"
    images: Sequence[Item] | None = None
    calibration_images: Sequence[Item] | None = None
    far_target: float | None = None
    max_flips: float = DEFAULT_MAX_FLIPS
    licence: str = NOT_STATED


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportProgress:
    """Functions that receive the progress (done, total) of the calibration images and of the measured images."""

    calibrating: Callable[[int, int], None] = lambda done, total: None
    measuring: Callable[[int, int], None] = lambda done, total: None


FLOAT32, SILENT = ExportOptions(), ExportProgress()
