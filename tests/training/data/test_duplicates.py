"""Duplicates: the same picture in two parts or under two labels is found, other pictures are not."""

from __future__ import annotations

import time
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from retrieval.contract.manifest import Item
from tests.photos import shot
from tests.pictures import encoded, plain, truncated_jpeg
from tests.training.data.conftest import ignore
from training.data import DuplicateReport, find_duplicates
from training.data.likeness import similar


def photo(number: int, size: int = 120) -> Image.Image:
    return shot(number, 0).resize((size, size), Image.Resampling.BICUBIC)


@pytest.fixture
def kept(tmp_path: Path) -> dict[str, list[Item]]:
    """Twenty pictures to train on, five others as new classes; tests add to them."""
    parts: dict[str, list[Item]] = {"train": [], "new": []}
    for number in range(25):
        keep(parts, tmp_path, "train" if number < 20 else "new", f"class {number}", encoded(photo(number)))
    return parts


def keep(parts: dict[str, list[Item]], folder: Path, part: str, label: str, data: bytes) -> str:
    name = f"{part}-{len(parts[part])}"
    (folder / name).write_bytes(data)
    parts[part].append(Item(id=name, uri=f"file://{folder}/{name}", label=label, attributes={}))
    return name


def found(parts: dict[str, list[Item]], tolerance: float = 3.0) -> DuplicateReport:
    return find_duplicates(parts, tolerance=tolerance, progress=ignore)


def test_different_pictures_are_no_duplicates(kept: dict[str, list[Item]]) -> None:
    report = found(kept)
    assert (report.n_images, report.harmful, report.n_harmless) == (25, (), 0)


def test_the_same_file_in_two_parts(kept: dict[str, list[Item]], tmp_path: Path) -> None:
    keep(kept, tmp_path, "new", "class 22", encoded(photo(3)))
    for tolerance in (0.0, 3.0):
        (pair,) = found(kept, tolerance).harmful
        assert (pair.kind, pair.parts, pair.ids) == ("exact", ("train", "new"), ("train-3", "new-5"))
        assert (pair.labels, pair.difference) == (("class 3", "class 22"), 0.0)


@pytest.mark.parametrize(
    "copy",
    [
        encoded(photo(3), "JPEG", quality=75),
        encoded(photo(3, 75), "WEBP", quality=80),
        encoded(photo(3, 300)),
        encoded(photo(3), compress_level=1),
    ],
    ids=["jpeg 75", "smaller webp", "larger", "same pixels"],
)
def test_the_same_picture_in_other_bytes(kept: dict[str, list[Item]], tmp_path: Path, copy: bytes) -> None:
    keep(kept, tmp_path, "new", "class 22", copy)
    (pair,) = found(kept).harmful
    assert (pair.kind, pair.ids) == ("near", ("train-3", "new-5"))
    assert found(kept, tolerance=0).harmful == ()


def test_two_labels_in_one_part_are_harmful_one_label_is_not(kept: dict[str, list[Item]], tmp_path: Path) -> None:
    keep(kept, tmp_path, "train", "class 3", encoded(photo(3)))
    assert (found(kept).harmful, found(kept).n_harmless) == ((), 1)
    keep(kept, tmp_path, "train", "class 4", encoded(photo(3)))
    assert [pair.labels for pair in found(kept).harmful] == [("class 3", "class 4")] * 2


def test_colour_tells_pictures_apart(kept: dict[str, list[Item]], tmp_path: Path) -> None:
    """The same shapes in other colours are other pictures."""
    mirrored = np.asarray(photo(3))[:, :, ::-1]
    keep(kept, tmp_path, "new", "class 22", encoded(Image.fromarray(mirrored)))
    assert found(kept).harmful == ()


def test_many_blank_pages_are_each_compared_once(kept: dict[str, list[Item]], tmp_path: Path) -> None:
    """With the first of them, whatever its size, not with one another."""
    for size in range(30):
        keep(kept, tmp_path, "new", f"blank {size % 2}", encoded(plain(size=(20 + size, 20))))
    report = found(kept)
    assert len(report.harmful) + report.n_harmless == 29


