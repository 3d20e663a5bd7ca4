"""Parts of a split without duplicates."""

import json
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from retrieval.contract.manifest import Item, read_manifest
from tests.pictures import encoded, noise
from tests.training.data.conftest import ignore
from training.data import Duplicate, clean, find_duplicates


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


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Return a chain of pictures whose neighbours are nearly equal: each in three files, two of them equal."""
    folder = tmp_path_factory.mktemp("chain")
    grey = np.random.default_rng(0).integers(60, 180, (16, 16, 3))
    uris = []
    for step in range(4):
        image = Image.fromarray((grey + 2 * step).astype(np.uint8))
        for copy, level in enumerate((1, 9, 9)):
            path = folder / f"{step}-{copy}.png"
            path.write_bytes(encoded(image, compress_level=level))
            uris.append(path.as_uri())
    return uris


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.integers(0, 11), st.sampled_from("ab"), st.sampled_from("xyz")), max_size=14))
@pytest.mark.parametrize("merge", [False, True])
def test_a_second_run_finds_nothing(pictures: list[str], merge: bool, drawn: list[tuple[int, str, str]]) -> None:
    """Whatever copies, near copies and labels there are: each harmful picture is named, and none is left."""
    parts: dict[str, list[Item]] = {"a": [], "b": []}
    for number, (picture, part, label) in enumerate(drawn):
        parts[part].append(Item(id=str(number), uri=pictures[picture], label=label, attributes={}))
    report = find_duplicates(parts, tolerance=3.0, progress=ignore)
    harmful = {
        str(number)
        for number, (one, part, label) in enumerate(drawn)
        for other, *kind in drawn
        if kind != [part, label] and abs(one // 3 - other // 3) <= 1
    }
    assert {name for pair in report.harmful for name in pair.ids} == harmful
    cleaned = clean(parts, report.harmful, merge=merge)
    assert find_duplicates(cleaned.parts, tolerance=3.0, progress=ignore).harmful == ()
    assert cleaned.n_dropped <= len(harmful)


def test_a_long_chain_is_cleaned_quickly() -> None:
    """Not in a time that grows with the square of its pictures."""
    n = 20_000
    parts = {"a": [item(str(number), "cup") for number in range(n)], "b": [item("b", "mug")]}
    started = time.process_time()
    found = clean(parts, [pair(("a", str(i), "cup"), ("b", "b", "mug")) for i in range(n)], merge=True)
    assert (found.n_dropped, ids(found.parts)) == (n, {"a": "0", "b": ""})
    assert time.process_time() - started < 5
