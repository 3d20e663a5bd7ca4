"""Networks: creates embedders from the configuration, and decides which parameters are trained at which rate."""

from training.model.adapters import add_adapters, merge_adapters
from training.model.backbone import Backbone
from training.model.create import create_backbone, create_embedder, restore_embedder
from training.model.embedder import Embedder
from training.model.parameters import freeze, parameter_groups
from training.model.pooling_and_head import GeM

__all__ = [
    "Backbone",
    "Embedder",
    "GeM",
    "add_adapters",
    "create_backbone",
    "create_embedder",
    "freeze",
    "merge_adapters",
    "parameter_groups",
    "restore_embedder",
]
