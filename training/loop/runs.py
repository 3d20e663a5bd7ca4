"""What a training run leaves on disk, and when it may be continued or exported.

    RUN/config.json       the effective configuration
    RUN/checkpoint.pt     weights, optimiser, step and all else that going on exactly needs
    RUN/data.json         which images it saw, once it is finished
    RUN/evaluation.json   what the finished embedder does on held-out classes; there only when the run is finished
    RUN/tensorboard/      events for TensorBoard

Each file is replaced atomically: a run that is killed can be resumed from its last checkpoint.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from retrieval.contract.canonical import json_bytes
from retrieval.contract.preprocessing import Preprocessing
from retrieval.errors import CorruptArtifact, FailedPrecondition, InvalidInput
from training.config import TrainingConfig, parse_config, to_json
from training.evaluation import Evaluation
from training.loop.state import count_bytes
from training.model import Embedder, restore_embedder
from training.provenance import DATA
from training.writing import staging_name, write_bytes, write_whole

CHECKPOINT, CONFIG, EVALUATION, EVENTS = "checkpoint.pt", "config.json", "evaluation.json", "tensorboard"

_FORMAT = 2
# What a run that failed or was killed before its first checkpoint leaves: nothing to lose.
_BEFORE_THE_FIRST_STEP = frozenset({CONFIG, staging_name(CONFIG), staging_name(CHECKPOINT)})
_ITEMS_OF_STEP = "items_of_step_"


@dataclass(frozen=True, slots=True, kw_only=True)
class Fingerprint:
    """Which items a run is about, as digests. read: of the rows to train on that could be read, None before reading."""

    training: str
    validation: str
    read: str | None = None

    def differences(self, saved: Mapping[str, Any]) -> Iterator[str]:
        """What differs from the run in a checkpoint so that it could not go on exactly."""
        there = saved.get("fingerprint")
        there = there if isinstance(there, Mapping) else {}
        if there.get("training") != self.training:
            yield "the items to train on differ"
        elif self.read is not None and there.get("read") != self.read:
            yield "the images to train on have changed, or others of them can be read"
        # Without an evaluation on the way they had no say yet, and may be mended or added to.
        if saved["stopping"]["evaluation"] is not None and there.get("validation") != self.validation:
            yield "the items to validate on differ, which chose the weights that are kept"


def open_run(run: Path, config: TrainingConfig, fingerprint: Fingerprint, *, resume: bool) -> None:
    """Make `run` ready to be written to.

    Raises InvalidInput where the folder holds something else, or a run with another configuration or other items.
    """
    found = {path.name for path in run.iterdir()} if run.exists() else set()
    if not resume and found - _BEFORE_THE_FIRST_STEP:
        raise InvalidInput(f"{run} is not empty: go on there with --resume, or name a new folder")
    saved = read_checkpoint(run)
    if saved is not None:
        require_continuation(run, saved, config, fingerprint)
    elif strange := sorted(name for name in found if not _is_of_a_run(name)):
        raise InvalidInput(f"{run} holds {strange[0]!r} and no {CHECKPOINT}, it is no run: name a new folder")
    run.mkdir(parents=True, exist_ok=True)
    _write_json(run / CONFIG, to_json(config))


def write_checkpoint(run: Path, state: Mapping[str, Any], config: TrainingConfig, fingerprint: Fingerprint) -> None:
    """Replace the run's checkpoint. Raises OutOfSpace, the earlier one untouched, where there is no room for it."""
    content = {"format": _FORMAT, "fingerprint": asdict(fingerprint), "config": to_json(config), **state}
    write_whole(run / CHECKPOINT, lambda file: torch.save(content, file), n_bytes=count_bytes(content))


def read_checkpoint(run: Path) -> dict[str, Any] | None:
    """The run's checkpoint, on the CPU; None where there is none. Raises CorruptArtifact where it is damaged."""
    path = run / CHECKPOINT
    if not path.is_file():
        return None
    try:
        saved: object = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise CorruptArtifact(f"{path} cannot be read ({error}): delete it and train again") from error
    found = saved.get("format") if isinstance(saved, dict) else None
    if not isinstance(saved, dict) or found != _FORMAT:
        raise InvalidInput(
            f"{path}: expected a checkpoint of format {_FORMAT}, found {found}: finish that run with the "
            "version that began it, or train in a new folder"
        )
    return saved


def write_evaluation(run: Path, evaluation: Evaluation) -> None:
    """Mark the run as finished."""
    _write_json(run / EVALUATION, evaluation.to_json())


def read_evaluation(run: Path) -> Evaluation | None:
    """What a finished run found; None while it is not finished. Raises CorruptArtifact where it is damaged."""
    path = run / EVALUATION
    if not path.is_file():
        return None
    try:
        return Evaluation.from_json(json.loads(path.read_bytes()))
    except (ValueError, CorruptArtifact) as error:
        raise CorruptArtifact(f"{path} cannot be read ({error}): delete it, --resume evaluates again") from error


def write_batch(run: Path, step: int, ids: Iterable[str]) -> Path:
    """Leave the ids of the items of a step for people to look at; the file they are in."""
    path = run / f"{_ITEMS_OF_STEP}{step}.json"
    _write_json(path, list(ids))
    return path


@dataclass(frozen=True, slots=True, kw_only=True)
class FinishedRun:
    """What a run made: the embedder, on the CPU, in evaluation mode, and what belongs to it."""

    embedder: Embedder
    preprocessing: Preprocessing
    config: TrainingConfig
    evaluation: Evaluation


def load_finished(run: Path) -> FinishedRun:
    """What `run` made: the best weights, their running mean or the last ones, as its configuration says.

    Raises FailedPrecondition where it is not finished, CorruptArtifact where it is damaged or does not fit the
    architecture that is built here.
    """
    saved, evaluation = read_checkpoint(run), read_evaluation(run)
    if saved is None:
        raise FailedPrecondition(
            f"{run} holds no {CHECKPOINT}: name the folder that was given to `training train --out`"
        )
    config = parse_config(saved["config"], source=str(run / CHECKPOINT))
    if evaluation is None:
        raise FailedPrecondition(
            f"{run} stopped after step {saved['step']} of {config.schedule.steps}: finish it with `train --resume`"
        )
    embedder, preprocessing = restore_embedder(config.model, config.input, saved["final"])
    return FinishedRun(embedder=embedder, preprocessing=preprocessing, config=config, evaluation=evaluation)


def require_continuation(run: Path, saved: Mapping[str, Any], config: TrainingConfig, fingerprint: Fingerprint) -> None:
    """Raise InvalidInput, with all differences, where a run would not go on as it was begun."""
    there, here = _flat(saved["config"]), _flat(to_json(config))
    problems = [
        f"{key} is {there.get(key, 'unset')!r} there and {here.get(key, 'unset')!r} here"
        for key in sorted(there.keys() | here.keys())
        if there.get(key) != here.get(key)
    ]
    problems += fingerprint.differences(saved)
    if problems:
        raise InvalidInput(
            f"{run} was trained with another configuration or other items: {'; '.join(problems)}. Go on with what it "
            "was begun with, or name a new folder"
        )


def _is_of_a_run(name: str) -> bool:
    plain = name.removeprefix(".")
    return plain in (CONFIG, CHECKPOINT, EVALUATION, EVENTS, DATA) or plain.startswith(_ITEMS_OF_STEP)


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The values by their dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat


def _write_json(path: Path, value: Any) -> None:
    write_bytes(path, json_bytes(value))
