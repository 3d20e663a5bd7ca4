"""Finds the blocks that may hold a match, from the angles to the centres of the lists: compiled loops."""

from __future__ import annotations

import numpy as np

from retrieval.compiled import compiled, compiled_loosely
from retrieval.engine.index.exact.query import ROUNDING, size_of

_TINY = 1e-300
_ANGLE = 4e-6  # more than the arc cosine of a cosine near 1 may be wrong, if the cosine is within 1e-12


@compiled_loosely
def _cosine(centre, direction):
    """Return the inner product of two float32 rows; it is wrong by d * 2**-24 at most."""
    total = np.float32(0)
    for i in range(centre.shape[0]):
        total += centre[i] * direction[i]
    return total


@compiled
def _of_difference(cosine, other_cosine, other_sine):
    """Return the cosine of the difference of two angles between 0 and pi."""
    return cosine * other_cosine + np.sqrt(1.0 - cosine * cosine) * other_sine


@compiled
def _first_reaching(segments, column, first, last, angle):
    """Return the first segment from `first` on whose angle in a column is at least `angle`, or `last`."""
    while first < last:
        middle = (first + last) // 2
        if segments[middle, column] < angle:
            first = middle + 1
        else:
            last = middle
    return first


@compiled
def find_ranges(lists, query, lowest, has_offset, start, end, ranges):
    """Write the ranges of blocks, within start to end, that may hold a score above `lowest`; return their number.

    ranges: [l + 1, 2] int64, ascending and disjoint. `lists.py` explains the bound.
    """
    d = lists.centres.shape[1]
    values = query.astype(np.float64)
    squares, _ = size_of(values, d)
    norm = np.sqrt(squares)
    weight = 0.0
    if has_offset:
        weight = values[d + 1]
        lowest -= values[d] + ROUNDING * (abs(values[d]) + abs(lowest))
    if lists.centres.shape[0] == 0 or norm == 0.0 or weight < 0.0:
        ranges[0, 0], ranges[0, 1] = start, end
        return 1
    direction = (values / norm).astype(np.float32)
    wrong = (d + 8) * 2.0**-23  # of a cosine: the sum, and the rounding of both factors
    n, done = 0, start
    for number in range(lists.centres.shape[0]):
        largest_norm, largest_offset = lists.limits[number]
        target = (lowest - weight * largest_offset) / (norm * largest_norm + _TINY) - 2 * ROUNDING
        if target > 1.0:
            continue
        first, last = lists.first_segments[number], lists.first_segments[number + 1]
        origin = lists.first_blocks[number] - first
        if target > 0.0:
            cosine = float(_cosine(lists.centres[number], direction))
            nearer, farther = min(1.0, cosine + wrong), max(-1.0, cosine - wrong)
            near_cosine, near_sine, far_cosine, far_sine = lists.angles[number]
            if farther > near_cosine and _of_difference(farther, near_cosine, near_sine) < target - _ANGLE:
                continue
            if nearer < far_cosine and _of_difference(nearer, far_cosine, far_sine) < target - _ANGLE:
                continue
            reach = np.arccos(target) + _ANGLE
            first = _first_reaching(lists.segments, 1, first, last, np.arccos(nearer) - reach)
            last = _first_reaching(lists.segments, 0, first, last, np.arccos(farther) + reach)
        low, high = max(origin + first, done), min(origin + last, end)
        if low >= high:
            continue
        if n and ranges[n - 1, 1] == low:
            ranges[n - 1, 1] = high
        else:
            ranges[n, 0], ranges[n, 1] = low, high
            n += 1
        done = high
    return n
