"""Splits by class: disjoint, complete, reproducible, readable."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retrieval.contract.manifest import Item, read_manifest
from retrieval.errors import InvalidInput, NotEnoughEvidence
from training.data import require_disjoint, split_by_class, write_splits

SHARES = {"calibration": 0.2, "cohort": 0.1, "new": 0.2}


def items(n_classes: int, n_images: int = 3) -> list[Item]:
    return [
        Item(id=f"{c}/{i}", uri=f"file:///images/{c}/{i}.jpg", label=f"class {c}", attributes={"camera": "ab"[i % 2]})
        for i in range(n_images)
        for c in range(n_classes)
    ]


@pytest.mark.slow
@given(n_classes=st.integers(10, 60), seed=st.integers(0, 5))
def test_every_class_is_in_exactly_one_part(n_classes: int, seed: int) -> None:
    """Parts share no class and together hold every item once."""
    given_items = items(n_classes)
    parts = split_by_class(given_items, SHARES, seed=seed)
    labels = [label for part in parts.values() for label in {item.label for item in part}]
    assert len(labels) == len(set(labels)) == n_classes
    assert sorted(item.id for part in parts.values() for item in part) == sorted(item.id for item in given_items)
    assert len({item.label for item in parts["calibration"]}) == int(0.2 * n_classes)


def test_seed_decides() -> None:
    """The same seed gives the same split, another seed another."""
    first = split_by_class(items(40), SHARES, seed=0)
    assert first == split_by_class(items(40), SHARES, seed=0)
    assert first != split_by_class(items(40), SHARES, seed=1)


def test_manifests_can_be_read_again(tmp_path: Path) -> None:
    """What is written is what was split, attributes included; nothing is overwritten."""
    parts = split_by_class(items(20), SHARES, seed=0)
    summary = write_splits(parts, tmp_path / "splits")
    for name, part in parts.items():
        assert read_manifest(str(tmp_path / "splits" / f"{name}.csv")) == part
    assert summary.n_classes == {"calibration": 4, "cohort": 2, "new": 4, "train": 10}
    with pytest.raises(InvalidInput, match="exists already"):
        write_splits(parts, tmp_path / "splits")


def test_a_part_without_a_share_is_left_out() -> None:
    assert split_by_class(items(20), {"validation": 0.1, "cohort": 0.0}, seed=0).keys() == {"validation", "train"}


def test_a_class_in_two_parts_is_refused() -> None:
    """Both parts and the class are named; items without a label are nobody's."""
    train, unlabelled = items(5), [Item(id="u", uri="u", label="", attributes={})]
    require_disjoint({"train.csv": train + unlabelled, "validation.csv": unlabelled, "new.csv": []})
    with pytest.raises(InvalidInput, match=r"train\.csv and new\.csv must not share a class, 1 .* 'class 3'"):
        require_disjoint({"train.csv": train, "validation.csv": unlabelled, "new.csv": [train[3]]})


def test_impossible_splits_are_refused() -> None:
    """Shares of everything or below nothing, classes for nobody, items without a label."""
    with pytest.raises(InvalidInput, match="must not be negative"):
        split_by_class(items(20), {"calibration": -0.1}, seed=0)
    with pytest.raises(InvalidInput, match="leave some classes"):
        split_by_class(items(20), {"calibration": 0.5, "new": 0.5}, seed=0)
    with pytest.raises(NotEnoughEvidence, match="none for cohort"):
        split_by_class(items(8), SHARES, seed=0)
    with pytest.raises(InvalidInput, match="every item needs a label"):
        split_by_class([Item(id="a", uri="a", label="", attributes={})], SHARES, seed=0)


def test_one_long_label_does_not_take_room_for_each_class(tmp_path: Path) -> None:
    """An array of text is as wide as its longest; the same seed gives the same split as with short names."""
    items = [Item(id=str(i), uri="x", label=f"class {i // 2:05}", attributes={}) for i in range(4000)]
    long = [Item(id=i.id, uri="x", label=i.label + "x" * 5000 * (i.id == "0"), attributes={}) for i in items]
    tracemalloc.start()
    parts = split_by_class(long, {"new": 0.2}, seed=0)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4_000_000
    expected = split_by_class(items, {"new": 0.2}, seed=0)
    assert {name: [item.id for item in part] for name, part in parts.items()}.keys() == expected.keys()