def test_unreadable_images_are_reported(kept: dict[str, list[Item]], tmp_path: Path) -> None:
    name = keep(kept, tmp_path, "new", "class 22", truncated_jpeg())
    report = found(kept)
    assert [failure.item.id for failure in report.unreadable] == [name]
    assert report.n_images == 25


def near_blank(number: int) -> Image.Image:
    noise = np.random.default_rng(number).normal(0, 3, (32, 32, 1)).repeat(3, axis=2)
    return Image.fromarray(np.clip(245 + noise, 0, 255).astype(np.uint8))


def test_near_blank_pages_are_a_group(kept: dict[str, list[Item]], tmp_path: Path) -> None:
    """Not listed pair by pair, and yet every page that has a harmful twin is named."""
    names = [keep(kept, tmp_path, "new", f"blank {page % 3}", encoded(near_blank(page))) for page in range(60)]
    report = found(kept)
    assert len(report.harmful) + report.n_harmless == 59
    assert {name for pair in report.harmful for name in pair.ids} == set(names)
    assert all(pair.labels[0] != pair.labels[1] for pair in report.harmful)


@pytest.mark.parametrize("kinds", [1, 4, 48])
def test_the_quick_search_misses_nothing(kinds: int) -> None:
    """Against all pairs, one by one: the same pictures are connected, by pairs of different kinds where there are."""
    rng = np.random.default_rng(0)
    thumbnails = rng.integers(0, 256, (12, 16, 16, 3)).repeat(4, axis=0) + rng.integers(-6, 7, (48, 16, 16, 3))
    thumbnails = thumbnails.clip(0, 255).astype(np.uint8)
    kind_of = np.arange(48) % kinds
    for tolerance in (1.0, 5.0, 5.3):
        expected = {}
        for one in range(48):
            for other in range(one + 1, 48):
                distance = np.sqrt(np.mean((thumbnails[one].astype(float) - thumbnails[other]) ** 2))
                if distance <= tolerance:
                    expected[one, other] = float(distance)
        pairs = {(one, other): difference for one, other, difference in similar(thumbnails, kind_of, tolerance)}
        assert pairs == {pair: pytest.approx(expected[pair], abs=1e-3) for pair in pairs}
        assert components(pairs) == components(expected)
        assert len(pairs) == sum(len(rows) - 1 for rows in components(expected))
        across = [pair for pair in expected if kind_of[pair[0]] != kind_of[pair[1]]]
        assert components([pair for pair in pairs if pair in across]) == components(across)
    assert len(expected) > 10


@pytest.mark.parametrize(("level", "noise"), [(245, 1.5), (200, 8)])
def test_thousands_of_pages_are_compared_quickly(level: int, noise: float) -> None:
    """Near-blank pages, which are all alike, and pages of text, which only look alike from afar."""
    rng = np.random.default_rng(0)
    pages = np.clip(level + rng.normal(0, noise, (3000, 16, 16, 1)).repeat(3, axis=3), 0, 255).astype(np.uint8)
    seen: list[tuple[int, int]] = []
    started = time.process_time()
    pairs = list(similar(pages, np.arange(3000) % 50, 3.0, lambda *done: seen.append(done)))
    assert time.process_time() - started < 10  # 1 and 1 s here; comparing pair by pair took 4 and 66 s
    assert len(pairs) == (2999 if noise < 3 else 0)
    assert seen == [(1024, 3000), (2048, 3000), (3000, 3000)]


def components(pairs: Iterable[tuple[int, int]]) -> set[frozenset[int]]:
    """The rows that pairs connect."""
    of: dict[int, frozenset[int]] = {}
    for pair in pairs:
        joined = frozenset().union(*(of.get(row, frozenset({row})) for row in pair))
        of |= dict.fromkeys(joined, joined)
    return set(of.values())
