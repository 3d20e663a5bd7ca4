"""The compiled search: scan the blocks, bound the survivors, score what is left. `layout.py` explains the bounds."""

from __future__ import annotations

import numpy as np

from retrieval.compiled import compiled
from retrieval.engine.index.exact.hits import exact_score, grouped, key_of
from retrieval.engine.index.exact.instructions import (
    BLOCK,
    GROUP,
    lowest_bit,
    prefetch,
    row_dot,
    scan_block,
)
from retrieval.engine.index.exact.query import encode_query, room_for_queries
from retrieval.engine.index.exact.ranges import find_ranges, share_visited
from retrieval.engine.index.exact.table import opened, opened_room

TILE = 256  # blocks that all queries of a batch visit while they are in the cache
ROOM = 1 << 16  # hits that there must be room for before a tile is visited; a visit finds at most GROUP * TILE * BLOCK
DONE, NOT_FINITE = -1, -2

_CODES_AHEAD, _ROWS_AHEAD = 12, 4  # rows between a prefetch and the use of what it fetches
_LARGEST, _LINE = 2**31 - 1, 64
_SINGLY_BELOW = 0.35  # share of the blocks that single queries may visit and still be faster than a pass for four


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
            room.keys[n_found] = key_of(score, order[position] if order.shape[0] > 0 else position)
            n_found += 1
    return n_found


@compiled
def _scan_one(form, blocks, first, last, codes, limits, masks, candidates, n):
    """Add the positions in blocks first to last - 1 that reach the limit of one query to n; return the new number."""
    n_groups, stride = blocks.shape[1], blocks.strides[0]
    address, query = blocks.ctypes.data, codes.ctypes.data
    limit, word = limits.ctypes.data, masks.ctypes.data
    for block in range(first, last):
        mask = scan_block(form, address + block * stride, query, 0, n_groups, limit, word, 1)
        while mask != 0:
            candidates[n] = block * BLOCK + lowest_bit(mask)
            n += 1
            mask &= mask - np.uint64(1)
    return n


@compiled
def _prefetch_block(blocks, block):
    stride = blocks.strides[0]
    for offset in range(0, stride, _LINE):
        prefetch(blocks.ctypes.data + block * stride + offset)


@compiled
def _scan_group(form, blocks, first, last, codes, limits, masks, candidates, counts):
    """Write the positions that reach the limit of each of four queries, and their numbers."""
    n_groups, stride = blocks.shape[1], blocks.strides[0]
    address, queries, width = blocks.ctypes.data, codes.ctypes.data, codes.shape[1] // 4
    limit, words = limits.ctypes.data, masks.ctypes.data
    counts[:] = 0
    for block in range(first, last):
        if scan_block(form, address + block * stride, queries, width, n_groups, limit, words, 4) == 0:
            continue
        for query in range(GROUP):
            mask = masks[query]
            n = counts[query]
            while mask != 0:
                candidates[query, n] = block * BLOCK + lowest_bit(mask)
                n += 1
                mask &= mask - np.uint64(1)
            counts[query] = n


@compiled
def _search_singly(form, encoded_gallery, queries, allowed, limits, part, room, progress):
    """Find every vector in blocks start to end - 1 that reaches the threshold, one query [D] float32 after another."""
    gallery, lists, order = encoded_gallery
    threshold, lowest = limits
    start, end, share, n_shares = part
    candidates, masks = room.candidates[0], np.empty(1, np.uint64)
    ranges = np.empty((lists.centres.shape[0] + 1, 2), np.int64)
    encoded = room_for_queries(gallery, 1)
    n_found = 0
    for number in range(progress[0], queries.shape[0]):
        query = queries[number]
        if not encode_query(query, lowest, gallery, encoded, 0):
            progress[0] = NOT_FINITE
            return 0
        n_ranges = find_ranges(lists, query, lowest, gallery.offsets.shape[0] > 0, start, end, ranges)
        if n_shares > 1:
            _keep_share(ranges, n_ranges, share, n_shares)
        n = 0
        for i in range(n_ranges):
            if i + 2 < n_ranges:
                _prefetch_block(gallery.blocks, ranges[i + 2, 0])
            for first in range(max(ranges[i, 0], progress[1]), ranges[i, 1], TILE):
                last = min(first + TILE, ranges[i, 1])
                n = _scan_one(form, gallery.blocks, first, last, encoded.codes[0], encoded.limits, masks, candidates, n)
                if n > ROOM - TILE * BLOCK:
                    n = _keep_bounded(form, gallery, order, allowed, encoded, 0, candidates, n)
                    n_found = _add_hits(gallery, order, query, number, threshold, candidates, n, room, n_found)
                    n = 0
                    if room.queries.shape[0] - n_found < ROOM:
                        progress[0], progress[1] = number, last
                        return n_found
        n = _keep_bounded(form, gallery, order, allowed, encoded, 0, candidates, n)
        n_found = _add_hits(gallery, order, query, number, threshold, candidates, n, room, n_found)
        if room.queries.shape[0] - n_found < ROOM:
            progress[0], progress[1] = number + 1, 0
            return n_found
        progress[1] = 0
    progress[0] = DONE
    return n_found


