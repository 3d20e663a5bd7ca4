"""Parts of a split without duplicates."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from retrieval.contract.manifest import Item, read_manifest
from tests.pictures import encoded, noise
from training.data import Duplicate, clean


def item(name: str, label: str) -> Item:
    return Item(id=name, uri=f"{name}.png", label=label, attributes={})


def pair(*places: tuple[str, str, str]) -> Duplicate:
    """Two items that show one picture, each as part, id and label."""
    parts, ids, labels = zip(*places, strict=True)
    return Duplicate(kind="exact", parts=parts, ids=ids, labels=labels, difference=0.0)


PARTS = {
    "train": [item("a", "cup"), item("b", "cup"), item("c", "mug")],
    "new": [item("d", "cup"), item("e", "vase"), item("f", "vase")],
}


def ids(parts: object) -> dict[str, str]:
    return {part: "".join(i.id for i in items) for part, items in parts.items()}  # type: ignore[attr-defined]


def test_a_picture_stays_in_the_first_part() -> None:
    found = clean(PARTS, [pair(("new", "d", "cup"), ("train", "a", "cup"))], merge=False)
    assert (ids(found.parts), found.n_dropped) == ({"train": "abc", "new": "ef"}, 1)


@pytest.mark.parametrize(("merge", "kept"), [(False, "b"), (True, "ab")])
def test_a_picture_under_two_labels(merge: bool, kept: str) -> None:
    """Nobody knows which label is right: left out, or the labels are merged, in every part."""
    found = clean(PARTS, [pair(("train", "a", "cup"), ("train", "c", "mug"))], merge=merge)
    assert ids(found.parts)["train"] == kept
    assert found.merged == ({"mug": "cup"} if merge else {})


def test_labels_that_are_merged_through_a_third_are_one_class() -> None:
    """And every item of them gets the label, not only the duplicates."""
    pairs = [
        pair(("train", "a", "cup"), ("train", "c", "mug")),
        pair(("train", "c", "mug"), ("new", "e", "vase")),
    ]
    found = clean(PARTS, pairs, merge=True)
    assert {i.label for items in found.parts.values() for i in items} == {"cup"}
    assert ids(found.parts) == {"train": "ab", "new": "df"}
    assert found.n_dropped == 2
    assert found.merged == {"mug": "cup", "vase": "cup"}


def test_nothing_to_clean_changes_nothing() -> None:
    assert clean(PARTS, [], merge=True).parts == PARTS


@pytest.mark.parametrize("option", ["--drop", "--merge"])
def test_the_command_writes_cleaned_tables(
    option: str, tmp_path: Path, training: Callable[..., tuple[int, str, str]]
) -> None:
    """Its tables hold no duplicate any more, and they are not written over."""
    for part, names in (("train", ("cup/1", "cup/2", "mug/1")), ("new", ("vase/1", "vase/2"))):
        for number, name in enumerate(names):
            path = tmp_path / part / f"{name}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(encoded(noise(32, seed=0 if number == 0 else 10 * number + len(part))))
    parts = (tmp_path / "train", tmp_path / "new")
    assert training("duplicates", *parts)[0] == 1
    code, out, err = training("duplicates", *parts, option, tmp_path / "clean", "--json")
    assert code == 0, err
    found = json.loads(out)
    assert found["n_dropped"] == (2 if option == "--drop" else 1)
    assert found["merged"] == ({} if option == "--drop" else {"vase": "cup"})
    tables = (tmp_path / "clean" / "train.csv", tmp_path / "clean" / "new.csv")
    assert training("duplicates", *tables)[0] == 0
    assert sum(len(read_manifest(str(table))) for table in tables) == 5 - found["n_dropped"]
    code, _, err = training("duplicates", *parts, option, tmp_path / "clean")
    assert (code, "exists already" in err) == (2, True)
    assert training("duplicates", *parts, "--drop", tmp_path / "x", "--merge", tmp_path / "y")[0] == 2
