"""Records which images a run used, without their paths: digests, counts and classes, stored in the folder of the run.

RUN/data.json     facts about the training and validation images
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from retrieval.contract.canonical import digest_json, json_bytes
from retrieval.contract.manifest import Item
from retrieval.errors import CorruptArtifact
from training.writing import write_bytes

DATA = "data.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class DataFacts:
    """Facts about a list of images.

    digest: of their ids and labels, in order; classes: sorted names, of the images that have a label.
    """

    digest: str
    n_images: int
    classes: tuple[str, ...]

    @property
    def n_classes(self) -> int:
        """Return the number of classes."""
        return len(self.classes)

    def to_json(self) -> dict[str, Any]:
        """Return a plain dictionary that `from_json` turns back into an equal value."""
        return asdict(self) | {"classes": list(self.classes)}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> DataFacts:
        """Undo `to_json`."""
        return cls(
            digest=str(value["digest"]), n_images=int(value["n_images"]), classes=tuple(map(str, value["classes"]))
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class RunData:
    """The training and validation images of a run."""

    training: DataFacts
    validation: DataFacts

    @property
    def shared_classes(self) -> tuple[str, ...]:
        """Return the classes in both parts, sorted: results on them do not hold for new classes."""
        return tuple(sorted(set(self.training.classes) & set(self.validation.classes)))

    def to_json(self) -> dict[str, Any]:
        """Return a plain dictionary, for the bundle."""
        return {
            "training": self.training.to_json(),
            "validation": self.validation.to_json(),
            "shared_classes": list(self.shared_classes),
        }


def describe_items(items: Sequence[Item]) -> DataFacts:
    """Return the facts about `items`, unreadable ones included."""
    return DataFacts(
        digest=digest_json([[item.id, item.label] for item in items]),
        n_images=len(items),
        classes=tuple(sorted({item.label for item in items if item.label})),
    )


def record_data(run: Path, items: Sequence[Item], validation: Sequence[Item]) -> None:
    """Write the facts into the folder of a run, completely or not at all. Raises OutOfSpace if there is no room."""
    facts = {"training": describe_items(items).to_json(), "validation": describe_items(validation).to_json()}
    write_bytes(run / DATA, json_bytes(facts))


def recorded_data(run: Path) -> RunData | None:
    """Read the facts that `run` recorded; None if there are none. Raises CorruptArtifact if they are damaged."""
    path = run / DATA
    if not path.is_file():
        return None
    try:
        value = json.loads(path.read_bytes())
        return RunData(
            training=DataFacts.from_json(value["training"]), validation=DataFacts.from_json(value["validation"])
        )
    except (ValueError, KeyError, TypeError) as error:
        raise CorruptArtifact(
            f"{path} cannot be read ({error}): delete it; the model card will then contain no data section"
        ) from error
