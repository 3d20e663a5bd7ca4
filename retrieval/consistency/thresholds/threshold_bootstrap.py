"""A second interval of a threshold, by drawing classes again and again. The first one is that of `thresholds`.

Nothing is assumed about the scores, but the part of the variance that belongs to single pairs of classes enters about
three times, because a replicate repeats classes and with them their pairs.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from retrieval.consistency.curves.curves import Rates
from retrieval.consistency.intervals import Interval, class_weights, percentile_interval
from retrieval.consistency.opis.utility import utility
from retrieval.consistency.pairs.pairs import LabelledVectors, Vectors, float32_at_least, labelled_vectors, scored_pairs
from retrieval.consistency.pairs.tally import PairTally
from retrieval.consistency.thresholds.targets import Target
from retrieval.consistency.thresholds.thresholds import ThresholdChoice
from retrieval.errors import InvalidInput

_N_GRID = 96


def bootstrap_threshold_interval(
    choice: ThresholdChoice,
    query_vectors: Vectors,
    labels: Sequence[str],
    *,
    gallery_vectors: Vectors | None = None,
    rng: np.random.Generator,
    n_bootstrap: int = 1000,
    tile: int = 1024,
) -> Interval:
    """Return the percentile interval of the threshold over replicates of the classes, at the choice's confidence.

    Vectors and labels are those that `choose_threshold` chose from. A replicate draws as many classes with repetition;
    two draws of one class make no pairs with each other. Each replicate's threshold is read off 96 thresholds around
    `choice.threshold_interval`, linearly between neighbours, and cut at their ends.

    For FAR, class-mean FAR and precision it covers more than it states where single pairs of classes matter (about 0.96
    where 0.9 is stated, from 60 classes), while the interval in `choice` covers slightly less than stated; for FRR,
    which has no such pairs, both cover about what they state (`tests/bench/promises_kept.py`). For F-beta and utility
    it promises nothing (there 0.82 for utility): the bootstrap of the place of a maximum is not consistent, use the
    interval in `choice`.

    Cost: one pass and n_bootstrap times the class pairs with false accepts; memory: those pairs, with the thresholds
    between which they lie.

    Raises:
        InvalidInput: no replicate is asked for.
        InvalidEmbeddings, NotEnoughEvidence: see `labelled_vectors`.

    Source: Owen, "The pigeonhole bootstrap", Annals of Applied Statistics 1 (2007), for what repeating both ends of a
    pair does to the variance.
    """
    if n_bootstrap < 1:
        raise InvalidInput(f"expected at least 1 replicate, found {n_bootstrap}")
    vectors = labelled_vectors(query_vectors, labels, gallery_vectors)
    low, high = choice.threshold_interval.low, choice.threshold_interval.high
    margin = 1.5 * max(high - low, 1e-6)
    grid = np.linspace(low - margin, high + margin, _N_GRID)
    weights = class_weights(len(vectors.classes), n_bootstrap, rng)
    replicates = _thresholds(choice.target, grid, _achieved(vectors, choice.target, grid, weights, tile))
    return percentile_interval(replicates, choice.confidence)


def _achieved(vectors: LabelledVectors, target: Target, grid: Rates, weights: Rates, tile: int) -> Rates:
    """Return what each replicate achieves at each threshold: [n_bootstrap, m]."""
    first, second, columns, counts = _pairs_by_class(vectors, grid, tile)
    n_images, n_classes = vectors.n_images.astype(np.float64), len(vectors.classes)
    positives = n_images * (n_images - 1) / 2
    negatives = n_images * ((weights @ n_images)[:, None] - weights * n_images)
    accepted, matches = np.zeros_like(weights), np.zeros(n_classes)
    achieved = np.empty((len(weights), len(grid)))
    for column in range(len(grid) - 1, -1, -1):
        rows = slice(*np.searchsorted(columns, [column, column + 1]))
        i, j, count = first[rows], second[rows], counts[rows]
        same = i == j
        matches += np.bincount(i[same], count[same], minlength=n_classes)
        ends = (np.append(i[~same], j[~same]), np.append(j[~same], i[~same]))
        accepted += weights @ csr_array((np.append(count[~same], count[~same]), ends), shape=(n_classes, n_classes))
        achieved[:, column] = _of_weighted(target, weights, accepted, negatives, matches, positives)
    return achieved


def _pairs_by_class(
    vectors: LabelledVectors, grid: Rates, tile: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64], Rates]:
    """Return class, class, column and count of the pairs above the lowest threshold, ascending by column: four [p]."""
    limits, n_classes = float32_at_least(grid), len(vectors.classes)
    tally = PairTally()
    for batch in scored_pairs(vectors, lowest=limits[0], tile=tile):
        columns = np.searchsorted(limits, batch.scores, side="right") - 1
        tally.add((columns * n_classes + batch.first) * n_classes + batch.second)
    keys, counts = tally.counts()
    ends = keys % n_classes**2
    return ends // n_classes, ends % n_classes, keys // n_classes**2, counts.astype(np.float64)


def _of_weighted(
    target: Target, weights: Rates, accepted: Rates, negatives: Rates, matches: Rates, positives: Rates
) -> Rates:
    """Return what is achieved by classes with weights: [n_bootstrap]; accepted, negatives: weighted by the opponent."""
    if target.kind in {"class-far", "utility"}:
        far = np.divide(accepted, negatives, out=np.zeros_like(accepted), where=negatives > 0)
        if target.kind == "class-far":
            return np.asarray(-(weights * far).sum(axis=1) / weights.sum(axis=1))
        with_positives = positives > 0
        tar = matches[with_positives] / positives[with_positives]
        of_class = utility(np.broadcast_to(tar, (len(weights), len(tar))), far[:, with_positives], target.value)
        drawn = weights[:, with_positives]
        return np.asarray((drawn * of_class).sum(axis=1) / np.maximum(drawn.sum(axis=1), 1))
    pooled_tar = weights @ matches / np.maximum(weights @ positives, 1)
    return target.of_rates(pooled_tar, (weights * accepted).sum(axis=1) / (weights * negatives).sum(axis=1))


def _thresholds(target: Target, grid: Rates, achieved: Rates) -> Rates:
    """Return the threshold of each replicate: [n_bootstrap]."""
    rows, last = np.arange(len(achieved)), len(grid) - 1
    if target.choice == "best":
        return np.asarray(grid[achieved.argmax(axis=1)])
    reached = achieved >= target.level
    if target.choice == "lowest":
        inside = np.where(reached.any(axis=1), reached.argmax(axis=1), last)
        outside = np.maximum(inside - 1, 0)
    else:
        inside = np.where(reached.any(axis=1), last - reached[:, ::-1].argmax(axis=1), 0)
        outside = np.minimum(inside + 1, last)
    gain = achieved[rows, inside] - achieved[rows, outside]
    missing = np.divide(achieved[rows, inside] - target.level, gain, out=np.zeros(len(rows)), where=gain > 0)
    return np.asarray(grid[inside] + np.clip(missing, 0, 1) * (grid[outside] - grid[inside]))
