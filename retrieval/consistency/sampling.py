"""Operating curves from some of the pairs: pairs that people judged, or a random sample of too many pairs.

`curves` counts all pairs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from retrieval.consistency.arguments import checked
from retrieval.consistency.curves import OperatingCurves, Rates, checked_grid
from retrieval.consistency.pairs.counting import count_tiles, total_of_tiles
from retrieval.consistency.pairs.tiles import TILE, Tile, slices
from retrieval.consistency.pairs.vectors import LabelledVectors, Progress, check_one_set, check_positives
from retrieval.errors import InvalidEmbeddings, InvalidInput, NotEnoughEvidence

# Number of estimates, from disjoint sets of pairs, whose standard deviation gives the sampling error; at least.
_MIN_PARTS = 8


@checked
def judged_curves(
    scores: NDArray[np.float32],
    matches: NDArray[np.bool_],
    first_classes: Sequence[str],
    second_classes: Sequence[str] | None = None,
    *,
    thresholds: Rates | Sequence[float],
    cosine: bool = True,
) -> OperatingCurves:
    """Return the curves of explicit pairs, each judged to be a match or not.

    scores: [p] float32; matches: [p] bool, or 0 and 1; first_classes, second_classes: p strings, the class of each end,
    or another breakdown of the rates; if the second is omitted, the first holds for both ends. A match counts for the
    class of its first end, a non-match for those of both. n_images counts the ends of a class, as if all were different
    images.

    Raises:
        InvalidEmbeddings: lengths that differ, or scores that are not finite.
        InvalidInput: thresholds empty or not finite.
        NotEnoughEvidence: no match or no non-match.

    >>> scores, matches = np.array([0.9, 0.6, 0.2], dtype=np.float32), np.array([True, False, False])
    >>> judged_curves(scores, matches, ["a", "a", "b"], ["a", "b", "c"], thresholds=[0.5]).pooled_far
    array([0.5])
    """
    ends = (first_classes, first_classes if second_classes is None else second_classes)
    if scores.ndim != 1 or not len(scores) == len(matches) == len(ends[0]) == len(ends[1]):
        raise InvalidEmbeddings(
            f"expected as many scores, matches and classes of each end, found {scores.shape}, {len(matches)}, "
            f"{len(ends[0])} and {len(ends[1])}"
        )
    if matches.ndim != 1:
        raise InvalidEmbeddings(f"expected one judgement for each pair, found {matches.shape}")
    if not np.isfinite(scores).all():
        raise InvalidEmbeddings(f"scores must be finite, found {np.count_nonzero(~np.isfinite(scores))} that are not")
    if matches.all() or not matches.any():
        raise NotEnoughEvidence(f"rates need matches and non-matches, found {int(matches.sum())} of {len(matches)}")
    grid = checked_grid(thresholds)
    classes = tuple(sorted({*ends[0], *ends[1]}))
    code_of = {name: code for code, name in enumerate(classes)}
    first, second = (np.array([code_of[name] for name in side]) for side in ends)
    reached = np.searchsorted(grid, scores.astype(np.float64), side="right")  # thresholds that each score reaches

    def count(rows: NDArray[np.int64], accepted: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        table = np.zeros((len(classes), len(grid) + 1), dtype=np.int64)
        np.add.at(table, (rows, accepted), 1)
        return table[:, ::-1].cumsum(axis=1)[:, ::-1][:, 1:], table.sum(axis=1)

    both = np.concatenate([first[~matches], second[~matches]])
    positives_accepted, positives = count(first[matches], reached[matches])
    negatives_accepted, negatives = count(both, np.tile(reached[~matches], 2))
    ends_of_class = np.bincount(np.concatenate([first, second]), minlength=len(classes)).astype(np.int64)
    return OperatingCurves(
        classes=classes,
        n_images=ends_of_class,
        thresholds=grid,
        positives_accepted=positives_accepted,
        negatives_accepted=negatives_accepted,
        positives=positives,
        negatives=negatives,
        cosine=cosine,
    )


@dataclass(frozen=True, slots=True, eq=False)
class SampledCurves:
    """Curves from all positive and some negative pairs."""

    curves: OperatingCurves  # with the negatives of the sample
    far_error: Rates  # [m], standard error of the pooled FAR as an estimate of that of all pairs
    share: float  # of the negative pairs that were sampled


@checked
def sampled_curves(
    vectors: LabelledVectors,
    *,
    thresholds: Rates | Sequence[float],
    share: float,
    rng: np.random.Generator,
    threads: int | None = None,
    progress: Progress | None = None,
) -> SampledCurves:
    """Return curves for millions of images from all positive pairs and about a `share` of the negative ones.

    Images are put in random order and cut into blocks; each block meets the blocks at several distances from it. So all
    images are met equally often, all negative pairs are equally likely, and the products stay matrix products. Each
    distance gives an estimate; far_error comes from their standard deviation.

    vectors: one set of images; thresholds, threads: see `operating_curves`.

    Cost: a `share` of that of `operating_curves`, and the products inside classes.

    Raises:
        InvalidInput: share outside (0, 0.5], thresholds empty or not finite, or two sets of images.
        NotEnoughEvidence: no pair inside a class, or too few images to sample from: use `operating_curves`.

    Source: Blom, "Some properties of incomplete U-statistics", Biometrika 63 (1976), on balanced designs.
    """
    if not 0 < share <= 0.5:
        raise InvalidInput(f"share: expected a share of the negative pairs in (0, 0.5], found {share}")
    check_one_set(vectors)
    check_positives(vectors)
    grid = checked_grid(thresholds)
    tile = int(min(TILE, len(vectors.codes) * share / (2 * _MIN_PARTS)))
    if tile < 1:
        raise NotEnoughEvidence(f"{len(vectors.codes)} images are too few to sample from; use operating_curves")
    positives_accepted, _ = count_tiles(vectors, grid, _within_classes(vectors), threads=threads)
    parts = _distances(vectors, tile, share, rng)
    shuffled = vectors.subset(rng.permutation(len(vectors.codes)).astype(np.int64))
    accepted, totals = [], []
    for number, tiles in enumerate(parts):
        accepted.append(count_tiles(shuffled, grid, tiles, threads=threads)[1])
        totals.append(total_of_tiles(shuffled, tiles)[1])
        if progress is not None:
            progress(number + 1, len(parts))
    curves = OperatingCurves(
        classes=vectors.classes,
        n_images=vectors.n_images,
        thresholds=grid,
        positives_accepted=positives_accepted,
        negatives_accepted=np.sum(accepted, axis=0),
        positives=vectors.positives,
        negatives=np.sum(totals, axis=0),
        cosine=vectors.cosine,
    )
    visited = float(curves.negatives.sum() / vectors.negatives.sum())
    fars = np.array([part.sum(axis=0) / total.sum() for part, total in zip(accepted, totals, strict=True)])
    error = fars.std(axis=0, ddof=1) / np.sqrt(len(parts)) * np.sqrt(1 - visited)
    return SampledCurves(curves=curves, far_error=error, share=visited)


def _within_classes(vectors: LabelledVectors) -> list[Tile]:
    """Return the tiles that hold a positive pair: images are sorted by class, so they lie along the diagonal."""
    blocks = list(slices(0, len(vectors.codes)))
    tiles = []
    for number, rows in enumerate(blocks):
        tiles.append((rows, rows))
        for columns in blocks[number + 1 :]:
            if vectors.codes[rows][-1] != vectors.codes[columns][0]:
                break
            tiles.append((rows, columns))
    return tiles


def _distances(vectors: LabelledVectors, tile: int, share: float, rng: np.random.Generator) -> list[list[Tile]]:
    """Return, for each of several random distances between blocks, the tiles of all blocks at that distance."""
    blocks = [slice(start, start + tile) for start in range(0, len(vectors.codes), tile)]
    possible = np.arange(1, (len(blocks) + 1) // 2)  # the other half are the same pairs, swapped
    n_distances = min(max(_MIN_PARTS, round(share * len(blocks) / 2)), len(possible))
    if n_distances < _MIN_PARTS:
        raise NotEnoughEvidence(f"{len(vectors.codes)} images are too few to sample from; use operating_curves")
    chosen = np.sort(rng.choice(possible, n_distances, replace=False))
    return [
        [(block, blocks[(number + int(distance)) % len(blocks)]) for number, block in enumerate(blocks)]
        for distance in chosen
    ]
