from .batching import Batch, batches
from .cleaning import Cleaned, clean
from .decoding import PreprocessedItems, Progress, Unreadable, read_items, refuse_too_many
from .duplicates import DEFAULT_TOLERANCE, Duplicate, DuplicateReport, find_duplicates
from .images import TrainingImages, normalise, open_training_images, remarks, unchanged
from .layouts import LAYOUTS, Layout, read_layout
from .sampling import StepSampler, batch_size
from .sharing import open_images_together
from .splits import NEW, TRAIN, SplitSummary, require_disjoint, split_by_class, write_splits

__all__ = [
    "DEFAULT_TOLERANCE",
    "LAYOUTS",
    "NEW",
    "TRAIN",
    "Batch",
    "Cleaned",
    "Duplicate",
    "DuplicateReport",
    "Layout",
    "PreprocessedItems",
    "Progress",
    "SplitSummary",
    "StepSampler",
    "TrainingImages",
    "Unreadable",
    "batch_size",
    "batches",
    "clean",
    "find_duplicates",
    "normalise",
    "open_images_together",
    "open_training_images",
    "read_items",
    "read_layout",
    "refuse_too_many",
    "remarks",
    "require_disjoint",
    "split_by_class",
    "unchanged",
    "write_splits",
]
