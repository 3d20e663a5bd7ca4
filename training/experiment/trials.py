"""The runs of an experiment: which there are, what each is made of, and whether what is there is one of them.

OUT/<arm>/<seed>/made_of.json     configuration and digests of the items
OUT/<arm>/<seed>/run              the training run
OUT/<arm>/<seed>/trained.json     how long training took; there only when it is finished
OUT/<arm>/<seed>/embeddings.npz   of the parts train, cohort, calibration and test
OUT/<arm>/<seed>/log.txt          what the processes said
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from retrieval.contract.canonical import digest_json, json_bytes
from retrieval.contract.manifest import Item, read_manifest
from retrieval.errors import CorruptArtifact, InvalidInput
from training.config import to_json
from training.experiment.plan import Arm, Experiment, ExperimentData
from training.writing import write_bytes

MADE_OF, CONFIG, RUN, TRAINED = "made_of.json", "config.json", "run", "trained.json"
EMBEDDINGS, LOG, LOCK = "embeddings.npz", "log.txt", ".lock"
EMBEDDED_PARTS = ("train", "cohort", "calibration", "test")
_PARTS = ("train", "validation", "cohort", "calibration", "test")
_TRAINED_ON = ("train", "validation")
# Nothing is measured or calibrated on either: the one chooses weights, the other is what scores are fitted on.
_MAY_BE_THE_SAME = {"validation", "cohort"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """One run to be made: the arm with the seed in its configuration, where it lies and what it is made of."""

    arm: Arm
    seed: int
    data: ExperimentData
    folder: Path
    made_of: Mapping[str, Any]


def plan_trials(experiment: Experiment, out: Path) -> list[Trial]:
    """The runs of the experiment, seed by seed, so that after the first seed every arm can be compared.

    Raises InvalidInput where a class is in two parts of the data or images lack labels, or a folder in `out` holds a
    run of the same arm and seed with another configuration or other items; InvalidManifest, EmptyCatalog where the data
    cannot be read, CorruptArtifact where what the folder says about itself cannot.
    """
    trials = []
    for seed in experiment.seeds:
        data = experiment.data.of_seed(seed, experiment.root)
        items = {part: read_manifest(getattr(data, part)) for part in _PARTS}
        _check_labels(items, data)
        _check_apart(items, seed)
        digests = {part: digest_json([[item.id, item.label] for item in items[part]]) for part in items}
        for arm in experiment.trained_arms:
            made_of = {"config": to_json(replace(arm.training, seed=seed)), "items": digests}
            folder = out / arm.name / str(seed)
            _check_same(folder, made_of)
            trials.append(Trial(arm=arm, seed=seed, data=data, folder=folder, made_of=made_of))
    return trials


def training_seconds(folder: Path) -> float | None:
    """How long training took; None where it was interrupted in between."""
    seconds = (read_json(folder / TRAINED) or {}).get("seconds")
    return None if seconds is None else float(seconds)


def read_json(path: Path) -> dict[str, Any] | None:
    """What the file holds; None where there is none. Raises CorruptArtifact where it is no JSON object."""
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_bytes())
    except ValueError as error:
        raise CorruptArtifact(f"{path} cannot be read ({error}): delete its folder, it will be made again") from error
    if not isinstance(content, dict):
        raise CorruptArtifact(f"{path} holds no JSON object: delete its folder, it will be made again")
    return content


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Replace the file, whole or not at all. Raises OutOfSpace."""
    write_bytes(path, json_bytes(value))


def _check_labels(items: Mapping[str, Sequence[Item]], data: ExperimentData) -> None:
    for part in items:
        if unlabelled := [item.id for item in items[part] if not item.label]:
            raise InvalidInput(
                f"{getattr(data, part)}: every image of an experiment needs a label, {len(unlabelled)} have none, for "
                f"instance {unlabelled[0]!r}: label them, or leave them out"
            )


def _check_apart(items: Mapping[str, Sequence[Item]], seed: int) -> None:
    classes = {part: {item.label for item in items[part]} for part in items}
    for number, first in enumerate(_PARTS):
        for second in _PARTS[number + 1 :]:
            shared = sorted(classes[first] & classes[second])
            if shared and {first, second} != _MAY_BE_THE_SAME:
                raise InvalidInput(
                    f"seed {seed}: {first} and {second} share {len(shared)} classes, for instance {shared[0]!r}: what "
                    "is measured must not have been trained, fitted or calibrated on"
                )


def _check_same(folder: Path, made_of: Mapping[str, Any]) -> None:
    found = read_json(folder / MADE_OF)
    if found is None:
        return
    if found["config"] != made_of["config"]:
        keys = ", ".join(_differences(found["config"], made_of["config"]))
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
