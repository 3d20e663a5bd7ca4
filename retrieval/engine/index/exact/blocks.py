"""Encodes the vectors for level 1: half a byte for each direction, in blocks of 64 vectors, and bounds of the rest.

The codes of a vector, in this order: the norm of what the basis leaves of it, the norm of what the codes lose, its
offset if there is one, then its coordinates in the basis. The first four are a byte each. The others are half a byte:
eight of them are a group of four bytes, the first four in the lower halves. A block holds the first group of its 64
vectors, then the second, and so on. The proof that this bounds the score is in `docs/exact-search.md`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from retrieval.engine.index.exact.instructions import BLOCK

Vectors = NDArray[np.float32]

LEVELS, LEADING_LEVELS, NORM_LEVELS = 15, 31, 63  # the largest code of half a byte, of a byte, of a norm or offset
TILE = 256 * BLOCK

_BYTES, _HALVES = 4, 8  # codes in the first group, and in each other
_SPREAD = 2.2  # standard deviations that the codes reach; what lies beyond adds to the norm of what they lose
_SAMPLE = 1 << 16  # vectors that the steps are measured on
_LINE = 64


class Blocks(NamedTuple):
    """Level 1 of a gallery of n vectors: b = ceil(n / 64) blocks, p directions, g groups.

    blocks: [b, g, 64, 4] uint8, aligned to 64. basis: [p, d] float64, orthonormal rows. steps: [p, 2] float64: the
    value of code 0 and the step of each coordinate. bounds: the steps of the two norms, the lowest, the largest
    absolute and the step of the offset, and the largest norm of the half bytes after their middle is subtracted.
    """

    blocks: NDArray[np.uint8]
    basis: NDArray[np.float64]
    steps: NDArray[np.float64]
    bounds: tuple[float, ...]


def n_groups(p: int, *, offset: bool) -> int:
    """Return the number of groups of four bytes that p coordinates and their norms take."""
    return 1 + -(-max(0, p + n_before(offset=offset) - _BYTES) // _HALVES)


def n_before(*, offset: bool) -> int:
    """Return the number of codes before the coordinates."""
    return 3 if offset else 2


def encode_blocks(vectors: NDArray[np.floating], offsets: Vectors, basis: NDArray[np.float64], n_bytes: int) -> Blocks:
    """Encode the vectors [n, d] with `n_bytes` each, or fewer if they have fewer dimensions. offsets: [n], or [0]."""
    n, d = vectors.shape
    before = n_before(offset=len(offsets) > 0)
    p = min(d, _BYTES + max(0, n_bytes // 4 - 1) * _HALVES - before)
    basis = np.ascontiguousarray(basis[:p])
    groups = n_groups(p, offset=len(offsets) > 0)
    steps = _steps(vectors, basis, before)
    blocks = aligned((-(-n // BLOCK), groups, BLOCK, 4))
    norms, length = np.empty((2, n)), 0.0
    for tile in tiles(n):
        exact = vectors[tile].astype(np.float64)
        projected = exact @ basis.T
        codes = np.zeros((-(-len(exact) // BLOCK) * BLOCK, _BYTES + (groups - 1) * _HALVES), np.uint8)
        norms[0, tile] = _rests(exact, projected)
        norms[1, tile], tile_length = _round(projected, steps, before, codes)
        length = max(length, tile_length)
        at = slice(tile.start // BLOCK, tile.start // BLOCK + len(codes) // BLOCK)
        blocks[at] = _packed(codes).reshape(-1, BLOCK, groups, 4).transpose(0, 2, 1, 3)
    lowest, highest = (float(offsets.min()), float(offsets.max())) if len(offsets) else (0.0, 0.0)
    scales = [float(largest) / NORM_LEVELS for largest in (*norms.max(axis=1), highest - lowest)]
    for position, (values, scale) in enumerate(zip((*norms, offsets.astype(np.float64) - lowest), scales, strict=True)):
        if len(values):
            _write(blocks, position, _up(values / (scale or 1.0)))
    return Blocks(
        blocks, basis, steps, (scales[0], scales[1], lowest, max(abs(lowest), abs(highest)), scales[2], length)
    )


def _steps(vectors: NDArray[np.floating], basis: NDArray[np.float64], before: int) -> NDArray[np.float64]:
    """Return the value of code 0 and the step of each coordinate: any are correct, better ones lose less.

    The step of a coordinate that does not vary is 0: no larger than the vectors, which the slack for rounding assumes.
    """
    sample = vectors[:: -(-len(vectors) // _SAMPLE)].astype(np.float64) @ basis.T
    reach, levels = _SPREAD * sample.std(axis=0), np.full(len(basis), LEVELS)
    lowest, highest = sample.mean(axis=0) - reach, sample.mean(axis=0) + reach
    leading = slice(0, _BYTES - before)
    lowest[leading], highest[leading] = sample[:, leading].min(axis=0), sample[:, leading].max(axis=0)
    levels[leading] = LEADING_LEVELS
    steps = (highest - lowest) / levels
    return np.stack([lowest, steps], axis=1)


def _rests(exact: NDArray[np.float64], projected: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the norm of what the basis leaves of each vector, not less than it is: [n]."""
    squares = np.einsum("ij,ij->i", exact, exact)
    left = squares - np.einsum("ij,ij->i", projected, projected)
    return np.asarray(np.sqrt(np.maximum(left, 0) + 1e-12 * squares))


