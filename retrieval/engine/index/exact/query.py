"""Encodes a query for the first two levels, so that integer products bound its scores: compiled loops."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from retrieval.compiled import compiled, compiled_loosely
from retrieval.engine.index.exact.blocks import LEADING_LEVELS, LEVELS, NORM_LEVELS

ROUNDING = 1e-9  # relative to the terms of a bound; float64 arithmetic loses less than 1e-12 of them
_LARGEST = 2**31 - 1


class EncodedQueries(NamedTuple):
    """Encoded queries, as `encode_query` writes them.

    codes: [q, 4 + 8 (g - 1)] int8 and limits: [q] int32 for level 1. row_codes: [q, c] int8 and row_limits: [q, 3]
    float64 for level 2: the unit of the integer product, the limit, and the weight of the offset.
    """

    codes: NDArray[np.int8]
    limits: NDArray[np.int32]
    row_codes: NDArray[np.int8]
    row_limits: NDArray[np.float64]


@compiled
def room_for_queries(gallery, n):
    """Return room for n encoded queries."""
    n_codes = gallery.blocks.shape[1] * 8 - 4
    codes, row_codes = np.zeros((n, n_codes), np.int8), np.zeros((n, gallery.codes.shape[1]), np.int8)
    return EncodedQueries(codes, np.zeros(n, np.int32), row_codes, np.zeros((n, 3)))


@compiled_loosely
def _project(basis, query, projected):
    """Write the coordinates of a query in the basis; return their sum of squares."""
    squares = 0.0
    for j in range(basis.shape[0]):
        total = 0.0
        for i in range(basis.shape[1]):
            total += basis[j, i] * query[i]
        projected[j] = total
        squares += total * total
    return squares


@compiled_loosely
def size_of(values, n):
    """Return the sum of squares and the largest absolute value of the first n values."""
    squares, largest = 0.0, 0.0
    for i in range(n):
        squares += values[i] * values[i]
        largest = max(largest, abs(values[i]))
    return squares, largest


@compiled_loosely
def _round_to_codes(values, n, step, codes):
    """Write the nearest multiples of `step`; return the sum of the codes and the norm of what they leave."""
    total, squares, inverse = 0, 0.0, 1.0 / step
    for i in range(n):
        code = np.rint(values[i] * inverse)
        codes[i] = np.int8(code)
        total += int(code)
        left = values[i] - code * step
        squares += left * left
    return total, np.sqrt(squares)


@compiled
def _write_weight(weight, unit, codes, position):
    """Write a weight as whole units, rounded up; return what must be added for each vector if it is less than one."""
    if weight < unit:  # a whole unit for each step of a vector would be the larger bound
        codes[position] = 0
        return weight * NORM_LEVELS
    codes[position] = np.int8(np.ceil(weight / unit))
    return 0.0


@compiled
def _write_first(gallery, projected, weights, encoded, number):
    """Write the codes for level 1; return their unit, and what a product of codes in units may be below the score."""
    n_weights, p = weights.shape[0], projected.shape[0]
    steps, codes = gallery.steps, encoded.codes[number]
    largest, known = 0.0, 0.0
    for i in range(p):
        known += projected[i] * steps[i, 0]
        projected[i] *= steps[i, 1]
        largest = max(largest, abs(projected[i]))
    unit = largest / 127
    for i in range(n_weights):
        unit = max(unit, weights[i] / 126.5)
    if unit == 0.0:
        unit = 1.0
    for i in range(n_weights):
        known += _write_weight(weights[i], unit, codes, i)
    squares = 0.0
    for i in range(p):
        code = np.rint(projected[i] / unit)
        codes[n_weights + i] = np.int8(code)
        left = projected[i] - code * unit
        if n_weights + i < 4:
            known += left * (LEADING_LEVELS / 2) + abs(left) * (LEADING_LEVELS / 2)
        else:
            known += left * (LEVELS / 2)
            squares += left * left
    return unit, known + np.sqrt(squares) * gallery.bounds[5]


@compiled
def encode_query(query, lowest, gallery, encoded, number):
    """Encode one query [D] float32 as row `number`; a vector with a score above `lowest` passes both limits.

    Returns whether all values are finite.
    """
    rest_scale, error_scale, offset_lowest, offset_largest, offset_scale = gallery.bounds[:5]
    row_scale, row_error, row_length, longest = gallery.bounds[6:]
    p, d = gallery.basis.shape
    has_offset = gallery.offsets.shape[0] > 0
    values = query.astype(np.float64)
    projected = np.empty(p)
    squares, largest_value = size_of(values, d)
    prefix_squares = _project(gallery.basis, values, projected)
    norm, prefix = np.sqrt(squares), np.sqrt(prefix_squares)
    rest = np.sqrt(max(0.0, squares - prefix_squares) + 1e-12 * squares)
    lost = ROUNDING * norm * longest
    weight = 0.0
    if has_offset:
        weight = values[d + 1]
        lost += ROUNDING * (abs(values[d]) + abs(weight) * offset_largest)
        lowest -= values[d]

    weights = np.empty(3 if has_offset else 2)
    weights[0], weights[1] = rest * rest_scale, prefix * error_scale
    if has_offset:
        weights[2] = max(weight, 0.0) * offset_scale
    unit, known = _write_first(gallery, projected, weights, encoded, number)
    limit = np.ceil((lowest - weight * offset_lowest - known - lost) / unit)
    encoded.limits[number] = np.int32(min(max(limit, -_LARGEST), _LARGEST))

    finite = np.isfinite(squares) and (not has_offset or np.isfinite(values[d] + weight))
    if encoded.row_codes.shape[1] == 0:  # there is no level 2
        return finite

    step = largest_value / 127
    if step == 0.0:
        step = 1.0
    total, left = _round_to_codes(values, d, step, encoded.row_codes[number])
    unit = step * row_scale
    encoded.row_limits[number, 0] = unit
    encoded.row_limits[number, 1] = lowest - (row_error * norm + left * row_length + lost) + 128 * total * unit
    encoded.row_limits[number, 2] = weight
    return finite
