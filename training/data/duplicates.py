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
import scipy.fft
from numpy.typing import NDArray
from PIL import Image
from scipy.spatial import cKDTree

from retrieval.contract.manifest import Item
from retrieval.contract.preprocessing import decoded
from retrieval.errors import RetrievalError
from training.data.decoding import Progress, Unreadable, fetch

# Measured on photographs: nine of ten copies that are compressed to JPEG 75, scaled by a half or by two, or both with
# WEBP, differ by less. Of 31 million pairs of emoji with different labels, 7 differ by less; people also confuse these.
DEFAULT_TOLERANCE = 3.0

_BATCH = 16  # pictures whose neighbours are held at a time
_SIDE = 16  # of the thumbnails that are compared
_COARSE = 3  # lowest frequencies per side that a first, quick search compares
_STRETCH = 256


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
    parts: Mapping[str, Sequence[Item]], *, tolerance: float = DEFAULT_TOLERANCE, progress: Progress
) -> DuplicateReport:
    """Compare the images of all parts with each other.

    tolerance: largest difference of near duplicates; 0 finds equal files only. Every image is fetched and decoded once;
    the comparison takes 3 kB of memory per image. Pictures that are alike, such as blank pages, make a group: n of them
    give n - 1 pairs, and each picture that is in a harmful pair is in one of those.
    """
    pictures: list[_Picture] = []
    unreadable: list[Unreadable] = []
    everything = [(part, item) for part, items in parts.items() for item in items]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for start in range(0, len(everything), _STRETCH):
            for result in pool.map(_look_at, everything[start : start + _STRETCH]):
                (unreadable if isinstance(result, Unreadable) else pictures).append(result)  # type: ignore[arg-type]
            progress(min(start + _STRETCH, len(everything)), len(everything))
    pairs = [*_exact(pictures), *(_near(pictures, tolerance) if tolerance > 0 else ())]
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
        data = fetch(item.uri)
        with decoded(data) as image:
            thumbnail = image.resize((_SIDE, _SIDE), Image.Resampling.BICUBIC)
    except RetrievalError as error:
        return Unreadable(item, str(error))
    return _Picture(part, item, hashlib.sha256(data).digest(), np.asarray(thumbnail))


def _exact(pictures: Sequence[_Picture]) -> Iterator[Duplicate]:
    for same in _groups([picture.digest for picture in pictures]):
        for other in same[1:]:
            yield _pair("exact", pictures[same[0]], pictures[other], 0.0)


def _near(pictures: Sequence[_Picture], tolerance: float) -> Iterator[Duplicate]:
    """Find pairs of unequal files; one of several equal thumbnails is compared with the others, to save time."""
    thumbnails = [picture.thumbnail.tobytes() for picture in pictures]
    groups = _groups(thumbnails, least=1)
    for same in groups:
        first = pictures[same[0]]
        for other in same[1:]:
            if pictures[other].digest != first.digest:
                yield _pair("near", first, pictures[other], 0.0)
    firsts = [pictures[same[0]] for same in groups]
    if len(firsts) > 1:
        kinds = _groups([f"{picture.part}\0{picture.item.label}".encode() for picture in firsts], least=1)
        kind_of = np.empty(len(firsts), dtype=np.int64)
        for number, rows in enumerate(kinds):
            kind_of[rows] = number
        for one, other, difference in _similar(np.stack([p.thumbnail for p in firsts]), kind_of, tolerance):
            yield _pair("near", firsts[one], firsts[other], difference)


def _similar(
    thumbnails: NDArray[np.uint8], kinds: NDArray[np.int64], tolerance: float
) -> Iterator[tuple[int, int, float]]:
    """Find pairs of rows of [n, 16, 16, 3] with a root mean square difference of at most `tolerance`.

    Of n rows that are connected by such pairs, n - 1 pairs connect all, as many as possible of two different `kinds`:
    there would be n * (n - 1) / 2. The lowest frequencies of an orthonormal transform differ by at most the whole
    difference, so that a search among them misses no pair.
    """
    values = thumbnails.reshape(len(thumbnails), -1).astype(np.float32)
    frequencies = scipy.fft.dctn(thumbnails.astype(np.float32), axes=(1, 2), norm="ortho")[:, :_COARSE, :_COARSE]
    coarse = frequencies.reshape(len(values), -1)
    tree = cKDTree(coarse)
    scale = float(np.sqrt(values.shape[1]))
    group = np.arange(len(values))
    members = {row: [row] for row in range(len(values))}
    for across_kinds in (True, False):
        for start in range(0, len(values), _BATCH):
            batch = coarse[start : start + _BATCH]
            nearby = tree.query_ball_point(batch, tolerance * scale * (1 + 1e-5), return_sorted=False)
            for row, found in enumerate(nearby, start):
                others = np.asarray(found)
                others = others[group[others] != group[row]]  # connected already: no need to look
                if across_kinds:
                    others = others[kinds[others] != kinds[row]]
                others = np.sort(others)
                differences = np.linalg.norm(values[others] - values[row], axis=1) / scale
                for place in np.argsort(differences, kind="stable"):
                    other = int(others[place])
                    if differences[place] > tolerance:
                        break
                    if group[other] != group[row]:
                        _join(group, members, row, other)
                        yield min(row, other), max(row, other), float(differences[place])


def _join(group: NDArray[np.int64], members: dict[int, list[int]], one: int, other: int) -> None:
    """Make one group of two; the smaller one takes the number of the larger."""
    small, large = sorted((int(group[one]), int(group[other])), key=lambda number: len(members[number]))
    moved = members.pop(small)
    group[moved] = large
    members[large] += moved


def _groups(keys: Sequence[bytes], *, least: int = 2) -> list[list[int]]:
    rows = defaultdict(list)
    for row, key in enumerate(keys):
        rows[key].append(row)
    return [same for same in rows.values() if len(same) >= least]


def _pair(kind: Literal["exact", "near"], one: _Picture, other: _Picture, difference: float) -> Duplicate:
    return Duplicate(
        kind=kind,
        parts=(one.part, other.part),
        ids=(one.item.id, other.item.id),
        labels=(one.item.label, other.item.label),
        difference=difference,
    )