@compiled
def _bounds_of_share(part):
    """Return the first block of a share of all blocks, and the one after its last."""
    start, end, share, n_shares = part
    n = end - start
    return start + n * share // n_shares, start + n * (share + 1) // n_shares


@compiled
def _keep_share(ranges, n_ranges, share, n_shares):
    """Shorten ranges of blocks to a share of their blocks; the shares are equal but for one block."""
    total = 0
    for i in range(n_ranges):
        total += ranges[i, 1] - ranges[i, 0]
    first, last, done = total * share // n_shares, total * (share + 1) // n_shares, 0
    for i in range(n_ranges):
        low, size = ranges[i, 0], ranges[i, 1] - ranges[i, 0]
        ranges[i, 0] = low + min(size, max(0, first - done))
        ranges[i, 1] = low + min(size, max(0, last - done))
        done += size


@compiled
def _search_together(form, encoded_gallery, queries, allowed, limits, part, room, progress):
    """Find the same as `_search_singly`, four queries a pass over each tile; `progress` counts tiles and groups."""
    gallery, _, order = encoded_gallery
    threshold, lowest = limits
    start, end = _bounds_of_share(part)
    n_queries = queries.shape[0]
    encoded = room_for_queries(gallery, n_queries)
    for number in range(n_queries):
        if not encode_query(queries[number], lowest, gallery, encoded, number):
            progress[0] = NOT_FINITE
            return 0
    candidates = room.candidates
    counts, masks = np.empty(GROUP, np.int64), np.empty(GROUP, np.uint64)
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
            _scan_group(form, gallery.blocks, tile, last, codes, code_limits, masks, candidates, counts)
            for z in range(width):
                n = _keep_bounded(form, gallery, order, allowed, encoded, first + z, candidates[z], counts[z])
                n_found = _add_hits(
                    gallery, order, queries[first + z], first + z, threshold, candidates[z], n, room, n_found
                )
        progress[1] = 0
    progress[0] = DONE
    return n_found


@compiled
def search(kind, table, kind_of_rows, queries, allowed, limits, part, room_table, progress):
    """Find every vector in a part of the blocks that reaches the threshold of queries [q, D] float32.

    kind: of a `Form`. table, kind_of_rows: see `opened`. allowed: [n] bool, the rows that may be found, or [0].
    limits: [2] float64, the threshold and the float32 before it. part: [4] int64, the first block, the one after the
    last, and which share of what is to do there, of how many. progress: [2] int64, where to go on, zeros at first.
    Returns the keys of the hits by query, and where each query ends, as `grouped` does; the room holds the same hits in
    no order. progress[0] is DONE at the end, or NOT_FINITE. Otherwise there was no more room: take the hits and call
    again.
    """
    encoded_gallery, room = opened(table, kind_of_rows), opened_room(room_table)
    gallery, lists, _ = encoded_gallery
    scores = np.float32(limits[0]), limits[1]
    bounds = part[0], part[1], part[2], part[3]
    together = False
    if queries.shape[0] > 1:
        has_offset = gallery.offsets.shape[0] > 0
        together = share_visited(lists, queries[:GROUP], limits[1], has_offset, part[0], part[1]) >= _SINGLY_BELOW
    if together:
        n = _search_together(kind, encoded_gallery, queries, allowed, scores, bounds, room, progress)
    else:
        n = _search_singly(kind, encoded_gallery, queries, allowed, scores, bounds, room, progress)
    return grouped(room.queries, room.keys, n, queries.shape[0])
