"""What a training run leaves on disk, and when it may be continued or exported.

    RUN/config.json       the effective configuration
    RUN/checkpoint.pt     weights, optimiser and step
    RUN/evaluation.json   what the finished embedder does on held-out classes; there only when the run is finished

Each file is replaced atomically: a run that is killed can be resumed from its last checkpoint.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from retrieval.contract.canonical import json_bytes
from retrieval.contract.preprocessing import Preprocessing
from retrieval.errors import CorruptArtifact, FailedPrecondition, InvalidInput
from training.config import TrainingConfig, parse_config, to_json
from training.evaluation import Evaluation
from training.model import Embedder, create_embedder

CHECKPOINT, CONFIG, EVALUATION = "checkpoint.pt", "config.json", "evaluation.json"


def open_run(run: Path, config: TrainingConfig, fingerprint: str, *, resume: bool) -> dict[str, Any] | None:
    """Make `run` ready to be written to; its checkpoint, if there is one to go on from.

    fingerprint: digest of the training items. Raises InvalidInput where the folder holds something else, or a run with
    another configuration or other items.
    """
    found = {path.name for path in run.iterdir()} if run.exists() else set()
    if not resume and found - {CONFIG}:  # a run that failed before its first checkpoint leaves nothing to lose
        raise InvalidInput(f"{run} is not empty: go on there with --resume, or name a new folder")
    saved = _read_checkpoint(run)
    if saved is not None and (saved["config"] != to_json(config) or saved["fingerprint"] != fingerprint):
        raise InvalidInput(f"{run} was trained with another configuration or other items: name a new folder")
    run.mkdir(parents=True, exist_ok=True)
    _write_atomically(run / CONFIG, json_bytes(to_json(config)))
    return saved


def write_checkpoint(run: Path, state: dict[str, Any]) -> None:
    """Replace the run's checkpoint."""
    staging = run / f".{CHECKPOINT}"
    torch.save(state, staging)
    staging.replace(run / CHECKPOINT)


def write_evaluation(run: Path, evaluation: Evaluation) -> None:
    """Mark the run as finished."""
    _write_atomically(run / EVALUATION, json_bytes(evaluation.to_json()))


def read_evaluation(run: Path) -> Evaluation | None:
    """What a finished run found; None while it is not finished."""
    path = run / EVALUATION
    return Evaluation.from_json(json.loads(path.read_bytes())) if path.is_file() else None


@dataclass(frozen=True, slots=True, kw_only=True)
class FinishedRun:
    """What a run made: the embedder, on the CPU, in evaluation mode, and what belongs to it."""

    embedder: Embedder
    preprocessing: Preprocessing
    config: TrainingConfig
    evaluation: Evaluation


def load_finished(run: Path) -> FinishedRun:
    """What `run` made. Raises FailedPrecondition where it is not finished, CorruptArtifact where it is damaged."""
    saved, evaluation = _read_checkpoint(run), read_evaluation(run)
    if saved is None:
        raise FailedPrecondition(
            f"{run} holds no {CHECKPOINT}: name the folder that was given to `training train --out`"
        )
    config = parse_config(saved["config"], source=str(run / CHECKPOINT))
    if evaluation is None:
        raise FailedPrecondition(
            f"{run} stopped after step {saved['step']} of {config.schedule.steps}: finish it with `train --resume`"
        )
    embedder, preprocessing = create_embedder(config.model, config.input)
    embedder.load_state_dict(saved["embedder"])
    return FinishedRun(embedder=embedder.eval(), preprocessing=preprocessing, config=config, evaluation=evaluation)


def _read_checkpoint(run: Path) -> dict[str, Any] | None:
    path = run / CHECKPOINT
    if not path.is_file():
        return None
    try:
        saved: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise CorruptArtifact(f"{path} cannot be read ({error}): delete it and train again") from error
    return saved


def _write_atomically(path: Path, content: bytes) -> None:
    staging = path.with_name(f".{path.name}")
    staging.write_bytes(content)
    staging.replace(path)
