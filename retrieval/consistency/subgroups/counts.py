"""Count the accepted pairs at one threshold, by class and by group of images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from retrieval.consistency.classes import number_classes
from retrieval.consistency.pairs.batches import accepted_pairs
from retrieval.consistency.pairs.tally import PairTally
from retrieval.consistency.pairs.vectors import LabelledVectors, check_one_population
from retrieval.consistency.subgroups.sizes import GroupSizes, group_sizes
from retrieval.errors import InvalidEmbeddings, InvalidInput

Counts = NDArray[np.int64]

_MAX_CROSSED = 32  # groups; nobody reads a larger matrix


@dataclass(frozen=True, slots=True, eq=False)
class ClassPairCounts:
    """Accepted negative pairs by pair of classes and by cell, [e] int64 each; cells without any are left out."""

    first: Counts  # class code
    second: Counts  # class code, above first
    cell: Counts
    accepted: Counts

    def by_class(self, n_classes: int, n_cells: int) -> Counts:
        """Return accepted pairs with an end in the class: [T, cells] int64."""
        keys = np.concatenate([self.first, self.second]) * n_cells + np.tile(self.cell, 2)
        totals = np.bincount(keys, np.tile(self.accepted, 2), minlength=n_classes * n_cells)
        return totals.astype(np.int64).reshape(n_classes, n_cells)


@dataclass(frozen=True, slots=True, eq=False)
class GroupCounts:
    """Accepted pairs at one threshold among images of T classes and G groups."""

    groups: tuple[str, ...]  # sorted names
    n_images: Counts  # [T, G]
    # Of the cells, the pairs of groups (g <= h) that are counted: all of them up to 32 groups, with more groups only
    # those of a group with itself.
    sizes: GroupSizes
    positives: Counts  # [T, c], pairs inside a class with one end in g and the other in h
    positives_accepted: Counts  # [T, c]
    negatives_accepted: ClassPairCounts

    @property
    def cells(self) -> Counts:
        """Pairs of groups that are counted: [c, 2] int64."""
        return self.sizes.cells

    @property
    def within(self) -> Counts:
        """Numbers of the cells of a group with itself, in the order of the groups: [G] int64."""
        return np.flatnonzero(self.cells[:, 0] == self.cells[:, 1]).astype(np.int64)


def count_groups(vectors: LabelledVectors, groups: Sequence[str], threshold: float) -> GroupCounts:
    """Count accepted pairs by class and by pair of groups; groups: n names in the caller's order.

    In rounds a pair counts in each round in which its images meet. Memory: T counts for each cell, and one for each
    pair of classes with a false accept in it.

    Raises:
        InvalidInput: threshold is not finite, two sets of images or excluded pairs.
        InvalidEmbeddings: groups of another length.
    """
    check_threshold(threshold)
    check_one_population(vectors)
    if len(groups) != vectors.n_images.sum():
        raise InvalidEmbeddings(
            f"expected one group per label, found {len(groups)} groups for {vectors.n_images.sum()} labels"
        )
    names, group_of = number_classes([str(name) for name in groups])
    n_classes, n_groups = len(vectors.classes), len(names)
    crossed = np.triu_indices(n_groups) if n_groups <= _MAX_CROSSED else np.diag_indices(n_groups)
    cells = np.stack(crossed, axis=1).astype(np.int64)
    cell_of = np.full((n_groups, n_groups), -1, dtype=np.int64)
    cell_of[cells[:, 0], cells[:, 1]] = cell_of[cells[:, 1], cells[:, 0]] = np.arange(len(cells))
    sizes = group_sizes(vectors, group_of, cells)
    accepted = np.zeros(n_classes * len(cells), dtype=np.int64)
    tally = PairTally()
    for batch in accepted_pairs(vectors, threshold):
        cell = cell_of[group_of[vectors.order[batch.first_rows]], group_of[vectors.gallery_order[batch.second_rows]]]
        counted = cell >= 0
        first, second, cell = batch.first[counted], batch.second[counted], cell[counted]
        match = first == second
        accepted += np.bincount(first[match] * len(cells) + cell[match], minlength=len(accepted))
        differs = ~match
        tally.add(class_pairs(first[differs], second[differs], n_classes) * len(cells) + cell[differs])
    keys, counts = tally.counts()
    both, cell = keys // len(cells), keys % len(cells)
    return GroupCounts(
        groups=names,
        n_images=sizes.n_images,
        sizes=sizes,
        positives=sizes.inside(),
        positives_accepted=accepted.reshape(n_classes, len(cells)),
        negatives_accepted=ClassPairCounts(both // n_classes, both % n_classes, cell, counts),
    )


def check_threshold(threshold: float) -> None:
    """Raise InvalidInput if the threshold is not finite."""
    if not np.isfinite(threshold):
        raise InvalidInput(f"threshold must be finite, found {threshold}")


def class_pairs(first: Counts, second: Counts, n_classes: int) -> Counts:
    """Return a number for each pair of classes, whichever comes first: lower code * n_classes + higher code, [p]."""
    return np.minimum(first, second) * n_classes + np.maximum(first, second)


def accepted_class_pairs(vectors: LabelledVectors, threshold: float) -> tuple[Counts, Counts, Counts]:
    """Return the pairs of classes with a false accept: codes, first < second, and how many, [e] int64 each."""
    n_classes, tally = len(vectors.classes), PairTally()
    for batch in accepted_pairs(vectors, threshold):
        first, second = (side[~batch.matches] for side in (batch.first, batch.second))
        tally.add(class_pairs(first, second, n_classes))
    keys, accepted = tally.counts()
    return keys // n_classes, keys % n_classes, accepted
