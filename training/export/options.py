"""What an export can be told, and who is told how far it is."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from retrieval.contract.manifest import Item
from training.export.precision import Precision
from training.export.shift import DEFAULT_MAX_FLIPS

NOT_STATED = "not stated"


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportOptions:
    """precision: of the backbone; pooling, head and unit norm are computed in float32.

    images: labelled ones of classes not trained on, on which the shift of similarity is measured; needed below fp32.
    calibration_images: needed for int8, of the kind the model will meet; labels do not matter, those trained on serve.
    far_target: at which the threshold lies, None for that of the run's own evaluation. max_flips: largest share of the
    accepted pairs whose decision may change. licence: of the model, as text.
    """

    precision: Precision = "fp32"
    images: Sequence[Item] | None = None
    calibration_images: Sequence[Item] | None = None
    far_target: float | None = None
    max_flips: float = DEFAULT_MAX_FLIPS
    licence: str = NOT_STATED


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportProgress:
    """Who is told of images done, and of how many: those calibrated on, those measured on."""

    calibrating: Callable[[int, int], None] = lambda done, total: None
    measuring: Callable[[int, int], None] = lambda done, total: None


FLOAT32, SILENT = ExportOptions(), ExportProgress()
