"""The compiled search: scan the blocks, bound the survivors, score what is left. `layout.py` explains the bounds."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from retrieval.compiled import compiled, compiled_loosely
from retrieval.engine.index.exact.instructions import (
    BLOCK,
    GROUP,
    LANES,
    bits_of,
    float_of,
    lowest_bit,
    prefetch,
    row_dot,
    scan_block,
)
from retrieval.engine.index.exact.products import float_dot, number_at

TILE = 256  # blocks that all queries of a batch visit while they are in the cache
ROOM = GROUP * TILE * BLOCK  # the most hits that one visit of a tile can find

_CODES_AHEAD, _ROWS_AHEAD = 12, 4  # rows between a prefetch and the use of what it fetches
_LARGEST, _LINE = 2**31 - 1, 64
_TINY = 1e-300
_ANGLE = 4e-6  # more than the arc cosine of a cosine near 1 may be wrong, if the cosine is within 1e-12
_ROUNDING = 1e-9  # relative to the terms of a bound; float64 arithmetic loses less than 1e-12 of them


class Gallery(NamedTuple):
    """The encoded gallery, as `layout.encode` makes it; n vectors in b = ceil(n / 64) blocks.

    blocks: [b, m / 4, 64, 4] uint8, aligned to 64. codes: [n, c] uint8, c a multiple of 64; 0 without level 2.
    offsets: [n] float32, or [0] without an offset column. rows: [n, D], the vectors as they are stored: float32, or
    uint16 that are the bits of float16. basis: [p, d] float64. bounds: [11] float64, in the order of `layout.encode`.
    """

    blocks: NDArray[np.uint8]
    codes: NDArray[np.uint8]
    offsets: NDArray[np.float32]
    rows: NDArray[np.float32] | NDArray[np.uint16]
    basis: NDArray[np.float64]
    bounds: NDArray[np.float64]


class EncodedQueries(NamedTuple):
    """Encoded queries, as `encode_query` writes them.

    codes: [q, m] int8 and limits: [q] int32 for level 1. row_codes: [q, c] int8 and row_limits: [q, 3] float64 for
    level 2: the unit of the integer product, the limit, and the weight of the offset.
    """

    codes: NDArray[np.int8]
    limits: NDArray[np.int32]
    row_codes: NDArray[np.int8]
    row_limits: NDArray[np.float64]


class Room(NamedTuple):
    """Room for the work of one thread.

    queries: [h] int32, the number of the query of each hit; keys: [h] int64, its score and its row, see `read_keys`.
    candidates: [4, ROOM] int32, the positions that have passed level 1.
    """

    queries: NDArray[np.int32]
    keys: NDArray[np.int64]
    candidates: NDArray[np.int32]


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
def _size(values, n):
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
def _steps(value, unit, codes, position):
    """Write a value as whole units, rounded up; return what must be added for each vector if it is less than one."""
    if value < unit:  # a whole unit for each step of a vector would be the larger bound
        codes[position] = 0
        return value * 255.0
    codes[position] = np.int8(np.ceil(value / unit))
    return 0.0


@compiled
def encode_query(query, lowest, gallery, encoded, number):
    """Encode one query [D] float32 as row `number`; a vector with a score above `lowest` passes both limits."""
    scale, error, length, rest_scale = gallery.bounds[:4]
    offset_lowest, offset_largest, offset_scale = gallery.bounds[4:7]
    row_scale, row_error, row_length, longest = gallery.bounds[7:]
    p, d = gallery.basis.shape
    values = query.astype(np.float64)
    projected = np.empty(p)
    squares, largest_value = _size(values, d)
    prefix_squares = _project(gallery.basis, values, projected)
    norm, prefix = np.sqrt(squares), np.sqrt(prefix_squares)
    rest = np.sqrt(max(0.0, squares - prefix_squares) + 1e-12 * squares)
    lost = _ROUNDING * norm * longest
    weight = 0.0
    if gallery.offsets.shape[0]:
        weight = values[d + 1]
        lost += _ROUNDING * (abs(values[d]) + abs(weight) * offset_largest)
        lowest -= values[d]

    _, largest = _size(projected, p)
    offset_step = max(weight, 0.0) * offset_scale
    step = max(largest / 127, max(rest * rest_scale, offset_step) / (126.5 * scale))
    if step == 0.0:
        step = 1.0
    unit = step * scale
    codes = encoded.codes[number]
    total, left = _round_to_codes(projected, p, step, codes)
    slack = error * prefix + left * length + lost
    slack += _steps(rest * rest_scale, unit, codes, p)
    if gallery.offsets.shape[0]:
        slack += _steps(offset_step, unit, codes, p + 1)
    limit = np.ceil((lowest - weight * offset_lowest - slack) / unit) + 128 * total
    encoded.limits[number] = np.int32(min(max(limit, -_LARGEST), _LARGEST))
    if encoded.row_codes.shape[1] == 0:  # there is no level 2
        return

    step = largest_value / 127
    if step == 0.0:
        step = 1.0
    total, left = _round_to_codes(values, d, step, encoded.row_codes[number])
    unit = step * row_scale
    encoded.row_limits[number, 0] = unit
    encoded.row_limits[number, 1] = lowest - (row_error * norm + left * row_length + lost) + 128 * total * unit
    encoded.row_limits[number, 2] = weight


@compiled
def exact_score(row, query, d):
    """Return the inner product in float64, always added in the same order, rounded to float32; no zero is negative.

    The first d columns are no offset. The other two are added to each other first: a pair has one score, whichever of
    the two is the query.
    """
    total = float_dot(row, query, d // LANES)
    for i in range(d // LANES * LANES, d):
        total += number_at(row, i) * np.float64(query[i])
    if row.shape[0] > d:
        total += number_at(row, d) * np.float64(query[d]) + number_at(row, d + 1) * np.float64(query[d + 1])
    return np.float32(total) + np.float32(0)


@compiled
def _key_of(score, row):
    """Return a number that sorts hits: best score first, equal scores by row."""
    bits = np.int64(bits_of(score))
    if bits < 0:
        bits ^= 0x7FFFFFFF
    return (~bits << 32) | np.int64(row)


@compiled
def read_keys(keys):
    """Return the rows and the scores of keys: [h] int64 and [h] float32."""
    rows, scores = np.empty(keys.shape[0], np.int64), np.empty(keys.shape[0], np.float32)
    for i in range(keys.shape[0]):
        bits = ~(keys[i] >> 32)
        if bits < 0:
            bits ^= 0x7FFFFFFF
        rows[i], scores[i] = keys[i] & 0xFFFFFFFF, float_of(np.int32(bits))
    return rows, scores


@compiled
def _keep_bounded(form, gallery, order, allowed, encoded, number, candidates, n):
    """Keep the allowed candidates whose second bound reaches the limit, at the front; return their number.

    All of them reach it if the gallery has no codes of its vectors.
    """
    codes = gallery.codes
    address, stride, n_chunks = codes.ctypes.data, codes.strides[0], codes.shape[1] // _LINE
    query = encoded.row_codes[number].ctypes.data
    unit, limit, weight = encoded.row_limits[number]
    has_offset = gallery.offsets.shape[0] > 0
    kept = 0
    for i in range(n):
        if i + _CODES_AHEAD < n:
            ahead = address + candidates[i + _CODES_AHEAD] * stride
            for line in range(n_chunks):
                prefetch(ahead + line * _LINE)
        position = candidates[i]
        if position >= codes.shape[0]:  # the last block is filled up
            continue
        if allowed.shape[0] > 0 and not allowed[order[position] if order.shape[0] > 0 else position]:
            continue
        if n_chunks > 0:
            bound = row_dot(form, address + position * stride, query, n_chunks) * unit
            if has_offset:
                bound += weight * gallery.offsets[position]
            if bound < limit:
                continue
        candidates[kept] = position
        kept += 1
    return kept


@compiled
def _add_hits(gallery, order, query, number, threshold, candidates, n, room, n_found):
    """Score the candidates and add those that reach the threshold; return the number of hits found so far."""
    address, stride, d = gallery.rows.ctypes.data, gallery.rows.strides[0], gallery.basis.shape[1]
    for i in range(n):
        if i + _ROWS_AHEAD < n:
            ahead = address + candidates[i + _ROWS_AHEAD] * stride
            for offset in range(0, stride, _LINE):
                prefetch(ahead + offset)
        position = candidates[i]
        score = exact_score(gallery.rows[position], query, d)
        if score >= threshold:
            room.queries[n_found] = number
            room.keys[n_found] = _key_of(score, order[position] if order.shape[0] > 0 else position)
            n_found += 1
    return n_found


@compiled
def _scan_one(form, blocks, first, last, codes, limit, candidates, n):
    """Add the positions in blocks first to last - 1 that reach the limit of one query to n; return the new number."""
    n_steps, stride = blocks.shape[1], blocks.strides[0]
    address, query = blocks.ctypes.data, codes.ctypes.data
    limits, masks = np.empty(1, np.int32), np.empty(1, np.uint64)
    limits[0] = limit
    for block in range(first, last):
        mask = scan_block(
            form, address + block * stride, query, n_steps, n_steps, limits.ctypes.data, masks.ctypes.data, 1
        )
        while mask != 0:
            candidates[n] = block * BLOCK + lowest_bit(mask)
            n += 1
            mask &= mask - np.uint64(1)
    return n


@compiled
def _scan_group(form, blocks, first, last, codes, limits, candidates, counts):
    """Write the positions that reach the limit of each of four queries, and their numbers."""
    n_steps, stride = blocks.shape[1], blocks.strides[0]
    address, queries = blocks.ctypes.data, codes.ctypes.data
    masks = np.empty(GROUP, np.uint64)
    counts[:] = 0
    for block in range(first, last):
        if (
            scan_block(
                form, address + block * stride, queries, n_steps, n_steps, limits.ctypes.data, masks.ctypes.data, 4
            )
            == 0
        ):
            continue
        for query in range(GROUP):
            mask = masks[query]
            n = counts[query]
            while mask != 0:
                candidates[query, n] = block * BLOCK + lowest_bit(mask)
                n += 1
                mask &= mask - np.uint64(1)
            counts[query] = n


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
    squares, _ = _size(values, d)
    norm = np.sqrt(squares)
    weight = 0.0
    if has_offset:
        weight = values[d + 1]
        lowest -= values[d] + _ROUNDING * (abs(values[d]) + abs(lowest))
    if lists.centres.shape[0] == 0 or norm == 0.0 or weight < 0.0:
        ranges[0, 0], ranges[0, 1] = start, end
        return 1
    direction = (values / norm).astype(np.float32)
    wrong = (d + 8) * 2.0**-23  # of a cosine: the sum, and the rounding of both factors
    n, done = 0, start
    for number in range(lists.centres.shape[0]):
        largest_norm, largest_offset = lists.limits[number]
        target = (lowest - weight * largest_offset) / (norm * largest_norm + _TINY) - 2 * _ROUNDING
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


@compiled
def _room_for(gallery, n):
    """Return room for n encoded queries."""
    m = gallery.blocks.shape[1] * 4
    codes, row_codes = np.zeros((n, m), np.int8), np.zeros((n, gallery.codes.shape[1]), np.int8)
    return EncodedQueries(codes, np.zeros(n, np.int32), row_codes, np.zeros((n, 3)))


@compiled
def search_singly(form, gallery, lists, order, queries, allowed, limits, part, room, progress):
    """Find every vector in blocks start to end - 1 that reaches the threshold, one query [D] float32 after another.

    order: [n] int32, the row of each position, or [0]. allowed: [n] bool, the rows that may be found, or [0].
    limits: the threshold as float32, and the float32 before it. part: start, end. progress: [2] int64, the next query
    and its next block, zeros at first. Returns the number of hits in `room`; if
    progress[0] is not -1, there was no more room: take the hits and call again.
    """
    threshold, lowest = limits
    start, end = part
    candidates = room.candidates[0]
    ranges = np.empty((lists.centres.shape[0] + 1, 2), np.int64)
    encoded = _room_for(gallery, 1)
    n_found = 0
    for number in range(progress[0], queries.shape[0]):
        query = queries[number]
        encode_query(query, lowest, gallery, encoded, 0)
        n_ranges = find_ranges(lists, query, lowest, gallery.offsets.shape[0] > 0, start, end, ranges)
        n = 0
        for i in range(n_ranges):
            for first in range(max(ranges[i, 0], progress[1]), ranges[i, 1], TILE):
                last = min(first + TILE, ranges[i, 1])
                n = _scan_one(form, gallery.blocks, first, last, encoded.codes[0], encoded.limits[0], candidates, n)
                if n > ROOM - TILE * BLOCK or (i == n_ranges - 1 and last == ranges[i, 1]):
                    n = _keep_bounded(form, gallery, order, allowed, encoded, 0, candidates, n)
                    n_found = _add_hits(gallery, order, query, number, threshold, candidates, n, room, n_found)
                    n = 0
                    if room.queries.shape[0] - n_found < ROOM:
                        progress[0], progress[1] = number, last
                        return n_found
        progress[1] = 0
    progress[0] = -1
    return n_found


@compiled
def search_together(form, gallery, order, queries, allowed, limits, part, room, progress):
    """Find the same as `search_singly`, four queries a pass over each tile; `progress` counts tiles and groups."""
    threshold, lowest = limits
    start, end = part
    n_queries = queries.shape[0]
    encoded = _room_for(gallery, n_queries)
    for number in range(n_queries):
        encode_query(queries[number], lowest, gallery, encoded, number)
    candidates = room.candidates
    counts = np.empty(GROUP, np.int64)
    codes = np.zeros((GROUP, encoded.codes.shape[1]), np.int8)
    code_limits = np.empty(GROUP, np.int32)
    n_found = 0
    for tile in range(start + progress[0] * TILE, end, TILE):
        last = min(tile + TILE, end)
        for group in range(progress[1], (n_queries + GROUP - 1) // GROUP):
            if room.queries.shape[0] - n_found < ROOM:
                progress[0], progress[1] = (tile - start) // TILE, group
                return n_found
            first = group * GROUP
            width = min(GROUP, n_queries - first)
            for z in range(GROUP):  # a group that is not full repeats its last query, with a limit that none reaches
                codes[z] = encoded.codes[first + min(z, width - 1)]
                code_limits[z] = encoded.limits[first + z] if z < width else _LARGEST
            _scan_group(form, gallery.blocks, tile, last, codes, code_limits, candidates, counts)
            for z in range(width):
                n = _keep_bounded(form, gallery, order, allowed, encoded, first + z, candidates[z], counts[z])
                n_found = _add_hits(
                    gallery, order, queries[first + z], first + z, threshold, candidates[z], n, room, n_found
                )
        progress[1] = 0
    progress[0] = -1
    return n_found
