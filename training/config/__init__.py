"""The options of a training run, and the function that reads them from a file."""

from training.config.reading import CONFIGS, find_named, load_config, parse_config, suggestion, to_json
from training.config.sections import (
    AugmentationConfig,
    BaseLossConfig,
    DataConfig,
    InputConfig,
    LoopConfig,
    LoraConfig,
    LossConfig,
    MarginConfig,
    ModelConfig,
    ScheduleConfig,
    TrainingConfig,
)

__all__ = [
    "CONFIGS",
    "AugmentationConfig",
    "BaseLossConfig",
    "DataConfig",
    "InputConfig",
    "LoopConfig",
    "LoraConfig",
    "LossConfig",
    "MarginConfig",
    "ModelConfig",
    "ScheduleConfig",
    "TrainingConfig",
    "find_named",
    "load_config",
    "parse_config",
    "suggestion",
    "to_json",
]
