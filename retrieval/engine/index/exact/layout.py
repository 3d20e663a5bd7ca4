"""Encodes a gallery so that integer products bound its scores from above: the proof that no match is missed.

Let <q, x> be the score of a query and a vector, t the threshold. Split off the offset columns if there are any: if the
last but one column of the gallery is 1 throughout, a score is <q', x'> + q[-2] + q[-1] b with the offset b = x[-1].

Level 1 (`blocks.py`). B is a matrix of p orthonormal rows (the directions of most energy), y = B q, Y = B x. Codes of
half a byte leave an error e: Y_i = a_i + g_i c_i + e_i. By Cauchy-Schwarz
    <q, x> <= <y, a> + sum y_i g_i c_i + |y| |e| + |q - B'y| |x - B'Y|.
The norms |e| and |x - B'Y| and the offsets are rounded up to whole steps, as one more code each. The factors y_i g_i
are rounded to whole steps of the query. So the score is at most a step times one product of whole numbers, plus what is
known for the query alone: a comparison with one whole number.

Level 2, for what is left: x = g c + e with one byte a column and q = h w + r give
    <q, x> <= h g <w, c> + |r| max |g c| + |q| max |e|.
Not for vectors in float16: those take two bytes a dimension themselves, so that a bound with one byte saves little.

Level 3, for what is left: the score, in float64, always added in the same order, rounded to float32.
"""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from retrieval.engine.index.exact.blocks import aligned, encode_blocks, tiles
from retrieval.engine.index.exact.rounding import round_rows
from retrieval.engine.index.exact.table import Gallery
from retrieval.errors import InvalidInput

Vectors = NDArray[np.float32]
Stored: TypeAlias = NDArray[np.float32] | NDArray[np.uint16]

_SAMPLE = 100_000
_LINE = 64


def has_offset(vectors: Vectors) -> bool:
    """Return whether the last column of a whole gallery is an offset of the score: the one before it is 1 throughout.

    Unit vectors may be equal to the axis of that column. They have nothing else, which tells them apart.
    """
    if vectors.shape[1] < 3 or not bool((vectors[:, -2] == 1).all()):
        return False
    own = vectors[:, :-2]
    return bool((np.einsum("ij,ij->i", own, own, dtype=np.float64) > 0.5).any())


def as_queries(stored: Stored, *, offset: bool) -> Vectors:
    """Return gallery vectors as query vectors: with an offset, the last two columns change places."""
    queries = as_floats(stored).astype(np.float32)
    if offset:
        queries[:, -2:] = queries[:, [-1, -2]]
    return queries


def in_half(vectors: Vectors) -> NDArray[np.uint16]:
    """Return the bits of the nearest float16 numbers. Raises InvalidInput if one is too large for them."""
    with np.errstate(over="ignore"):
        half = vectors.astype(np.float16)
    finite = np.isfinite(half)
    if not finite.all():
        row, column = np.unravel_index(int(np.argmin(finite)), finite.shape)
        raise InvalidInput(
            f"index Exact,fp16: 16 bits hold no value beyond 65,504, found {vectors[row, column]:g} in row {row}, "
            f"column {column}: use Exact"
        )
    return half.view(np.uint16)


def as_floats(stored: Stored) -> NDArray[np.floating]:
    """Return stored vectors as the numbers that they are, float32 or float16, without a copy."""
    return stored.view(np.float16) if stored.dtype == np.uint16 else np.asarray(stored, np.float32)


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


def encode(stored: Stored, basis: NDArray[np.float64], n_bytes: int) -> Gallery:
    """Encode the vectors [n, D] with `n_bytes` at level 1, or fewer if they have fewer dimensions.

    basis: the directions of the columns that are no offset. All bounds are those of the vectors as they are stored.
    """
    stored = stored.copy(order="C") if not stored.flags.c_contiguous else stored  # compiled code reads it by address
    rows, d = as_floats(stored), len(basis)
    offsets = rows[:, -1].astype(np.float32) if d < rows.shape[1] else np.empty(0, np.float32)
    n, width = len(rows), -(-d // _LINE) * _LINE
    first = encode_blocks(rows[:, :d], offsets, basis, n_bytes)
    scale = max(float(np.abs(rows[tile, :d]).max()) for tile in tiles(n)) / 127 or 1.0
    codes = aligned((n, 0 if stored.dtype == np.uint16 else width))
    codes[:, d:] = 0
    errors = np.zeros(3)
    for tile in tiles(n):
        exact = rows[tile, :d].astype(np.float64)
        into = codes[tile] if codes.shape[1] else np.empty((len(exact), width), np.uint8)
        errors = np.maximum(errors, round_rows(exact, scale, into))
    bounds = np.array([*first.bounds, scale, *np.sqrt(errors)])
    return Gallery(first.blocks, codes, offsets, stored, first.basis, first.steps, bounds)


def reencode(gallery: Gallery, basis: NDArray[np.float64], n_bytes: int) -> Gallery:
    """Return a gallery with another number of bytes at level 1; the rest is shared."""
    first = encode_blocks(as_floats(gallery.rows)[:, : len(basis)], gallery.offsets, basis, n_bytes)
    bounds = np.array([*first.bounds, *gallery.bounds[len(first.bounds) :]])
    return gallery._replace(blocks=first.blocks, basis=first.basis, steps=first.steps, bounds=bounds)
