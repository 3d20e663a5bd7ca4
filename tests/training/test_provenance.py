"""A run remembers which images it saw, not where they lay."""

from __future__ import annotations

from pathlib import Path

import pytest

from retrieval.contract.manifest import Item
from retrieval.errors import CorruptArtifact
from training.provenance import DATA, describe_items, record_data, recorded_data


def _items(*labels: str, folder: str = "a") -> list[Item]:
    return [
        Item(id=str(row), uri=f"{folder}/{row}.png", label=label, attributes={}) for row, label in enumerate(labels)
    ]


def test_facts() -> None:
    """The digest depends on ids, labels and order; the place of the images does not matter."""
    facts = describe_items(_items("cup", "hat", "cup"))
    assert (facts.n_images, facts.n_classes, facts.classes) == (3, 2, ("cup", "hat"))
    assert describe_items(_items("cup", "hat", "cup", folder="b")) == facts
    assert describe_items(_items("cup", "")).classes == ("cup",)
    assert describe_items(_items("hat", "cup", "cup")).digest != facts.digest


def test_what_was_recorded_is_found(tmp_path: Path) -> None:
    record_data(tmp_path, _items("cup", "hat"), _items("hat", "pen"))
    data = recorded_data(tmp_path)
    assert data is not None
    assert data.training == describe_items(_items("cup", "hat"))
    assert data.validation == describe_items(_items("hat", "pen"))
    assert data.shared_classes == ("hat",)
    assert "png" not in (tmp_path / DATA).read_text()


def test_nothing_recorded_and_something_damaged(tmp_path: Path) -> None:
    assert recorded_data(tmp_path) is None
    (tmp_path / DATA).write_text('{"training": {}}')
    with pytest.raises(CorruptArtifact, match=DATA):
        recorded_data(tmp_path)


def test_training_records_its_data(run: Path, training_items: list[Item], held_out_items: list[Item]) -> None:
    data = recorded_data(run)
    assert data is not None
    assert data.training == describe_items(training_items)
    assert data.validation == describe_items(held_out_items)