def _round(
    projected: NDArray[np.float64], steps: NDArray[np.float64], before: int, codes: NDArray[np.uint8]
) -> tuple[NDArray[np.float64], float]:
    """Write the nearest codes; return the norm of what each loses [n], and the largest norm of the half bytes."""
    p, leading = len(steps), _BYTES - before
    levels = np.where(np.arange(p) < leading, LEADING_LEVELS, LEVELS)
    divisors = np.where(steps[:, 1] > 0, steps[:, 1], np.inf)
    whole = np.rint((projected - steps[:, 0]) / divisors).clip(0, levels)
    codes[: len(whole), before : before + p] = whole
    lost = projected - (steps[:, 0] + whole * steps[:, 1])
    halves = whole[:, leading:] - LEVELS / 2
    longest = float(np.einsum("ij,ij->i", halves, halves).max()) ** 0.5
    return np.sqrt(np.einsum("ij,ij->i", lost, lost)), longest


def _packed(codes: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return the bytes of codes [n, c]."""
    halves = codes[:, _BYTES:].reshape(len(codes), -1, 2, 4)
    both = halves[:, :, 0] | halves[:, :, 1] << 4
    return np.concatenate([codes[:, :_BYTES], both.reshape(len(codes), -1)], axis=1)


def _write(blocks: NDArray[np.uint8], position: int, values: NDArray[np.uint8]) -> None:
    """Write one byte of the first group of each vector."""
    filled = np.zeros(len(blocks) * BLOCK, np.uint8)
    filled[: len(values)] = values
    blocks[:, 0, :, position] = filled.reshape(-1, BLOCK)


def _up(steps: NDArray[np.float64]) -> NDArray[np.uint8]:
    """Return the next whole number of steps; the largest value is `NORM_LEVELS` steps, or one more after rounding."""
    return np.asarray(np.ceil(steps), np.uint8)


def tiles(n: int) -> Iterator[slice]:
    """Yield parts of n rows, each of whole blocks but the last."""
    return (slice(start, min(n, start + TILE)) for start in range(0, n, TILE))


def aligned(shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """Return room for bytes that begins at a multiple of 64, as registers of 64 bytes are read."""
    size = int(np.prod(shape))
    room = np.empty(size + _LINE, np.uint8)
    start = -room.ctypes.data % _LINE
    return room[start : start + size].reshape(shape)
