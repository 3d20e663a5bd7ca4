"""Rounds of searches in a gallery whose items know their class, and the same pairs one by one for slow references."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from retrieval.consistency import LabelledVectors, SearchRound, divide, in_rounds
from tests.crowds import normalised

Rows = NDArray[np.float32]


def search_rounds(
    rows: Rows, labels: Sequence[str], n_rounds: int, rng: np.random.Generator, *, pull: float = 0.7
) -> list[SearchRound]:
    """Return rounds in which every item is pulled to the mean of its class in the gallery of the round."""
    names = np.array(labels)
    rounds = []
    for division in divide(labels, n_rounds, rng=rng):
        of_item = names[division.items]
        means = np.array([rows[division.items[of_item == name]].mean(axis=0, dtype=np.float64) for name in of_item])
        gallery = normalised((1 - pull) * rows[division.items] + pull * means)
        rounds.append(SearchRound(division, rows[division.queries], gallery))
    return rounds


def searched(
    rows: Rows,
    labels: Sequence[str],
    n_rounds: int = 3,
    *,
    seed: int = 0,
    families: Sequence[str] | None = None,
) -> tuple[LabelledVectors, Pairs]:
    """Return the labelled vectors of rounds and all their pairs."""
    rounds = search_rounds(rows, labels, n_rounds, np.random.default_rng(seed))
    return in_rounds(labels, rounds, families=families), Pairs.of(labels, rounds)


@dataclass(frozen=True, slots=True, eq=False)
class Pairs:
    """Every pair of a query and an item, [p] each: the score, the codes of the two classes, and the round."""

    scores: Rows
    query: NDArray[np.int64]
    item: NDArray[np.int64]
    round: NDArray[np.int64]

    @classmethod
    def of(cls, labels: Sequence[str], rounds: Sequence[SearchRound]) -> Pairs:
        """List the pairs of the rounds."""
        codes = np.unique(np.array(labels), return_inverse=True)[1]
        parts = [
            (
                (one.query @ one.gallery.T).ravel(),
                np.repeat(codes[one.division.queries], len(one.gallery)),
                np.tile(codes[one.division.items], len(one.query)),
                np.full(len(one.query) * len(one.gallery), number),
            )
            for number, one in enumerate(rounds)
        ]
        return cls(*(np.concatenate(column) for column in zip(*parts, strict=True)))

    def by_classes(self, counted: NDArray[np.bool_], n_classes: int) -> NDArray[np.int64]:
        """Return the counted pairs by the classes of query and item: [T, T] int64."""
        keys = self.query[counted] * n_classes + self.item[counted]
        return np.bincount(keys, minlength=n_classes**2).reshape(n_classes, n_classes)


def uneven(rows: Rows, labels: Sequence[str], sizes: Sequence[int]) -> tuple[Rows, list[str]]:
    """Return sizes[c] images of class c, of classes in order with as many images or more each."""
    names = sorted(set(labels))
    size_of = dict(zip(names, sizes, strict=True))
    kept, taken = [], dict.fromkeys(names, 0)
    for row, label in enumerate(labels):
        if taken[label] < size_of[label]:
            kept.append(row)
            taken[label] += 1
    return rows[kept], [labels[row] for row in kept]
