"""Finds the blocks that may hold a match, from the angles to the centres of the lists: compiled loops."""

from __future__ import annotations

import numpy as np

from retrieval.compiled import compiled, compiled_loosely
from retrieval.engine.index.exact.query import ROUNDING, size_of

_TINY = 1e-300
_ANGLE = 4e-6  # more than the arc cosine of a cosine near 1 may be wrong, if the cosine is within 1e-12
_ARC_COSINE = (0.0066700901, -0.0170881256, 0.0308918810, -0.0501743046, 0.0889789874, -0.2145988016, 1.5707963050)


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
def _angle_of(cosine):
    """Return the arc cosine of a number between -1 and 1; it is wrong by 3e-8 at most.

    Source: Abramowitz and Stegun, Handbook of Mathematical Functions, 4.4.46.
    """
    size = abs(cosine)
    total = -0.0012624911
    for factor in _ARC_COSINE:
        total = total * size + factor
    angle = np.sqrt(1.0 - size) * total
    return angle if cosine >= 0 else np.pi - angle


@compiled
def _within(segments, first, last, low, high):
    """Return the first segment that ends at an angle of at least `low`, and the one after the last below `high`."""
    n_before, n_below = 0, 0
    for i in range(first, last):
        n_before += segments[1, i] < low
        n_below += segments[0, i] < high
    return first + n_before, first + n_below


@compiled
def _measure(lists, direction, lowest, weight, norm, cosines, targets):
    """Write, for each list, the cosine of its centre, and that which a vector of it must have to match; 2: it cannot.

    It cannot if the target is above 1, or if the angle to all of its vectors is too large. Without branches, so that it
    runs on many lists at once.
    """
    wrong = _wrong(direction)
    for number in range(lists.centres.shape[0]):
        cosines[number] = _cosine(lists.centres[number], direction)
    for number in range(lists.centres.shape[0]):
        target = (lowest - weight * lists.limits[1, number]) / (norm * lists.limits[0, number] + _TINY) - 2 * ROUNDING
        nearer, farther = cosines[number] + wrong, cosines[number] - wrong
        nearer = nearer if nearer < 1.0 else 1.0  # noqa: FURB136  # min and max would run on one list at a time
        farther = farther if farther > -1.0 else -1.0  # noqa: FURB136
        near_cosine, near_sine = lists.angles[0, number], lists.angles[1, number]
        far_cosine, far_sine = lists.angles[2, number], lists.angles[3, number]
        before = (farther > near_cosine) & (_of_difference(farther, near_cosine, near_sine) < target)
        behind = (nearer < far_cosine) & (_of_difference(nearer, far_cosine, far_sine) < target)
        cannot = (target > 1.0) | ((target > 0.0) & (before | behind))
        targets[number] = 2.0 if cannot else target


@compiled
def _wrong(direction):
    """Return how far a cosine may be wrong: its sum, and the rounding of both factors."""
    return (direction.shape[0] + 8) * 2.0**-23


@compiled
def find_ranges(lists, query, lowest, has_offset, start, end, ranges):
    """Write the ranges of blocks, within start to end, that may hold a score above `lowest`; return their number.

    ranges: [l + 1, 2] int64, ascending and disjoint. `lists.py` explains the bound.
    """
    n_lists, d = lists.centres.shape
    norm, weight = 0.0, 0.0
    if n_lists > 0:
        values = query.astype(np.float64)
        squares, _ = size_of(values, d)
        norm = np.sqrt(squares)
        if has_offset:
            weight = values[d + 1]
            lowest -= values[d] + ROUNDING * (abs(values[d]) + abs(lowest))
    if norm == 0.0 or weight < 0.0:
        ranges[0, 0], ranges[0, 1] = start, end
        return 1
    direction = (values[:d] / norm).astype(np.float32)
    cosines, targets, wrong = np.empty(n_lists), np.empty(n_lists), _wrong(direction)
    _measure(lists, direction, lowest, weight, norm, cosines, targets)
    n, done, known, reach = 0, start, 2.0, 0.0
    for number in range(n_lists):
        target = targets[number]
        if target > 1.0:
            continue
        first, last = lists.first_segments[number], lists.first_segments[number + 1]
        origin = lists.first_blocks[number] - first
        if target > 0.0:
            if target != known:  # most lists have the same
                known, reach = target, _angle_of(target) + _ANGLE
            low = _angle_of(min(1.0, cosines[number] + wrong)) - reach
            high = _angle_of(max(-1.0, cosines[number] - wrong)) + reach
            first, last = _within(lists.segments, first, last, low, high)
        low_block, high_block = max(origin + first, done), min(origin + last, end)
        if low_block >= high_block:
            continue
        if n and ranges[n - 1, 1] == low_block:
            ranges[n - 1, 1] = high_block
        else:
            ranges[n, 0], ranges[n, 1] = low_block, high_block
            n += 1
        done = high_block
    return n


@compiled
def share_visited(lists, queries, lowest, has_offset, start, end):
    """Return the share of the blocks from start to end that queries [q, D] visit one by one."""
    if lists.centres.shape[0] == 0:
        return 1.0
    ranges = np.empty((lists.centres.shape[0] + 1, 2), np.int64)
    visited = 0
    for number in range(queries.shape[0]):
        n = find_ranges(lists, queries[number], lowest, has_offset, start, end, ranges)
        for i in range(n):
            visited += ranges[i, 1] - ranges[i, 0]
    return visited / max(1, (end - start) * queries.shape[0])
