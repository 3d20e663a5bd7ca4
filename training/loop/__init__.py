"""The training loop: from a configuration and labelled images to a finished run, in one or more processes."""

from training.loop.embedding import embedding_function
from training.loop.monitoring import SILENT, Observers, StepReport
from training.loop.processes import is_main_process, leave_processes, select_device
from training.loop.runs import CHECKPOINT, CONFIG, EVALUATION, EVENTS, FinishedRun, load_finished, read_evaluation
from training.loop.train import train_embedder

__all__ = [
    "CHECKPOINT",
    "CONFIG",
    "EVALUATION",
    "EVENTS",
    "SILENT",
    "FinishedRun",
    "Observers",
    "StepReport",
    "embedding_function",
    "is_main_process",
    "leave_processes",
    "load_finished",
    "read_evaluation",
    "select_device",
    "train_embedder",
]
