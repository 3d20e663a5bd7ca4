"""The training loss: base losses by name, the threshold-consistent margin (TCM), and their sum."""

from training.losses.adaptive import AdaptiveMargins
from training.losses.cohort import DensityQueue, density
from training.losses.gathering import GatheredBatch, gather
from training.losses.library import create_base_loss, create_miner
from training.losses.margin import MarginLoss, threshold_consistent_margin
from training.losses.memory import CrossBatchMemory, Remembered
from training.losses.ranking import RecallAtKSurrogateLoss, SmoothAPLoss
from training.losses.training_loss import StepLoss, TrainingLoss

__all__ = [
    "AdaptiveMargins",
    "CrossBatchMemory",
    "DensityQueue",
    "GatheredBatch",
    "MarginLoss",
    "RecallAtKSurrogateLoss",
    "Remembered",
    "SmoothAPLoss",
    "StepLoss",
    "TrainingLoss",
    "create_base_loss",
    "create_miner",
    "density",
    "gather",
    "threshold_consistent_margin",
]
