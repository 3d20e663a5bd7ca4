"""How well an embedder serves classes it was not trained on. Tables and plots of it are in `report`."""

from training.evaluation.items import Embed, ImageEmbeddings, embed_images, evaluate_items
from training.evaluation.measuring import evaluate, require_evidence
from training.evaluation.results import (
    Consistency,
    Evaluation,
    OtherClasses,
    RateAtFar,
)

__all__ = [
    "Consistency",
    "Embed",
    "ImageEmbeddings",
    "Evaluation",
    "OtherClasses",
    "RateAtFar",
    "embed_images",
    "evaluate",
    "evaluate_items",
    "require_evidence",
]
