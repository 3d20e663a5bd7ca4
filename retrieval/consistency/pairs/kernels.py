"""Compiled loops over the pairs of one tile: count them by class and threshold, or by the bits of their score.

Import it inside functions, because Numba takes a third of a second to import.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from retrieval.compiled import compiled

Codes = NDArray[np.int64]
Counts = NDArray[np.int64]
Groups = NDArray[np.int32]  # [n, attributes]; -1: in no group
Guess = NDArray[np.int16] | NDArray[np.int32]

LOW_BITS = 12
_MAX_STEPS = 1 << 14  # half a first-level cache of int16


@compiled
def _excluded(first: Groups, i: int, second: Groups, j: int) -> bool:
    for attribute in range(first.shape[1]):
        if first[i, attribute] >= 0 and first[i, attribute] == second[j, attribute]:
            return True
    return False


@compiled
def count_accepted_pairs(  # noqa: PLR0913  # compiled code takes arrays, not value classes
    scores: NDArray[np.float32],
    first_codes: Codes,
    second_codes: Codes,
    first_groups: Groups,
    second_groups: Groups,
    above_diagonal: bool,
    limits: NDArray[np.float32],
    guess: Guess,
    positives: Counts,
    negatives: Counts,
) -> None:
    """Add each pair to [class, last limit that its score reaches]; a negative pair to the classes of both ends.

    scores: [p, q]; codes: [p] and [q]; limits: [m + 1], ascending, infinity the last; guess: see `limit_guess`;
    positives, negatives: [T, m], added to.
    """
    lowest = limits[0]
    m = len(limits) - 1
    n_steps = np.float32(len(guess) - 1)
    per_score = n_steps / max(limits[m - 1] - lowest, np.float32(1e-30))
    of_positives, of_negatives = positives.reshape(-1), negatives.reshape(-1)
    reached = np.empty(scores.shape[1] + 1, dtype=np.int32)
    for i in range(scores.shape[0]):
        own = first_codes[i] * m
        row = scores[i]
        n_reached = 0
        for j in range(i + 1 if above_diagonal else 0, len(row)):
            # Without a branch: most pairs are below the first limit.
            reached[n_reached] = j
            n_reached += row[j] >= lowest
        for position in range(n_reached):
            j = reached[position]
            if _excluded(first_groups, i, second_groups, j):
                continue
            score = row[j]
            column = np.int64(guess[np.int32(min((score - lowest) * per_score, n_steps))])
            column += limits[column + 1] <= score  # without a branch, which could not be predicted
            while limits[column + 1] <= score:  # never, if no step holds two limits
                column += 1
            other = second_codes[j] * m
            if other == own:
                of_positives[own + column] += 1
            else:
                of_negatives[own + column] += 1
                of_negatives[other + column] += 1


def limit_guess(limits: NDArray[np.float32]) -> Guess:
    """Return a limit not above the scores in each of many equal steps from the first limit [m] to the last.

    There are enough steps to leave one limit in each, up to 16,384. A step begins a hundredth early, which is more than
    the rounding of its number.
    """
    width = float(limits[-1]) - float(limits[0])
    gap = float(np.diff(limits).min()) if len(limits) > 1 else 1.0
    n_steps = int(np.clip(1.1 * width / max(gap, 1e-30), 1, _MAX_STEPS)) + 1
    starts = float(limits[0]) + (np.arange(n_steps + 1) - 0.01) / n_steps * width
    guess = np.maximum(np.searchsorted(limits, starts, side="right") - 1, 0)
    return guess.astype(np.int16) if len(limits) <= np.iinfo(np.int16).max else guess.astype(np.int32)


@compiled
def count_pairs_by_class(
    first_codes: Codes,
    second_codes: Codes,
    first_groups: Groups,
    second_groups: Groups,
    above_diagonal: bool,
    positives: Counts,
    negatives: Counts,
) -> None:
    """Add the pairs that are not excluded, of any score; positives, negatives: [T]."""
    for i in range(len(first_codes)):
        code = first_codes[i]
        for j in range(i + 1 if above_diagonal else 0, len(second_codes)):
            if not _excluded(first_groups, i, second_groups, j):
                other = second_codes[j]
                if other == code:
                    positives[code] += 1
                else:
                    negatives[code] += 1
                    negatives[other] += 1


@compiled
def _ordered(bits: np.uint32) -> np.uint32:
    """Return an integer that orders as the float32 of these bits does; -0.0 as 0.0."""
    if bits & np.uint32(0x80000000):
        return np.uint32(0x80000000) if bits == np.uint32(0x80000000) else ~bits
    return bits | np.uint32(0x80000000)


@compiled
def count_high_bits(
    bits: NDArray[np.uint32],
    first_codes: Codes,
    second_codes: Codes,
    first_groups: Groups,
    second_groups: Groups,
    above_diagonal: bool,
    counts: Counts,
) -> None:
    """Add each negative pair to the bin of its score's high bits: [2^(32 - LOW_BITS)]. bits: scores seen as uint32."""
    for i in range(bits.shape[0]):
        code = first_codes[i]
        for j in range(i + 1 if above_diagonal else 0, bits.shape[1]):
            if second_codes[j] != code and not _excluded(first_groups, i, second_groups, j):
                counts[_ordered(bits[i, j]) >> np.uint32(LOW_BITS)] += 1


@compiled
def count_low_bits(  # noqa: PLR0913  # compiled code takes arrays, not value classes
    bits: NDArray[np.uint32],
    first_codes: Codes,
    second_codes: Codes,
    first_groups: Groups,
    second_groups: Groups,
    above_diagonal: bool,
    row_of: NDArray[np.int16],
    counts: Counts,
) -> None:
    """Add each negative pair to [row_of[high bits], low bits]; row_of: -1 for high bits that are not wanted."""
    for i in range(bits.shape[0]):
        code = first_codes[i]
        for j in range(i + 1 if above_diagonal else 0, bits.shape[1]):
            key = _ordered(bits[i, j])
            row = row_of[key >> np.uint32(LOW_BITS)]
            if row >= 0 and second_codes[j] != code and not _excluded(first_groups, i, second_groups, j):
                counts[row, key & np.uint32((1 << LOW_BITS) - 1)] += 1
