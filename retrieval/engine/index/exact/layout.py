"""Encodes a gallery so that integer products bound its scores from above: the proof that no match is missed.

Let <q, x> be the score of a query and a vector, t the threshold. Split off the offset columns if there are any: if the
last but one column of the gallery is 1 throughout, a score is <q', x'> + q[-2] + q[-1] b with the offset b = x[-1].

Level 1. B is a matrix of p orthonormal rows (the directions of most energy), y = B q, Y = B x. By Cauchy-Schwarz
    <q, x> <= <y, Y> + |q - B'y| |x - B'Y|.
With the scale g of the gallery and the step h of the query, Y = g c + e and y = h w + r for whole numbers c, w:
    <y, Y> <= h g <w, c> + |r| max |g c| + |y| max |e|.
The norms |x - B'Y| and the offsets are rounded up to whole steps, as one more dimension each. So the score is at most
h g times one product of bytes, plus what is known for the query alone: a comparison with one whole number.

Level 2, for what is left: the same with all dimensions of x itself.
Level 3, for what is left: the score, in float64, always added in the same order, rounded to float32.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from retrieval.engine.index.exact.blocks import UP, aligned, encode_blocks, tiles
from retrieval.engine.index.exact.rounding import round_rows
from retrieval.engine.index.exact.table import Gallery

Vectors = NDArray[np.float32]

_SAMPLE = 100_000
_LINE = 64


def has_offset(vectors: Vectors) -> bool:
    """Return whether the last column is an offset of the score: the column before it is 1 throughout."""
    return vectors.shape[1] >= 3 and bool((vectors[:, -2] == 1).all())


def as_queries(vectors: Vectors) -> Vectors:
    """Return gallery vectors as query vectors: with an offset, the last two columns change places."""
    if not has_offset(vectors):
        return vectors
    return np.ascontiguousarray(np.concatenate([vectors[:, :-2], vectors[:, [-1, -2]]], axis=1))


def directions(vectors: Vectors, *, seed: int = 0) -> NDArray[np.float64]:
    """Return the directions of vectors [n, d], those of most energy first: [d, d] float64, orthonormal rows."""
    rows = np.arange(len(vectors))
    if len(vectors) > _SAMPLE:
        rows = np.sort(np.random.default_rng(seed).choice(len(vectors), _SAMPLE, replace=False))
    sample = vectors[rows]
    largest = float(np.abs(sample).max()) or 1.0
    moments = np.zeros((vectors.shape[1],) * 2)
    for tile in tiles(len(sample)):
        part = sample[tile] / np.float32(largest)
        moments += part.T @ part
    return np.ascontiguousarray(np.linalg.eigh(moments)[1].T[::-1])


def encode(rows: Vectors, basis: NDArray[np.float64], n_bytes: int) -> Gallery:
    """Encode the vectors [n, D] with `n_bytes` at level 1, or fewer if they have fewer dimensions.

    basis: the directions of the columns that are no offset.
    """
    offsets = np.ascontiguousarray(rows[:, -1]) if has_offset(rows) else np.empty(0, np.float32)
    n, d = len(rows), len(basis)
    first = encode_blocks(rows[:, :d], offsets, basis, n_bytes)
    scale = max(float(np.abs(rows[tile, :d]).max()) for tile in tiles(n)) / 127 or 1.0
    codes = aligned((n, -(-d // _LINE) * _LINE))
    codes[:, d:] = 0
    errors = np.zeros(3)
    for tile in tiles(n):
        errors = np.maximum(errors, round_rows(rows[tile, :d].astype(np.float64), scale, codes[tile]))
    bounds = np.array([*first.bounds, scale, *(np.sqrt(errors) * UP)])
    return Gallery(first.blocks, codes, offsets, rows, first.basis, first.steps, bounds)


def reencode(gallery: Gallery, basis: NDArray[np.float64], n_bytes: int) -> Gallery:
    """Return a gallery with another number of bytes at level 1; the rest is shared."""
    first = encode_blocks(gallery.rows[:, : len(basis)], gallery.offsets, basis, n_bytes)
    bounds = np.array([*first.bounds, *gallery.bounds[len(first.bounds) :]])
    return gallery._replace(blocks=first.blocks, basis=first.basis, steps=first.steps, bounds=bounds)
