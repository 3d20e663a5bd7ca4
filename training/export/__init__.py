"""Exports a finished run as a model bundle: converted, compared with the trained embedder, and described."""

from training.export.bundle import export_run
from training.export.options import NOT_STATED, ExportOptions, ExportProgress
from training.export.shift import DEFAULT_MAX_FLIPS, PrecisionShift, shift_of

__all__ = [
    "DEFAULT_MAX_FLIPS",
    "NOT_STATED",
    "ExportOptions",
    "ExportProgress",
    "PrecisionShift",
    "export_run",
    "shift_of",
]
