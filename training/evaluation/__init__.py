"""Evaluates an embedder on classes that it was not trained on. `report` writes tables and plots."""

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
    "Evaluation",
    "ImageEmbeddings",
    "OtherClasses",
    "RateAtFar",
    "embed_images",
    "evaluate",
    "evaluate_items",
    "require_evidence",
]
