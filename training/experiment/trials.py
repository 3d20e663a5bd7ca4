"""The trials of an experiment, one for each arm and seed: plans them and checks the trials that exist on disk.

OUT/<arm>/<seed>/made_of.json     configuration and digests of the items
OUT/<arm>/<seed>/run              the training run
OUT/<arm>/<seed>/trained.json     duration of training; exists only if training is finished
OUT/<arm>/<seed>/embeddings.npz   embeddings of the parts train, cohort, calibration and test
OUT/<arm>/<seed>/log.txt          output of the processes
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from retrieval.contract.canonical import digest_json, json_bytes
from retrieval.contract.manifest import Item, read_source
from retrieval.errors import CorruptArtifact, InvalidInput
from training.config import parse_config, to_json
from training.experiment.plan import Arm, Experiment, ExperimentData
from training.writing import write_bytes

MADE_OF, CONFIG, RUN, TRAINED = "made_of.json", "config.json", "run", "trained.json"
EMBEDDINGS, LOG, LOCK = "embeddings.npz", "log.txt", ".lock"
EMBEDDED_PARTS = ("train", "cohort", "calibration", "test")
_PARTS = ("train", "validation", "cohort", "calibration", "test")
_TRAINED_ON = ("train", "validation")
# Neither is used to measure or to calibrate: validation chooses weights, scores are fitted on the cohort.
_MAY_BE_THE_SAME = {"validation", "cohort"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """One arm with one seed: its data, its folder, and the configuration and digests that identify it.

    passed_over: see `retrieval/contract/manifest.py`.
    """

    arm: Arm
    seed: int
    data: ExperimentData
    folder: Path
    made_of: Mapping[str, Any]
    passed_over: tuple[str, ...] = ()


def plan_trials(experiment: Experiment, out: Path) -> list[Trial]:
    """Plan the trials of the experiment, seed by seed, so that all arms can be compared after the first seed.

    Raises InvalidInput if a class is in two parts of the data, if images lack labels, or if a folder in `out` holds a
    trial of the same arm and seed with another configuration or other items; InvalidManifest or EmptyCatalog if the
    data cannot be read, CorruptArtifact if the files of the folder cannot be read.
    """
    trials = []
    for seed in experiment.seeds:
        data = experiment.data.of_seed(seed, experiment.root)
        read = {part: read_source(getattr(data, part)) for part in _PARTS}
        items = {part: found.items for part, found in read.items()}
        passed_over = tuple(sentence for found in read.values() for sentence in found.passed_over)
        _check_labels(items, data)
        _check_apart(items, seed)
        digests = {part: digest_json([[item.id, item.label] for item in items[part]]) for part in items}
        for arm in experiment.trained_arms:
            made_of = {"config": to_json(replace(arm.training, seed=seed)), "items": digests}
            folder = out / arm.name / str(seed)
            _check_same(folder, made_of)
            trials.append(Trial(arm=arm, seed=seed, data=data, folder=folder, made_of=made_of, passed_over=passed_over))
    return trials


def training_seconds(folder: Path) -> float | None:
    """Return the seconds that training took; None if it was interrupted."""
    seconds = (read_json(folder / TRAINED) or {}).get("seconds")
    return None if seconds is None else float(seconds)


def read_json(path: Path) -> dict[str, Any] | None:
    """Read a JSON object from a file; None if there is no file. Raises CorruptArtifact if it holds something else."""
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_bytes())
    except ValueError as error:
        raise CorruptArtifact(
            f"{path} cannot be read ({error}): delete its folder, it will be created again"
        ) from error
    if not isinstance(content, dict):
        raise CorruptArtifact(f"{path} holds no JSON object: delete its folder, it will be created again")
    return content


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Replace the file, completely or not at all. Raises OutOfSpace."""
    write_bytes(path, json_bytes(value))


def _check_labels(items: Mapping[str, Sequence[Item]], data: ExperimentData) -> None:
    for part in items:
        if unlabelled := [item.id for item in items[part] if not item.label]:
            raise InvalidInput(
                f"{getattr(data, part)}: every image of an experiment needs a label, {len(unlabelled)} have none, for "
                f"instance {unlabelled[0]!r}: label them, or remove them"
            )


def _check_apart(items: Mapping[str, Sequence[Item]], seed: int) -> None:
    classes = {part: {item.label for item in items[part]} for part in items}
    for number, first in enumerate(_PARTS):
        for second in _PARTS[number + 1 :]:
            shared = sorted(classes[first] & classes[second])
            if shared and {first, second} != _MAY_BE_THE_SAME:
                raise InvalidInput(
                    f"seed {seed}: {first} and {second} share {len(shared)} classes, for instance {shared[0]!r}: "
                    "classes to measure on must not be used for training, fitting or calibration"
                )


def _check_same(folder: Path, made_of: Mapping[str, Any]) -> None:
    found = read_json(folder / MADE_OF)
    if found is None:
        return
    there = to_json(parse_config(found["config"], source=str(folder / MADE_OF)))  # what it did not know has its default
    if there != made_of["config"]:
        keys = ", ".join(_differences(there, made_of["config"]))
        raise InvalidInput(
            f"{folder} holds a run with another configuration ({keys}): name a new folder, or delete this one"
        )
    if any(found["items"][part] != made_of["items"][part] for part in _TRAINED_ON):
        raise InvalidInput(f"{folder} holds a run on other items: name a new folder, or delete this one")


def _differences(first: Mapping[str, Any], second: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for key in sorted(first.keys() | second.keys()):
        old, new = first.get(key), second.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            yield from _differences(old, new, f"{prefix}{key}.")
        elif old != new:
            yield f"{prefix}{key}"
