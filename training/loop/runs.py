"""The files of a training run, and the checks before it is resumed or exported.

    RUN/config.json       the effective configuration
    RUN/checkpoint.pt     weights, optimiser, step and everything else that an exact resumption needs
    RUN/data.json         facts about the images, written when the run is finished
    RUN/evaluation.json   the evaluation on held-out classes; exists only if the run is finished
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
# Files of a run that failed or was killed before its first checkpoint: they may be overwritten.
_BEFORE_THE_FIRST_STEP = frozenset({CONFIG, staging_name(CONFIG), staging_name(CHECKPOINT)})
_ITEMS_OF_STEP = "items_of_step_"


@dataclass(frozen=True, slots=True, kw_only=True)
class Fingerprint:
    """Digests of the items of a run. read: of the training rows that could be read, None before reading."""

    training: str
    validation: str
    read: str | None = None

    def differences(self, saved: Mapping[str, Any]) -> Iterator[str]:
        """Return the differences from the run in a checkpoint that prevent an exact resumption."""
        there = saved.get("fingerprint")
        there = there if isinstance(there, Mapping) else {}
        if there.get("training") != self.training:
            yield "the training items differ"
        elif self.read is not None and there.get("read") != self.read:
            yield "the training images have changed, or other images of them can be read"
        # Before the first evaluation validation items have had no effect, and may still be changed.
        if saved["stopping"]["evaluation"] is not None and there.get("validation") != self.validation:
            yield "the validation items differ, which decide the weights that are kept"


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """A run on disk: its folder, its configuration, and its items."""

    folder: Path
    config: TrainingConfig
    fingerprint: Fingerprint


def open_run(run: Run, *, resume: bool) -> None:
    """Make the folder of a run ready to be written to.

    Raises InvalidInput if the folder holds something else, or a run with another configuration or other items.
    """
    folder = run.folder
    found = {path.name for path in folder.iterdir()} if folder.exists() else set()
    if not resume and found - _BEFORE_THE_FIRST_STEP:
        raise InvalidInput(f"{folder} is not empty: resume that run with --resume, or name a new folder")
    saved = read_checkpoint(folder)
    if saved is not None:
        require_continuation(run, saved)
    elif strange := sorted(name for name in found if not _is_of_a_run(name)):
        raise InvalidInput(f"{folder} holds {strange[0]!r} and no {CHECKPOINT}, so it is not a run: name a new folder")
    folder.mkdir(parents=True, exist_ok=True)
    _write_json(folder / CONFIG, to_json(run.config))


def write_checkpoint(run: Run, state: Mapping[str, Any]) -> None:
    """Replace the checkpoint of the run. Raises OutOfSpace, and keeps the old one, if there is no room for it."""
    content = {"format": _FORMAT, "fingerprint": asdict(run.fingerprint), "config": to_json(run.config), **state}
    write_whole(run.folder / CHECKPOINT, lambda file: torch.save(content, file), n_bytes=count_bytes(content))


def read_checkpoint(run: Path) -> dict[str, Any] | None:
    """Read the checkpoint of a run to the CPU; None if there is none. Raises CorruptArtifact if it is damaged."""
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
            "version that started it, or train in a new folder"
        )
    return saved


def write_evaluation(run: Path, evaluation: Evaluation) -> None:
    """Write the evaluation, which marks the run as finished."""
    _write_json(run / EVALUATION, evaluation.to_json())


def read_evaluation(run: Path) -> Evaluation | None:
    """Read the evaluation of a run; None if it is not finished. Raises CorruptArtifact if the file is damaged."""
    path = run / EVALUATION
    if not path.is_file():
        return None
    try:
        return Evaluation.from_json(json.loads(path.read_bytes()))
    except (ValueError, CorruptArtifact) as error:
        raise CorruptArtifact(f"{path} cannot be read ({error}): delete it, --resume evaluates again") from error


def write_batch(run: Path, step: int, ids: Iterable[str]) -> Path:
    """Write the ids of the items of a step into a file for people; return its path."""
    path = run / f"{_ITEMS_OF_STEP}{step}.json"
    _write_json(path, list(ids))
    return path


@dataclass(frozen=True, slots=True, kw_only=True)
class FinishedRun:
    """The result of a run: the embedder, on the CPU and in evaluation mode, with its preprocessing and evaluation."""

    embedder: Embedder
    preprocessing: Preprocessing
    config: TrainingConfig
    evaluation: Evaluation


def load_finished(run: Path) -> FinishedRun:
    """Load the result of `run`: the best weights, their running mean or the last ones, as its configuration says.

    Raises FailedPrecondition if the run is not finished, CorruptArtifact if it is damaged or does not fit the
    architecture.
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


def require_continuation(run: Run, saved: Mapping[str, Any]) -> None:
    """Raise InvalidInput, with all differences, if a run would not resume exactly."""
    # Read again: what an earlier version did not know has its default.
    there = _flat(to_json(parse_config(saved["config"], source=str(run.folder / CHECKPOINT))))
    here = _flat(to_json(run.config))
    problems = [
        f"{key} is {there.get(key, 'unset')!r} there and {here.get(key, 'unset')!r} here"
        for key in sorted(there.keys() | here.keys())
        if there.get(key) != here.get(key)
    ]
    problems += run.fingerprint.differences(saved)
    if problems:
        raise InvalidInput(
            f"{run.folder} was trained with another configuration or other items: {'; '.join(problems)}. Resume it "
            "with its own configuration and items, or name a new folder"
        )


def _is_of_a_run(name: str) -> bool:
    plain = name.removeprefix(".")
    return plain in (CONFIG, CHECKPOINT, EVALUATION, EVENTS, DATA) or plain.startswith(_ITEMS_OF_STEP)


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return the values by their dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat


def _write_json(path: Path, value: Any) -> None:
    write_bytes(path, json_bytes(value))
