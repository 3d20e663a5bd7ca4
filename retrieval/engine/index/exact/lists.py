"""Sorts a gallery into lists of similar vectors, so that a query can skip the blocks that cannot reach its threshold.

The bound is an angle. Let c be the unit centre of a list, a the angle between the query q and c, and b the angle
between a vector x and c. The angle between q and x is at least |a - b|, so <q, x> <= |q| |x| cos(|a - b|). The vectors
of a list are sorted by b, so those that can reach a threshold are neighbours. `kernels.find_ranges` applies it.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from retrieval.engine.index.exact.instructions import BLOCK

Vectors = NDArray[np.float32]

_PER_LIST, _MOST_LISTS = 200, 1024
_ROUNDS, _SAMPLE_PER_LIST = 6, 64
_TILE, _SAMPLE = 1 << 13, 1 << 14
_ENERGY = 0.95  # share of the energy in the directions that vectors are assigned by: 96 % get the list that all choose
_SAME = 1 - 1e-6  # norms that differ by less are rounded up to one number, so that one angle serves all lists
_TINY = 1e-300  # keeps a vector of zeros from dividing by 0; its angle is then a right one


class Lists(NamedTuple):
    """The lists of a gallery in index order: l lists, s segments. A segment is the part of one list in one block.

    centres: [l, d] float32, unit rows. angles: [4, l] float64: cosine and sine of the smallest angle of the list, then
    of the largest. limits: [2, l] float64: its largest norm and its largest offset. first_blocks, first_segments:
    [l + 1] int64. segments: [2, s] float32: the smallest and the largest angle of each segment.
    No list at all: every block is scanned.
    """

    centres: Vectors
    angles: NDArray[np.float64]
    limits: NDArray[np.float64]
    first_blocks: NDArray[np.int64]
    first_segments: NDArray[np.int64]
    segments: NDArray[np.float32]


def no_lists(d: int) -> Lists:
    """Return the lists of a gallery that is scanned as a whole."""
    return Lists(
        centres=np.empty((0, d), np.float32),
        angles=np.empty((4, 0)),
        limits=np.empty((2, 0)),
        first_blocks=np.zeros(1, np.int64),
        first_segments=np.zeros(1, np.int64),
        segments=np.empty((2, 0), np.float32),
    )


def sort_into_lists(
    vectors: Vectors, offsets: NDArray[np.float32], *, basis: NDArray[np.float64] | None = None, seed: int = 0
) -> tuple[NDArray[np.int32], Lists]:
    """Return the order of the vectors [n, d] in the index, and their lists. offsets: [n], or [0] if there are none.

    Any centres are correct, and any list for a vector; better ones skip more blocks. basis: the directions of the
    vectors, those of most energy first; with it, vectors are assigned by the directions that hold nearly all of it.
    """
    n = len(vectors)
    centres = _centres(vectors, max(1, min(_MOST_LISTS, n // _PER_LIST)), np.random.default_rng(seed))
    nearest, angles, norms = _nearest(vectors, centres, _shorter(vectors, basis))
    order = np.lexsort((angles, nearest)).astype(np.int32)
    starts = np.searchsorted(nearest[order], np.arange(len(centres) + 1))
    kept = np.flatnonzero(np.diff(starts))
    starts = np.append(starts[kept], n)
    angles, norms = angles[order], norms[order]
    lowest, highest = angles[starts[:-1]], angles[starts[1:] - 1]
    largest_offsets = np.maximum.reduceat(offsets[order].astype(np.float64), starts[:-1]) if len(offsets) else 0.0
    limits = np.empty((2, len(kept)))
    limits[0] = np.maximum.reduceat(norms, starts[:-1])
    limits[0, limits[0] > _SAME * norms.max()] = norms.max()
    limits[1] = largest_offsets
    segments, first_segments = _segments(angles, starts)
    return order, Lists(
        centres=centres[kept],
        angles=np.stack([np.cos(lowest), np.sin(lowest), np.cos(highest), np.sin(highest)]),
        limits=limits,
        first_blocks=starts // BLOCK,
        first_segments=first_segments,
        segments=segments,
    )


def _segments(angles: NDArray[np.float64], starts: NDArray[np.int64]) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Return the smallest and the largest angle of each list in each of its blocks, and where each list begins."""
    bounds = np.union1d(starts, np.arange(0, starts[-1], BLOCK))
    segments = np.empty((2, len(bounds) - 1), np.float32)
    segments[0] = angles[bounds[:-1]]
    segments[1] = angles[bounds[1:] - 1]
    return segments, np.searchsorted(bounds, starts)


