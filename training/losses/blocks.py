"""Sums over the pairs of a batch and their gradient, computed by blocks of the similarity matrix.

Decides which pairs a block holds, which of them are on the wrong side of their margin, their sums and their gradient.
`margin.py` decides the divisors of the sums.

Every pair has two ends, and each end belongs to the group of its row: one group for all rows, or one for each class.
Sums and counts are over ends, so a negative pair counts in both of its classes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

# Rows of a block on a CPU: a block of this height and a few thousand columns fits into the cache.
_CPU_ROWS = 512
# Below this share of active pairs a sparse product is faster on a CPU than a dense one; measured at 512 x 4096 x 512.
_SPARSE_BELOW = 1 / 16
_SPARSE_FROM = 2**16  # pairs in a block


@dataclass(frozen=True, slots=True, kw_only=True)
class Pairs:
    """The rows and columns of the similarity matrix.

    columns: [k, d] float32 or float64, the batch of all processes, then the memory. labels: [k] int64.
    groups: [k] int64 below n_groups, None if there is one group. own: rows of this process. n_batch: rows of the batch.
    offsets: [k] of the dtype of columns, subtracted from the similarity of a pair at both ends; None for none.
    """

    columns: Tensor
    labels: Tensor
    groups: Tensor | None
    n_groups: int
    own: slice
    n_batch: int
    positive_margin: float | Tensor
    negative_margin: float | Tensor
    offsets: Tensor | None = None


@dataclass(frozen=True, slots=True)
class Block:
    """Some rows against the columns from `first` on. Columns from `once` on meet these rows in no other block.

    Columns before `once` belong to the batch and meet the rows again with exchanged roles, here or on another process.
    """

    rows: slice
    first: int
    once: int


@dataclass(frozen=True, slots=True)
class Active:
    """The pairs of a block on the wrong side of their margin: positives, negatives, both [rows, columns] bool."""

    positives: Tensor
    negatives: Tensor


@dataclass(frozen=True, slots=True)
class Few:
    """The active pairs as a list: places [2, p], their rows and columns; negatives: [p] bool, true for negatives."""

    places: Tensor
    negatives: Tensor


def split_blocks(pairs: Pairs, chunk: int) -> Iterator[Block]:
    """Split the pairs of this process's rows into blocks of at most `chunk` rows.

    A single process, which has all rows, computes half of the matrix: its blocks begin at the diagonal.
    """
    height = chunk if pairs.columns.device.type != "cpu" else min(chunk, _CPU_ROWS)
    is_whole = pairs.own == slice(0, pairs.n_batch)
    for start in range(pairs.own.start, pairs.own.stop, height):
        stop = min(start + height, pairs.own.stop)
        yield Block(slice(start, stop), start if is_whole else 0, stop if is_whole else pairs.n_batch)


def compare(pairs: Pairs, block: Block) -> tuple[Tensor, Tensor, Active]:
    """Compute the similarities of a block less the offsets, the pairs with equal labels and the active pairs.

    A row and itself have equal labels, but are not active.
    """
    similarities = pairs.columns[block.rows] @ pairs.columns[block.first :].T
    if pairs.offsets is not None:
        similarities.sub_(pairs.offsets[block.rows, None]).sub_(pairs.offsets[block.first :])
    same = pairs.labels[block.rows, None] == pairs.labels[block.first :]
    positives = (similarities <= pairs.positive_margin).logical_and_(same)
    positives.diagonal(block.rows.start - block.first).fill_(False)
    negatives = (similarities >= pairs.negative_margin) > same
    return similarities, same, Active(positives, negatives)


def tally(pairs: Pairs, block: Block, similarities: Tensor, same: Tensor, active: Active) -> Tensor:
    """Sum over the ends of a block's pairs, group by group: [5, n_groups] float64.

    The sums are: similarity of active positive and of active negative pairs, the number of each, and the number of
    pairs with equal labels, including those of a row with itself.
    """
    # Multiplied, not selected, so that a NaN in the embeddings gives NaN, although comparisons with it are false.
    sums = [_by_group(pairs, block, similarities * mask) for mask in (active.positives, active.negatives)]
    counts = [_by_group(pairs, block, mask) for mask in (active.positives, active.negatives, same)]
    return torch.cat([torch.stack(sums).double(), torch.stack(counts).double()]).view(5, pairs.n_groups)


def all_ends(pairs: Pairs) -> tuple[Tensor | int, Tensor | int]:
    """Count the ends of all pairs over all processes, and those of rows with themselves: [n_groups] or a number."""
    n_memory = len(pairs.labels) - pairs.n_batch
    if pairs.groups is None:
        return pairs.n_batch * (pairs.n_batch + 2 * n_memory), pairs.n_batch
    batch = pairs.groups[: pairs.n_batch].bincount(minlength=pairs.n_groups)
    memory = pairs.groups[pairs.n_batch :].bincount(minlength=pairs.n_groups)
    return batch * len(pairs.labels) + memory * pairs.n_batch, batch


def condense(active: Active, *, keep: bool) -> Active | Few | None:
    """Choose what to store of a block for its gradient: a list if few pairs are active, else the masks, or nothing.

    keep: whether masks may be stored. Only a CPU knows the number of active pairs without waiting for a device; on
    other devices the dense product is fast enough.
    """
    n_pairs = active.positives.numel()
    if active.positives.device.type == "cpu" and n_pairs >= _SPARSE_FROM:
        either = active.positives | active.negatives
        if either.count_nonzero() < _SPARSE_BELOW * n_pairs:
            places = either.nonzero().T
            return Few(places, active.negatives[*places])
    return active if keep else None


def add_gradient(gradient: Tensor, pairs: Pairs, block: Block, active: Active | Few, end_worth: Tensor) -> None:
    """Add the contribution of the active pairs of a block to `gradient` [n_batch, d].

    end_worth: [2, n_groups], the derivative of the loss by the similarity of a positive and of a negative pair, for one
    end in each group. The derivative of a pair is the sum over its two ends.
    """
    rows, columns = pairs.columns[block.rows], pairs.columns[block.first :]
    row_worth = _of_groups(end_worth, pairs, block.rows)
    column_worth = _of_groups(end_worth, pairs, slice(block.first, None))
    # Columns that get a gradient from this block, too; those of the memory get none.
    later = slice(block.once - block.first, pairs.n_batch - block.first)
    if isinstance(active, Few):
        (row, column), side = active.places, active.negatives.long()
        worth = row_worth.expand(2, len(rows))[side, row] + column_worth.expand(2, len(columns))[side, column]
        forces = torch.sparse_coo_tensor(active.places, worth, (len(rows), len(columns)), check_invariants=False)
        gradient[block.rows] += forces @ columns
        if later.start < later.stop:
            gradient[block.once :] += (forces.T @ rows)[later]
    else:
        positive, negative = row_worth[:, :, None] + column_worth[:, None]
        dense = active.positives * positive + active.negatives * negative
        gradient[block.rows].addmm_(dense, columns)
        if later.start < later.stop:
            gradient[block.once :].addmm_(dense[:, later].T, rows)


def _of_groups(worth: Tensor, pairs: Pairs, columns: slice) -> Tensor:
    """Return the worth of an end in each of these columns, [2, columns], or [2, 1] if there is one group."""
    return worth if pairs.groups is None else worth[:, pairs.groups[columns]]


def _by_group(pairs: Pairs, block: Block, values: Tensor) -> Tensor:
    """Sum over the ends of a block's pairs, by the group of the end: [n_groups], or [] if there is one group."""
    if pairs.groups is None:
        total = _total(values)
        has_once = block.once < len(pairs.columns)
        return total + _total(values[:, block.once - block.first :]) if has_once else total
    ends = values.sum(1), values[:, block.once - block.first :].sum(0)
    found = torch.zeros(pairs.n_groups, dtype=ends[0].dtype, device=values.device)
    return found.index_add_(0, pairs.groups[block.rows], ends[0]).index_add_(0, pairs.groups[block.once :], ends[1])


def _total(values: Tensor) -> Tensor:
    # A sum of booleans converts each of them first, which takes ten times as long as counting.
    return values.count_nonzero() if values.dtype == torch.bool else values.sum()
