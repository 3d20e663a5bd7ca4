"""Encodes a gallery so that integer products bound its scores from above: the proof that no match is missed.

Let <q, x> be the score of a query and a vector, t the threshold. Split off the offset columns if there are any: if the
last but one column of the gallery is 1 throughout, a score is <q', x'> + q[-2] + q[-1] b with the offset b = x[-1].

Level 1. B is a matrix of p orthonormal rows (the directions of most energy), y = B q, Y = B x. By Cauchy-Schwarz
    <q, x> <= <y, Y> + |q - B'y| |x - B'Y|.
With the scale g of the gallery and the step h of the query, Y = g c + e and y = h w + r for whole numbers c, w:
    <y, Y> <= h g <w, c> + |r| max |g c| + |y| max |e|.
The norms |x - B'Y| and the offsets are rounded up to whole steps, as one more dimension each. So the score is at most
h g times one product of bytes, plus what is known for the query alone: a comparison with one whole number.

Level 2, for what is left: the same with all dimensions of x itself. Not for vectors in float16: those take two bytes
a dimension themselves, so that a bound with one byte saves little.
Level 3, for what is left: the score, in float64, always added in the same order, rounded to float32.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from retrieval.engine.index.exact.instructions import BLOCK
from retrieval.engine.index.exact.kernels import Gallery
from retrieval.errors import InvalidInput

Vectors = NDArray[np.float32]
Stored: TypeAlias = NDArray[np.float32] | NDArray[np.uint16]

_TILE = 256 * BLOCK
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
    largest = float(np.abs(vectors).max()) or 1.0
    moments = np.zeros((vectors.shape[1],) * 2)
    for start in range(0, len(rows), _TILE):
        part = vectors[rows[start : start + _TILE]] / np.float32(largest)
        moments += part.T @ part
    return np.ascontiguousarray(np.linalg.eigh(moments)[1].T[::-1])


def encode(stored: Stored, basis: NDArray[np.float64], n_bytes: int) -> Gallery:
    """Encode the vectors [n, D] with `n_bytes` at level 1, or fewer if they have fewer dimensions.

    basis: the directions of the columns that are no offset. All bounds are those of the vectors as they are stored.
    """
    rows, d = as_floats(stored), len(basis)
    offsets = rows[:, -1].astype(np.float32) if d < rows.shape[1] else np.empty(0, np.float32)
    n_extra = 2 if len(offsets) else 1
    p = min(n_bytes - n_extra, d)
    basis = np.ascontiguousarray(basis[:p])
    scales = _Scales.of(rows, basis, offsets)
    n, m = len(rows), -(-(p + n_extra) // 4) * 4
    blocks = _aligned((-(-n // BLOCK), m // 4, BLOCK, 4))
    codes = _aligned((n, 0 if stored.dtype == np.uint16 else -(-d // _LINE) * _LINE))
    errors = np.zeros(4)
    for tile in _tiles(n):
        exact = rows[tile, :d].astype(np.float64)
        first = np.zeros((-(-len(exact) // BLOCK) * BLOCK, m), np.uint8)
        projected = exact @ basis.T
        errors[:2] = np.maximum(errors[:2], _round(projected, scales.scale, first))
        first[: len(exact), p] = _up(_rests(exact, projected) / scales.rest_scale)
        if len(offsets):
            above = offsets[tile].astype(np.float64) - scales.offset_lowest
            first[: len(exact), p + 1] = _up(above / scales.offset_scale)
        at = tile.start // BLOCK
        blocks[at : at + len(first) // BLOCK] = first.reshape(-1, BLOCK, m // 4, 4).transpose(0, 2, 1, 3)
        if not codes.shape[1]:
            continue
        codes[tile, d:] = 0
        errors[2:] = np.maximum(errors[2:], _round(exact, scales.row_scale, codes[tile]))
    error, length, row_error, row_length = map(float, errors)
    bounds = [scales.scale, error, length, scales.rest_scale, scales.offset_lowest, scales.offset_largest]
    bounds += [scales.offset_scale, scales.row_scale, row_error, row_length, scales.longest]
    return Gallery(blocks, codes, offsets, stored, basis, np.array(bounds))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Scales:
    """The steps of the codes, and the largest values of the gallery."""

    scale: float
    rest_scale: float
    offset_lowest: float
    offset_largest: float
    offset_scale: float
    row_scale: float
    longest: float

    @classmethod
    def of(cls, rows: NDArray[np.floating], basis: NDArray[np.float64], offsets: NDArray[np.float32]) -> _Scales:
        """Measure the gallery."""
        d = basis.shape[1]
        largest = rest = longest = 0.0
        for tile in _tiles(len(rows)):
            exact = rows[tile, :d].astype(np.float64)
            projected = exact @ basis.T
            largest = max(largest, float(np.abs(projected).max()))
            rest = max(rest, float(_rests(exact, projected).max()))
            longest = max(longest, float(np.einsum("ij,ij->i", exact, exact).max()))
        lowest, highest = (float(offsets.min()), float(offsets.max())) if len(offsets) else (0.0, 0.0)
        return cls(
            scale=largest / 127 or 1.0,
            rest_scale=rest / 254 or 1.0,
            offset_lowest=lowest,
            offset_largest=max(abs(lowest), abs(highest)),
            offset_scale=(highest - lowest) / 254 or 1.0,
            row_scale=float(np.abs(rows[:, :d]).max()) / 127 or 1.0,
            longest=longest**0.5,
        )


def _rests(exact: NDArray[np.float64], projected: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the norm of what the basis leaves of each vector, not less than it is: [n]."""
    squares = np.einsum("ij,ij->i", exact, exact)
    left = squares - np.einsum("ij,ij->i", projected, projected)
    return np.asarray(np.sqrt(np.maximum(left, 0) + 1e-12 * squares))


def _round(values: NDArray[np.float64], scale: float, codes: NDArray[np.uint8]) -> tuple[float, float]:
    """Write the nearest whole steps plus 128; return the largest norm of what is lost, and of what is kept."""
    steps = np.rint(values / scale).clip(-127, 127)
    codes[: len(values), : values.shape[1]] = (steps + 128).astype(np.uint8)
    steps *= scale
    kept = np.einsum("ij,ij->i", steps, steps).max()
    steps -= values
    return float(np.einsum("ij,ij->i", steps, steps).max()) ** 0.5, float(kept) ** 0.5


def _up(steps: NDArray[np.float64]) -> NDArray[np.uint8]:
    """Return the next whole number of steps, at most 255; the scales leave one step free for rounding."""
    return np.asarray(np.ceil(steps).clip(0, 255), np.uint8)


def _tiles(n: int) -> Iterator[slice]:
    return (slice(start, min(n, start + _TILE)) for start in range(0, n, _TILE))


def _aligned(shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """Return room for bytes that begins at a multiple of 64, as registers of 64 bytes are read."""
    size = int(np.prod(shape))
    room = np.empty(size + _LINE, np.uint8)
    start = -room.ctypes.data % _LINE
    return room[start : start + size].reshape(shape)
