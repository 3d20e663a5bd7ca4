"""Galleries of labelled images and the queries that search them, of any size and with wrong labels.

`searches` makes vectors of them under a score; the labels that the score takes may be wrong, those that judge never.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from retrieval.consistency import Division, LabelledVectors, SearchRound, in_rounds
from retrieval.contract.score import Score

Vectors = NDArray[np.float32]
Rows = NDArray[np.int64]
# From the images of each class, by its name, to those in the gallery; the others are queries.
Sizes = Callable[[int, np.random.Generator], int]

MIN_QUERIES = 2  # with one query a class has no noise that could be measured


@dataclass(frozen=True, slots=True, eq=False)
class Searches:
    """Embeddings [n, d] and true labels of queries and items; of each round which is which, and the labels of items."""

    embeddings: Vectors
    labels: Sequence[str]
    rounds: tuple[tuple[Division, tuple[str, ...]], ...]

    def scored(self, score: Score) -> LabelledVectors:
        """Return the rounds under a score."""
        query = score.query_vectors(self.embeddings)
        made = [
            SearchRound(
                division, query[division.queries], score.gallery(self.embeddings[division.items], given).vectors
            )
            for division, given in self.rounds
        ]
        return in_rounds(self.labels, made)

    def far_items(self, score: Score) -> tuple[float, float]:
        """Return the shares of the items with a right label, and with a wrong one, that the score finds far."""
        found, wrong = [], []
        for division, given in self.rounds:
            found.append(score.gallery(self.embeddings[division.items], given).far)
            wrong.append([self.labels[row] != label for row, label in zip(division.items, given, strict=True)])
        far, is_wrong = np.concatenate(found), np.concatenate(wrong)
        return float(far[~is_wrong].mean()), float(far[is_wrong].mean()) if is_wrong.any() else 0.0


def half(n: int, rng: np.random.Generator) -> int:
    """Half of the images of a class, rounded up."""
    return n - n // 2


def exactly(size: int) -> Sizes:
    """Return `size` items of each class that leaves two queries; smaller classes are left out."""
    return lambda n, rng: size if n >= size + MIN_QUERIES else 0


def uneven(n: int, rng: np.random.Generator) -> int:
    """Any number from 1 to half of the images, all equally likely."""
    return int(rng.integers(1, half(n, rng) + 1))


def searches(
    embeddings: Vectors, labels: Sequence[str], sizes: Sizes, *, wrong: float = 0.0, n_rounds: int = 2, seed: int = 0
) -> Searches:
    """Draw galleries; every class has the same number of items in each round. wrong: the share of wrong labels."""
    rng = np.random.default_rng(seed)
    names, codes = np.unique(labels, return_inverse=True)
    members = [np.flatnonzero(codes == code) for code in range(len(names))]
    n_items = [sizes(len(rows), rng) for rows in members]
    kept = [(rows, n) for rows, n in zip(members, n_items, strict=True) if n and len(rows) - n >= MIN_QUERIES]
    rounds = []
    for _ in range(n_rounds):
        drawn = [(rng.permutation(rows), n) for rows, n in kept]
        items = np.sort(np.concatenate([rows[:n] for rows, n in drawn]))
        queries = np.sort(np.concatenate([rows[n:] for rows, n in drawn]))
        rounds.append((Division(queries, items), mislabelled([labels[row] for row in items], wrong, rng)))
    used = np.sort(np.concatenate([rows for rows, _ in kept]))
    place = np.full(len(codes), -1)
    place[used] = np.arange(len(used))
    moved = tuple((Division(place[d.queries], place[d.items]), given) for d, given in rounds)
    return Searches(embeddings[used], [str(labels[row]) for row in used], moved)


def grown(embeddings: Vectors, labels: Sequence[str], largest: int, *, wrong: float = 0.0, seed: int = 0) -> Searches:
    """Draw one gallery with 1 to `largest` items a class, log-uniform; half of the real images are the queries.

    Beyond the real items, items are made: the mean of the class's real items plus the difference of some image of
    another class to the mean of its class, scaled to the spread of the class.
    """
    rng = np.random.default_rng(seed)
    base = searches(embeddings, labels, half, n_rounds=1, seed=seed)
    ((division, _),) = base.rounds
    rows, of_row = base.embeddings[division.items].astype(np.float64), np.array(base.labels)[division.items]
    names, codes = np.unique(of_row, return_inverse=True)
    counts = np.bincount(codes)
    means = np.stack([np.bincount(codes, column) for column in rows.T], axis=1) / counts[:, None]
    apart = rows - means[codes]
    spread = np.sqrt(np.bincount(codes, (apart**2).sum(axis=1)) / np.maximum(counts - 1, 1))
    usual = float(np.median(spread))
    spread = np.where(counts > 1, np.maximum(spread, 0.2 * usual), usual)
    unit_parts = apart / np.maximum(np.linalg.norm(apart, axis=1, keepdims=True), 1e-9)
    parts, made_labels = [], []
    for code, name in enumerate(names):
        size = int(np.exp(rng.uniform(0, np.log(largest + 1))))
        own = rng.permutation(np.flatnonzero(codes == code))[:size]
        others = rng.choice(np.flatnonzero(codes != code), size=size - len(own))
        made = np.concatenate([rows[own], means[code] + spread[code] * unit_parts[others]])
        parts.append(made / np.linalg.norm(made, axis=1, keepdims=True))
        made_labels += [str(name)] * size
    queries = base.embeddings[division.queries]
    items = np.concatenate(parts).astype(np.float32)
    every = [*(base.labels[row] for row in division.queries), *made_labels]
    places = Division(np.arange(len(queries)), np.arange(len(queries), len(every)))
    return Searches(np.concatenate([queries, items]), every, ((places, mislabelled(made_labels, wrong, rng)),))


def mislabelled(labels: Sequence[str], share: float, rng: np.random.Generator) -> tuple[str, ...]:
    """Return the labels with a share of them replaced by the label of another item."""
    replaced = np.array(labels, dtype=object)
    chosen = rng.random(len(labels)) < share
    replaced[chosen] = rng.permutation(np.array(labels, dtype=object))[chosen]
    return tuple(replaced.tolist())
