"""Find the threshold that reaches a target, exact to the last bit of a float32 score.

Pairs are counted on a grid of thresholds, which is refined only where something better is possible.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from retrieval.consistency.curves import OperatingCurves, Rates, count_accepted
from retrieval.consistency.pairs.batches import scored_pairs
from retrieval.consistency.pairs.vectors import LabelledVectors
from retrieval.consistency.thresholds.targets import Choice, Target
from retrieval.errors import NotEnoughEvidence

Achieved: TypeAlias = Callable[[OperatingCurves], Rates]
Keys: TypeAlias = NDArray[np.int64]

_CELLS = 1 << 22  # counts of one pass: 32 MB an array for any number of classes
_SIGN = 0x80000000


@dataclass(frozen=True, slots=True)
class Wanted:
    """The aim of a search: `achieved` must be at least `level` (lowest, highest), or largest (best)."""

    achieved: Achieved  # must not fall as accepted positives grow, nor grow as accepted negatives do
    choice: Choice
    level: float


def reach(vectors: LabelledVectors, target: Target) -> float:
    """Return the threshold that a target asks for, see `Target`.

    Cost: three to five passes over the pairs, up to some tens for the largest F-beta or utility of thousands of
    classes; memory: some 4 million counts.

    Raises:
        NotEnoughEvidence: no threshold reaches the target.
    """
    threshold = find_threshold(vectors, Wanted(target.achieved, target.choice, target.level))
    if threshold is None:
        raise NotEnoughEvidence(
            f"no threshold reaches {target.describe()} on {vectors.n_positives} positive and {vectors.n_negatives} "
            "negative pairs; lower the target, or train a model that separates these classes better"
        )
    return threshold


def find_threshold(vectors: LabelledVectors, wanted: Wanted) -> float | None:
    """Return the lowest, highest or best float32 threshold; None if none reaches the level.

    Of a range of thresholds that accept the same pairs, `lowest` gives the first, `highest` and `best` the last, which
    is the score of a pair.
    """
    n_thresholds = int(np.clip(_CELLS // len(vectors.classes), 64, 4096))
    keys, found = _first_grid(vectors, min(n_thresholds, 1024)), _Found()
    while len(keys):
        curves = count_accepted(vectors, _floats(keys))
        found = _better(found, keys, wanted.achieved(curves), wanted)
        keys = _finer(keys, _promising(found, keys, _bound(curves, wanted), wanted), n_thresholds)
    if found.key is None:
        return None
    threshold = _floats(np.array([found.key]))[0]
    return _score_at_or_above(vectors, threshold) if wanted.choice == "best" else float(threshold)


@dataclass(frozen=True, slots=True)
class _Found:
    """The best key so far and, for `best`, what it achieves."""

    key: int | None = None
    value: float = -np.inf


def _better(found: _Found, keys: Keys, achieved: Rates, wanted: Wanted) -> _Found:
    """Return the best of the grid and of the earlier grids; later grids lie between earlier neighbours."""
    if wanted.choice == "best":
        best = len(achieved) - 1 - int(np.argmax(achieved[::-1]))
        return _Found(int(keys[best]), float(achieved[best])) if achieved[best] > found.value else found
    reached = keys[achieved >= wanted.level]
    if len(reached) == 0:
        return found
    candidates = [int(reached[0 if wanted.choice == "lowest" else -1])] + ([] if found.key is None else [found.key])
    return _Found(min(candidates) if wanted.choice == "lowest" else max(candidates))


def _promising(found: _Found, keys: Keys, bound: Rates, wanted: Wanted) -> NDArray[np.bool_]:
    """Return which gaps of the grid may contain something better: [m - 1] bool."""
    if wanted.choice == "best":
        return np.asarray(bound > found.value)
    possible = np.asarray(bound >= wanted.level)
    if found.key is None:
        return possible
    return possible & (keys[:-1] < found.key if wanted.choice == "lowest" else keys[1:] > found.key)


def _bound(curves: OperatingCurves, wanted: Wanted) -> Rates:
    """Return the most that thresholds between neighbours of the grid could achieve: [m - 1] float64."""
    between = replace(
        curves,
        thresholds=curves.thresholds[:-1],
        positives_accepted=curves.positives_accepted[:, :-1],
        negatives_accepted=curves.negatives_accepted[:, 1:],
    )
    return wanted.achieved(between)


def _first_grid(vectors: LabelledVectors, n_thresholds: int) -> Keys:
    """Return keys from a threshold that every pair reaches to one that no pair reaches."""
    longest = np.linalg.norm(vectors.query, axis=1).max() * np.linalg.norm(vectors.gallery, axis=1).max()
    limit = 1.0001 * float(longest) + 1e-30
    return np.unique(_keys(np.linspace(-limit, limit, n_thresholds).astype(np.float32)))


def _finer(keys: Keys, promising: NDArray[np.bool_], n_thresholds: int) -> Keys:
    """Return a grid inside the promising gaps, with their ends; empty if no gap has a float32 inside."""
    promising &= np.diff(keys) > 1
    gaps = np.flatnonzero(promising)
    if len(gaps) == 0:
        return keys[:0]
    n_each = max(n_thresholds // len(gaps), 2) + 1
    shares = np.arange(n_each) / (n_each - 1)
    low, high = keys[gaps, None], keys[gaps + 1, None]
    inside = low + np.round((high - low) * shares).astype(np.int64)
    return np.unique(np.concatenate([inside.ravel(), (low + 1).ravel()]))


def _score_at_or_above(vectors: LabelledVectors, threshold: float) -> float:
    """Return the lowest score of a pair at or above the threshold, or the threshold if there is none."""
    lowest = [
        float(batch.scores.min())
        for batch in scored_pairs(vectors, lowest=np.float32(threshold))
        if len(batch.scores)
    ]  # fmt: skip
    return min(lowest, default=float(threshold))


def _keys(values: NDArray[np.float32]) -> Keys:
    """Map float32 values to integers of the same order; both zeros to one."""
    bits = values.view(np.uint32).astype(np.int64)
    return np.where(bits & _SIGN, -(bits ^ _SIGN), bits)


def _floats(keys: Keys) -> NDArray[np.float64]:
    """Undo `_keys`."""
    bits = np.abs(keys) | np.where(keys < 0, _SIGN, 0)
    return bits.astype(np.uint32).view(np.float32).astype(np.float64)
