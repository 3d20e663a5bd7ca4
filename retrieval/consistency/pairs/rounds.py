"""Rounds of searches: images are split into queries and a gallery several times, as a labelled catalogue is used.

A score that depends on the other items of a class, as that of a catalogue with class means does, has no single value
for two images: it depends on the gallery. So each round has vectors of its own, and a query meets only the gallery of
its round. All classes are drawn alike; what is known of them is counted over the rounds together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from retrieval.consistency.arguments import checked
from retrieval.consistency.pairs.vectors import (
    LabelledVectors,
    Vectors,
    check_array,
    class_names,
    crossed,
    family_codes,
    sorted_codes,
)
from retrieval.errors import InvalidEmbeddings, InvalidInput

Rows = NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class Division:
    """Which images are queries and which are gallery items: rows, ascending."""

    queries: Rows
    items: Rows


@dataclass(frozen=True, slots=True, eq=False)
class SearchRound:
    """The vectors of one round: query [n, D] of the queries of the division, gallery [g, D] of its items; float32."""

    division: Division
    query: Vectors
    gallery: Vectors


@checked
def divide(labels: Sequence[str], n_rounds: int, *, rng: np.random.Generator) -> list[Division]:
    """Split the images of each class at random into queries and gallery items, n_rounds times.

    labels: n strings. Of an odd number of images, one more is an item; the only image of a class is an item.

    Raises:
        InvalidInput: n_rounds below 1.

    >>> (division,) = divide(["a", "b", "a", "a"], 1, rng=np.random.default_rng(0))
    >>> len(division.queries), len(division.items), 1 in division.items
    (1, 3, True)
    """
    if n_rounds < 1:
        raise InvalidInput(f"n_rounds: expected at least 1, found {n_rounds}")
    _, codes = np.unique(np.array(labels, dtype=object), return_inverse=True)
    sizes = np.bincount(codes) if len(codes) else np.zeros(0, dtype=np.int64)
    starts = np.cumsum(sizes) - sizes
    made = []
    for _ in range(n_rounds):
        drawn = np.lexsort((rng.random(len(codes)), codes))
        place = np.arange(len(codes)) - starts[codes[drawn]]
        is_query = place < (sizes // 2)[codes[drawn]]
        made.append(Division(np.sort(drawn[is_query]), np.sort(drawn[~is_query])))
    return made


@checked
def in_rounds(
    labels: Sequence[str], rounds: Sequence[SearchRound], *, families: Sequence[str] | None = None
) -> LabelledVectors:
    """Return the vectors of several rounds; every query makes a pair with every gallery vector of its round.

    labels: n strings, of all images; families: see `labelled`. In every round each class must have the same numbers of
    queries and of items, and each image is one of the two, as `divide` gives them.

    Raises:
        InvalidEmbeddings: vectors of another shape or dtype, or not finite, or labels or families of another length.
        InvalidInput: no round, one in which an image is missing or is both query and item, or rounds with other numbers
            of a class.
        NotEnoughEvidence: fewer than two classes.
    """
    if not rounds:
        raise InvalidInput("expected at least one round, found none")
    for number, one in enumerate(rounds):
        placed = np.sort(np.concatenate([one.division.queries, one.division.items]))
        if not np.array_equal(placed, np.arange(len(labels))):
            raise InvalidInput(
                f"round {number}: expected each of the {len(labels)} images once, as a query or as an item; see divide"
            )
    classes = class_names(labels)
    codes, order = sorted_codes(labels, classes, len(labels))
    code_of_row = np.empty_like(codes)
    code_of_row[order] = codes
    sides = [_sorted_side(code_of_row, [(r.division.queries, r.query) for r in rounds], "query", len(classes))]
    sides.append(_sorted_side(code_of_row, [(r.division.items, r.gallery) for r in rounds], "gallery", len(classes)))
    (query, query_rows, query_parts), (gallery, gallery_rows, gallery_parts) = sides
    if query.shape[1] != gallery.shape[1]:
        raise InvalidEmbeddings(f"expected a gallery of {query.shape[1]} columns, found {gallery.shape[1]}")
    return LabelledVectors(
        query=query,
        gallery=gallery,
        codes=code_of_row[query_rows],
        gallery_codes=code_of_row[gallery_rows],
        classes=classes,
        order=query_rows,
        gallery_order=gallery_rows,
        groups=np.empty((len(query), 0), dtype=np.int32),
        gallery_groups=np.empty((len(gallery), 0), dtype=np.int32),
        cosine=False,
        families=None if families is None else family_codes(families, labels, classes),
        rounds=tuple(zip(query_parts, gallery_parts, strict=True)),
    )


@checked
def strangers(
    query: Vectors, gallery: Vectors, labels: Sequence[str], *, families: Sequence[str] | None = None
) -> LabelledVectors:
    """Return every image as a query whose class is absent from the gallery of all images.

    query, gallery: [n, D] float32, of the same images; labels: n strings, none empty; families: see `labelled`. A pair
    of two images of one class does not count, so what the class of a query adds to the gallery does not matter. Raises
    as `crossed`.
    """
    found = crossed(query, labels, gallery, labels, cosine=False, exclude=(labels,), gallery_exclude=(labels,))
    return found if families is None else replace(found, families=family_codes(families, labels, found.classes))


def _sorted_side(
    code_of_row: Rows, parts: Sequence[tuple[Rows, Vectors]], name: str, n_classes: int
) -> tuple[Vectors, Rows, list[slice]]:
    """Return the vectors of one side of all rounds, sorted by class in each; their rows; and where each round lies."""
    vectors, rows, places, start = [], [], [], 0
    for number, (of_round, values) in enumerate(parts):
        check_array(f"{name} vectors of round {number}", values)
        if len(values) != len(of_round):
            raise InvalidEmbeddings(
                f"round {number}: expected {len(of_round)} {name} vectors, as the division has, found {len(values)}"
            )
        order = np.argsort(code_of_row[of_round], kind="stable")
        vectors.append(values[order])
        rows.append(of_round[order].astype(np.int64))
        places.append(slice(start, start + len(of_round)))
        start += len(of_round)
    counts = [np.bincount(code_of_row[of_round], minlength=n_classes) for of_round, _ in parts]
    if any(not np.array_equal(count, counts[0]) for count in counts):
        raise InvalidInput(f"expected as many {name} images of each class in every round; see divide")
    return np.concatenate(vectors), np.concatenate(rows), places
