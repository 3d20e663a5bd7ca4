"""Class-disjoint splits: classes used for calibration, indexing or audits must not be used for training.

Decides the purpose of each class, writes a manifest for each purpose, and rejects a class with two purposes. Images
are not moved.
"""

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from retrieval.contract.manifest import Item
from retrieval.errors import InvalidInput, NotEnoughEvidence

TRAIN, NEW = "train", "new"
_COLUMNS = ("id", "uri", "label")


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitSummary:
    """The numbers of images and classes in each written manifest, by its name."""

    directory: str
    n_images: Mapping[str, int]
    n_classes: Mapping[str, int]


def split_by_class(items: Sequence[Item], shares: Mapping[str, float], *, seed: int) -> dict[str, list[Item]]:
    """Split the items by class into parts of the given shares of the classes; the remaining classes are `train`.

    A part with a share of 0 is left out. The items of a part keep their order. Raises InvalidInput if the shares are
    impossible or an item has no label, NotEnoughEvidence if a part would have no class.
    """
    if any(share < 0 for share in shares.values()) or sum(shares.values()) >= 1:
        raise InvalidInput(f"shares must not be negative and leave some classes to train on, found {dict(shares)}")
    if unlabelled := [item.id for item in items if not item.label]:
        raise InvalidInput(f"every item needs a label, {len(unlabelled)} have none, for instance {unlabelled[0]!r}")
    classes = sorted({item.label for item in items})
    labels = [classes[place] for place in np.random.default_rng(seed).permutation(len(classes))]
    counts = {name: int(share * len(labels)) for name, share in shares.items() if share > 0}
    counts[TRAIN] = len(labels) - sum(counts.values())
    if empty := [name for name, count in counts.items() if count == 0]:
        raise NotEnoughEvidence(f"{len(labels)} classes leave none for {', '.join(empty)}: add classes or raise shares")
    part_of, start = {}, 0
    for name, count in counts.items():
        part_of.update(dict.fromkeys(labels[start : start + count], name))
        start += count
    parts: dict[str, list[Item]] = {name: [] for name in counts}
    for item in items:
        parts[part_of[item.label]].append(item)
    return parts


def require_disjoint(parts: Mapping[str, Sequence[Item]]) -> None:
    """Raise InvalidInput if a class is in two of the parts; the message contains the names of the parts."""
    classes = {name: {item.label for item in items if item.label} for name, items in parts.items()}
    names = list(parts)
    for place, name in enumerate(names):
        for other in names[place + 1 :]:
            if shared := sorted(classes[name] & classes[other]):
                raise InvalidInput(
                    f"{name} and {other} must not share a class, {len(shared)} are in both, for instance "
                    f"{shared[0]!r}: results on classes that were "
                    "used for training do not hold for new classes. Split by class, see `training split`"
                )


def write_splits(parts: Mapping[str, Sequence[Item]], directory: Path) -> SplitSummary:
    """Write `directory`/<part>.csv for each part, with full uris. Raises InvalidInput if such a file exists."""
    directory.mkdir(parents=True, exist_ok=True)
    for name, items in parts.items():
        path = directory / f"{name}.csv"
        attributes = sorted({column for item in items for column in item.attributes})
        try:
            with path.open("x", newline="", encoding="utf-8") as file:
                writer = csv.writer(file)
                writer.writerow([*_COLUMNS, *attributes])
                writer.writerows(
                    [item.id, item.uri, item.label, *(item.attributes.get(column, "") for column in attributes)]
                    for item in items
                )
        except FileExistsError as error:
            raise InvalidInput(f"{path} exists already: name a new folder") from error
    return SplitSummary(
        directory=str(directory),
        n_images={name: len(items) for name, items in parts.items()},
        n_classes={name: len({item.label for item in items}) for name, items in parts.items()},
    )
