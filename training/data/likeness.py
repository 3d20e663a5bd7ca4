"""Finds the thumbnails that are alike, among all pairs of them, and connects them with as few pairs as possible.

The work is bounded by one matrix product of all thumbnails, even if all are alike; `duplicates.py` decides what that
means.
"""

from collections.abc import Callable, Iterator

import numpy as np
import scipy.fft
from numpy.typing import NDArray

_BLOCK = 1024  # rows that are compared with as many others at a time: 8 MB of distances
_COARSE = 3  # lowest frequencies per side that a first, quick comparison uses
_FEW = 50  # one pair of so many in a block: compared one by one


class Groups:
    """Rows that pairs connect. `of`: [n] the number of the group of each row."""

    def __init__(self, n: int) -> None:
        self.of = np.arange(n)
        self._members = {row: [row] for row in range(n)}

    def join(self, one: int, other: int) -> bool:
        """Make one group of the groups of two rows; return False if it was one already."""
        small, large = sorted((int(self.of[one]), int(self.of[other])), key=lambda group: len(self._members[group]))
        if small == large:
            return False
        moved = self._members.pop(small)
        self.of[moved] = large
        self._members[large] += moved
        return True


def similar(
    thumbnails: NDArray[np.uint8],
    kinds: NDArray[np.int64],
    tolerance: float,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Iterator[tuple[int, int, float]]:
    """Find pairs of rows of [n, side, side, 3] with a root mean square difference of at most `tolerance`.

    Of n rows that are connected by such pairs, n - 1 pairs connect all: first pairs of two different `kinds`, which
    connect all that such pairs connect, then pairs of one kind. There would be n * (n - 1) / 2.
    """
    n = len(thumbnails)
    across, within = Groups(n), Groups(n)
    later: list[tuple[int, int, float]] = []

    def is_open(rows: NDArray[np.int64]) -> bool:
        """Return whether a pair of these rows may connect what is not connected yet."""
        n_kinds = len(np.unique(kinds[rows]))
        return len(np.unique(within.of[rows])) > n_kinds or (n_kinds > 1 and len(np.unique(across.of[rows])) > 1)

    for row, others, squares in _near(thumbnails, tolerance, is_open, progress):
        same = kinds[others] == kinds[row]
        apart = np.where(same, within.of[others] != within.of[row], across.of[others] != across.of[row])
        useful = np.flatnonzero(apart)
        for place in useful[np.argsort(squares[useful], kind="stable")]:
            pair = (min(row, int(others[place])), max(row, int(others[place])), float(np.sqrt(squares[place])))
            if same[place]:
                if within.join(*pair[:2]):
                    later.append(pair)
            elif across.join(*pair[:2]):
                yield pair
    yield from (pair for pair in later if across.join(*pair[:2]))


def _near(
    thumbnails: NDArray[np.uint8],
    tolerance: float,
    is_open: Callable[[NDArray[np.int64]], bool],
    progress: Callable[[int, int], None],
) -> Iterator[tuple[int, NDArray[np.int64], NDArray[np.float64]]]:
    """Yield rows with others that are near and the means of their squared differences; each pair once.

    Differences are exact, because a product of whole numbers is in float64: a second run finds the same. Neither the
    mean nor the lowest frequencies of an orthonormal transform differ by more than the whole, so no pair is missed.
    """
    flat = thumbnails.reshape(len(thumbnails), -1)
    means = flat.mean(axis=1, dtype=np.float64)
    order = np.argsort(means, kind="stable")
    means, values = means[order], flat[order].astype(np.float32)
    frequencies = scipy.fft.dctn(thumbnails[order].astype(np.float32), axes=(1, 2), norm="ortho")
    coarse = frequencies[:, :_COARSE, :_COARSE].reshape(len(values), -1).astype(np.float64)
    limit = tolerance**2 * values.shape[1]
    starts = range(0, len(values), _BLOCK)
    for start in starts:
        one = slice(start, start + _BLOCK)
        for other_start in starts[start // _BLOCK :]:
            other = slice(other_start, other_start + _BLOCK)
            if means[other_start] - means[one][-1] > tolerance + 1e-6:
                break
            if not is_open(np.union1d(order[one], order[other])):
                continue
            candidates = _squares(coarse[one], coarse[other]) <= limit * (1 + 1e-4) + 1
            if start == other_start:
                candidates = np.triu(candidates, 1)
            squares = _squares_of(candidates, values[one], values[other])
            near = candidates & (squares <= limit)
            for row in np.flatnonzero(near.any(axis=1)):
                found = np.flatnonzero(near[row])
                yield int(order[start + row]), order[other_start + found], squares[row, found] / values.shape[1]
        progress(min(start + _BLOCK, len(values)), len(values))


def _squares_of(wanted: NDArray[np.bool_], one: NDArray[np.float32], other: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return the squared distances of the wanted pairs of two blocks; infinite for others if few are wanted."""
    rows, columns = np.nonzero(wanted)
    if len(rows) * _FEW > wanted.size:
        return _squares(one.astype(np.float64), other.astype(np.float64))
    squares = np.full(wanted.shape, np.inf)
    if len(rows):
        apart = one[rows] - other[columns]
        squares[rows, columns] = np.einsum("ij,ij->i", apart, apart, dtype=np.float64)
    return squares


def _squares(one: NDArray[np.float64], other: NDArray[np.float64]) -> NDArray[np.float64]:
    lengths = np.einsum("ij,ij->i", one, one)[:, None] + np.einsum("ij,ij->i", other, other)
    squares: NDArray[np.float64] = lengths - 2 * (one @ other.T)
    return squares