def _shorter(vectors: Vectors, basis: NDArray[np.float64] | None) -> Vectors | None:
    """Return the first directions, which hold nearly all energy, or None if that would be most of them."""
    if basis is None:
        return None
    sample = vectors[:: -(-len(vectors) // _SAMPLE)].astype(np.float64) @ basis.T
    energies = np.einsum("ij,ij->j", sample, sample).cumsum()
    p = int(np.searchsorted(energies, _ENERGY * energies[-1])) + 1
    return np.ascontiguousarray(basis[:p], np.float32) if p <= len(basis) / 2 else None


def _nearest(
    vectors: Vectors, centres: Vectors, basis: Vectors | None
) -> tuple[NDArray[np.int32], NDArray[np.float64], NDArray[np.float64]]:
    """Return for each vector its most similar centre in the basis, the angle to it, and its norm."""
    compared = centres if basis is None else np.ascontiguousarray(centres @ basis.T)
    nearest = np.empty(len(vectors), np.int32)
    angles, norms = np.empty(len(vectors)), np.empty(len(vectors))
    for start in range(0, len(vectors), _TILE):
        tile = slice(start, start + _TILE)
        rows = vectors[tile]
        nearest[tile] = ((rows if basis is None else rows @ basis.T) @ compared.T).argmax(axis=1)
        exact = rows.astype(np.float64)
        norms[tile] = np.sqrt(np.einsum("ij,ij->i", exact, exact))
        own = centres[nearest[tile]].astype(np.float64)
        own /= np.linalg.norm(own, axis=1, keepdims=True)
        cosines = np.einsum("ij,ij->i", exact, own) / np.maximum(norms[tile], _TINY)
        angles[tile] = np.arccos(np.clip(cosines, -1, 1))
    return nearest, angles, norms


def _centres(vectors: Vectors, n_lists: int, rng: np.random.Generator) -> Vectors:
    """Return about `n_lists` unit centres by spherical k-means in two steps: groups, and lists within each group."""
    sample = vectors[rng.permutation(len(vectors))[: n_lists * _SAMPLE_PER_LIST]]
    sample = _unit(sample)
    n_groups = max(1, round(n_lists**0.5))
    groups = _k_means(sample, n_groups, rng)
    nearest = (sample @ groups.T).argmax(axis=1)
    parts = [sample[nearest == group] for group in range(len(groups))]
    shares = [max(1, round(n_lists * len(part) / len(sample))) for part in parts]
    return np.concatenate([_k_means(part, share, rng) for part, share in zip(parts, shares, strict=True) if len(part)])


def _k_means(rows: Vectors, k: int, rng: np.random.Generator) -> Vectors:
    """Return at most k centres of unit rows: [k, d], unit rows."""
    centres = rows[rng.choice(len(rows), min(k, len(rows)), replace=False)]
    for _ in range(_ROUNDS):
        nearest = (rows @ centres.T).argmax(axis=1)
        order = np.argsort(nearest, kind="stable")
        starts = np.searchsorted(nearest[order], np.arange(len(centres)))
        filled = np.diff(np.append(starts, len(rows))) > 0
        sums = np.add.reduceat(rows[order], starts[filled], axis=0)
        centres = np.concatenate([_unit(sums), centres[~filled]])
    return centres


def _unit(rows: Vectors) -> Vectors:
    """Return the rows with norm 1; a row of zeros becomes the first axis."""
    scaled = rows / np.maximum(np.abs(rows).max(axis=1, keepdims=True), np.float32(1e-38))
    norms = np.linalg.norm(scaled, axis=1, keepdims=True)
    unit = np.where(
        norms > 0, scaled / np.maximum(norms, np.float32(1e-38)), np.eye(1, rows.shape[1], dtype=np.float32)
    )
    return np.ascontiguousarray(unit, dtype=np.float32)
