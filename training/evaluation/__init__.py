"""How well an embedder serves classes it was not trained on. Tables and plots of it are in `report`."""

from training.evaluation.evaluation import (
    Consistency,
    Evaluation,
    OtherClasses,
    RateAtFar,
)
from training.evaluation.items import Embed, EmbeddedItems, embed_items, evaluate_items
from training.evaluation.measuring import evaluate, require_evidence

__all__ = [
    "Consistency",
    "Embed",
    "EmbeddedItems",
    "Evaluation",
    "OtherClasses",
    "RateAtFar",
    "embed_items",
    "evaluate",
    "evaluate_items",
    "require_evidence",
]
