"""Scores vectors and puts hits in order: compiled loops."""

from __future__ import annotations

import numpy as np

from retrieval.compiled import compiled
from retrieval.engine.index.exact.instructions import LANES, bits_of, float_of
from retrieval.engine.index.exact.products import float_dot, number_at

FEW = 64  # hits that are sorted here; more are sorted faster by NumPy


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
def key_of(score, row):
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
def grouped(queries, keys, n, n_queries):
    """Return n keys by query, and where each query ends: [n] int64, [n_queries] int64. Only few are sorted."""
    ends = np.zeros(n_queries, np.int64)
    for i in range(n):
        ends[queries[i]] += 1
    total = 0
    for number in range(n_queries):  # where the query begins, until its keys are written
        total, ends[number] = total + ends[number], total
    ordered = np.empty(n, np.int64)
    for i in range(n):
        ordered[ends[queries[i]]] = keys[i]
        ends[queries[i]] += 1
    start = 0
    for number in range(n_queries):
        if ends[number] - start <= FEW:
            _sort_few(ordered, start, ends[number])
        start = ends[number]
    return ordered, ends


@compiled
def _sort_few(keys, start, end):
    for i in range(start + 1, end):
        key, j = keys[i], i
        while j > start and keys[j - 1] > key:
            keys[j] = keys[j - 1]
            j -= 1
        keys[j] = key
