"""Finds pictures that occur twice: in two parts of a split, which biases measurements, or under two labels.

Decides which pictures are the same, byte for byte or nearly. Cropped, rotated and mirrored copies are not found.
"""

import hashlib
import os
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from retrieval.contract.files import read_image
from retrieval.contract.limits import DEFAULT_LIMITS
from retrieval.contract.manifest import Item
from retrieval.contract.preprocessing import decoded
from retrieval.errors import RetrievalError
from training.data.decoding import Progress, Unreadable
from training.data.likeness import Groups, similar

# Measured on photographs: nine of ten copies that are compressed to JPEG 75, scaled by a half or by two, or both with
# WEBP, differ by less. Of 31 million pairs of emoji with different labels, 7 differ by less; people also confuse these.
DEFAULT_TOLERANCE = 3.0

_SIDE = 16  # of the thumbnails that are compared
_STRETCH = 256


def _unseen(done: int, total: int) -> None:
    """Report no progress."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Duplicate:
    """Two items that show the same picture.

    parts, ids, labels: of the first and of the second item. difference: root mean square over the pixels of two
    thumbnails, in grey levels; 0 for equal files. kind: "exact" for equal bytes, "near" otherwise.
    """

    kind: Literal["exact", "near"]
    parts: tuple[str, str]
    ids: tuple[str, str]
    labels: tuple[str, str]
    difference: float


@dataclass(frozen=True, slots=True, kw_only=True)
class DuplicateReport:
    """The duplicates. harmful: pairs in two parts or under two labels, most similar first; n_harmless: the others."""

    n_images: int
    harmful: tuple[Duplicate, ...]
    n_harmless: int
    unreadable: tuple[Unreadable, ...]


@dataclass(frozen=True, slots=True)
class _Picture:
    part: str
    item: Item
    digest: bytes
    thumbnail: NDArray[np.uint8]


def find_duplicates(
    parts: Mapping[str, Sequence[Item]],
    *,
    tolerance: float = DEFAULT_TOLERANCE,
    progress: Progress,
    comparing: Progress = _unseen,
) -> DuplicateReport:
    """Compare the images of all parts with each other.

    tolerance: largest difference of near duplicates; 0 finds equal files only. progress, comparing: get the number of
    images that are read, and of different ones that are compared, with their totals. Every image is fetched and decoded
    once; the comparison takes 8 kB of memory per image. Pictures that are alike, such as blank pages, make a group: n
    of them give n - 1 pairs. Each picture that is in a harmful pair is in one of those, and the harmful pairs connect
    all pictures that harmful pairs connect, so that no harmful pair is left if one picture stays of those connected.
    """
    pictures: list[_Picture] = []
    unreadable: list[Unreadable] = []
    everything = [(part, item) for part, items in parts.items() for item in items]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for start in range(0, len(everything), _STRETCH):
            for result in pool.map(_look_at, everything[start : start + _STRETCH]):
                (unreadable if isinstance(result, Unreadable) else pictures).append(result)  # type: ignore[arg-type]
            progress(min(start + _STRETCH, len(everything)), len(everything))
    found = _pairs(pictures, tolerance, comparing)
    pairs = [_pair(pictures[one], pictures[other], difference) for one, other, difference in found]
    harmful = [pair for pair in pairs if pair.parts[0] != pair.parts[1] or pair.labels[0] != pair.labels[1]]
    return DuplicateReport(
        n_images=len(pictures),
        harmful=tuple(sorted(harmful, key=lambda pair: (pair.difference, pair.parts, pair.ids))),
        n_harmless=len(pairs) - len(harmful),
        unreadable=tuple(unreadable),
    )


def _look_at(named: tuple[str, Item]) -> _Picture | Unreadable:
    part, item = named
    try:
        data = read_image(item.uri, DEFAULT_LIMITS.image_bytes)
        with decoded(data) as image:
            thumbnail = image.resize((_SIDE, _SIDE), Image.Resampling.BICUBIC)
    except RetrievalError as error:
        return Unreadable(item, str(error))
    return _Picture(part, item, hashlib.sha256(data).digest(), np.asarray(thumbnail))


def _pairs(pictures: Sequence[_Picture], tolerance: float, comparing: Progress) -> Iterator[tuple[int, int, float]]:
    """Find the pairs that connect all pictures that are alike: the harmful ones first, equal files before near ones.

    Pictures of one kind, a part and a label, with equal thumbnails are twins: one of them is compared with others.
    """
    kinds = np.array(_numbers([f"{p.part}\0{p.item.label}".encode() for p in pictures]), dtype=np.int64)
    equal = [_groups([p.digest for p in pictures])]
    if tolerance > 0:
        equal.append(_groups([p.thumbnail.tobytes() for p in pictures]))
    groups = Groups(len(pictures))
    for same in (same for found in equal for same in found):
        yield from _across(same, kinds, groups)
    if tolerance > 0:
        yield from _near(pictures, kinds, groups, tolerance, comparing)
    for same in (same for found in equal for same in found):
        yield from ((same[0], other, 0.0) for other in same[1:] if groups.join(same[0], other))


def _across(same: Sequence[int], kinds: NDArray[np.int64], groups: Groups) -> Iterator[tuple[int, int, float]]:
    """Connect equal pictures by pairs of two kinds, if there are two."""
    first = same[0]
    stranger = next((row for row in same if kinds[row] != kinds[first]), first)
    for row in same[1:]:
        other = stranger if kinds[row] == kinds[first] else first
        if kinds[row] != kinds[other] and groups.join(row, other):
            yield min(row, other), max(row, other), 0.0


def _near(
    pictures: Sequence[_Picture],
    kinds: NDArray[np.int64],
    groups: Groups,
    tolerance: float,
    comparing: Progress,
) -> Iterator[tuple[int, int, float]]:
    """Connect pictures that are nearly equal; the twins of one that has a pair of two kinds have it too."""
    twins = _groups([b"%d " % kind + p.thumbnail.tobytes() for kind, p in zip(kinds, pictures, strict=True)], least=1)
    firsts = np.array([rows[0] for rows in twins], dtype=np.int64)
    if len(firsts) < 2:
        return
    thumbnails = np.stack([pictures[row].thumbnail for row in firsts])
    for one, other, difference in similar(thumbnails, kinds[firsts], tolerance, comparing):
        ends = int(firsts[one]), int(firsts[other])
        if groups.join(*ends):
            yield *ends, difference
        if kinds[ends[0]] != kinds[ends[1]]:
            for first, rows in ((ends[0], twins[other]), (ends[1], twins[one])):
                yield from ((first, row, difference) for row in rows[1:] if groups.join(first, row))


def _groups(keys: Sequence[bytes], *, least: int = 2) -> list[list[int]]:
    rows = defaultdict(list)
    for row, key in enumerate(keys):
        rows[key].append(row)
    return [same for same in rows.values() if len(same) >= least]


def _numbers(keys: Sequence[bytes]) -> list[int]:
    """Return the number of each key; equal keys have one number."""
    numbers: dict[bytes, int] = {}
    return [numbers.setdefault(key, len(numbers)) for key in keys]


def _pair(one: _Picture, other: _Picture, difference: float) -> Duplicate:
    return Duplicate(
        kind="exact" if one.digest == other.digest else "near",
        parts=(one.part, other.part),
        ids=(one.item.id, other.item.id),
        labels=(one.item.label, other.item.label),
        difference=difference,
    )
