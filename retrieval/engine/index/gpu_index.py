"""The exact index on GPUs: every score of a query is computed there in float16, and what may match is scored exactly.

Its answers and its file are those of `ExactIndex`, so a server without a GPU opens what was built with one.
`gpu_half.py` has the proof that nothing is missed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retrieval.engine.index.exact_index import ExactIndex
from retrieval.engine.index.exact_scores import hits_of, lowest_score, own_columns, score_pairs
from retrieval.engine.index.faiss_native import n_gpus
from retrieval.engine.index.gpu_half import Half, HalfGallery, largest_norm
from retrieval.engine.index.gpu_tiles import WIDTH, Device, Tiles
from retrieval.engine.index.index import Hits, check_search
from retrieval.errors import ValidationFailed

Vectors = NDArray[np.float32]

TILE = 1 << 20  # rows of a tile: 256 MiB with 128 columns
_CONVERTED = 1 << 16  # rows that are converted at a time
_CHECKED_QUERIES, _CHECKED_ROWS, _CHECKED_HITS = 100, 4096, 64


class GpuSearch:
    """The complete threshold search of rows on devices. Searching is safe from several threads."""

    def __init__(self, rows: Vectors, devices: Sequence[Device], *, tile: int = TILE) -> None:
        """Move the rows [n, D] to the devices, and check there that none is missed. Raises DeviceUnavailable."""
        self.rows = rows
        self._own_columns = own_columns(rows)
        self.gallery = HalfGallery.of(largest_norm(rows, _CONVERTED))
        self.devices = tuple(devices)
        self._tiles = Tiles(self._converted(tile), devices)
        self._check()

    def pairs(
        self, queries: Vectors, threshold: float, allowed: NDArray[np.bool_] | None = None
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], Vectors]:
        """Return queries, rows and scores of the pairs that can match; all with `score >= threshold` are among them."""
        half, limits = self.gallery.queries_and_limits(queries, lowest_score(threshold))
        found = self._tiles.candidates(_widened(half), limits, allowed)
        return found.queries, found.rows, self._scores(queries, found.rows, found.queries)

    def _scores(self, queries: Vectors, rows: NDArray[np.int64], numbers: NDArray[np.int64]) -> Vectors:
        """Return the exact score of each pair."""
        return score_pairs(self.rows, queries, rows, numbers, d=self._own_columns)

    def _converted(self, tile: int) -> Iterator[Half]:
        """Yield the tiles in float16."""
        for start in range(0, len(self.rows), tile):
            rows = self.rows[start : start + tile]
            half = np.zeros((len(rows), -(-rows.shape[1] // WIDTH) * WIDTH), np.float16)
            for first in range(0, len(rows), _CONVERTED):
                part = slice(first, first + _CONVERTED)
                half[part, : rows.shape[1]] = self.gallery.convert(rows[part])
            yield half

    def _check(self) -> None:
        """Raise ValidationFailed if the devices miss one of the best matches of some rows: they calculate otherwise."""
        n = len(self.rows)
        queries = self.rows[np.linspace(0, n - 1, min(n, _CHECKED_QUERIES)).astype(np.int64)]
        sample = np.unique(np.linspace(0, n - 1, min(n, _CHECKED_ROWS)).astype(np.int64))
        numbers = np.repeat(np.arange(len(queries)), len(sample))
        scores = self._scores(queries, np.tile(sample, len(queries)), numbers).reshape(len(queries), -1)
        thresholds = np.sort(scores)[:, -min(len(sample), _CHECKED_HITS)]
        lowest = np.array([lowest_score(float(threshold)) for threshold in thresholds])
        half, limits = self.gallery.queries_and_limits(queries, lowest)
        allowed = np.zeros(n, np.bool_)
        allowed[sample] = True
        found = self._tiles.candidates(_widened(half), limits, allowed)
        of_query, columns = np.nonzero(scores >= thresholds[:, None])
        missed = np.setdiff1d(of_query * n + sample[columns], found.queries * n + found.rows)
        if len(missed):
            raise ValidationFailed(
                f"the search on {self.devices[0].kind} missed {len(missed)} of {len(columns)} matches of its self-test:"
                " its arithmetic is not what the proof of the bound assumes; use device=cpu"
            )


class GpuIndex:
    """An `ExactIndex` whose searches run on one or more devices. Searching is safe from several threads."""

    def __init__(self, exact: ExactIndex, devices: Sequence[Device], *, tile: int = TILE) -> None:
        self._exact = exact
        rows, self._order = exact.vectors
        self._search = GpuSearch(rows, devices, tile=tile)
        self.spec = exact.spec

    @classmethod
    def build(cls, vectors: Vectors, *, device: str = "cuda", threshold: float | None = None) -> GpuIndex:
        """Build an index over `vectors` [n, D] float32. Raises DeviceUnavailable if the GPU is missing or too small."""
        devices = devices_of(device)
        return cls(ExactIndex.build(vectors, threshold=threshold), devices)

    @classmethod
    def load(cls, path: Path, *, dimension: int, n_items: int, device: str = "cuda") -> GpuIndex:
        """Open an index, see `load_index`, and move it to the devices."""
        devices = devices_of(device)
        return cls(ExactIndex.load(path, dimension=dimension, n_items=n_items), devices)

    def save(self, path: Path) -> None:
        """Write the file of the `ExactIndex`. Raises OSError if the disk is full."""
        self._exact.save(path)

    @property
    def n_items(self) -> int:
        """The number of vectors."""
        return self._exact.n_items

    @property
    def dimension(self) -> int:
        """The number of columns of the vectors."""
        return self._exact.dimension

    def details(self) -> dict[str, Any]:
        """Return what the manifest records."""
        devices = [f"{device.kind}:{device.number}" for device in self._search.devices]
        return {
            **self._exact.details(),
            "devices": devices,
            "bytes_a_vector_on_device": 2 * -(-self.dimension // WIDTH) * WIDTH + 1,
            "relative_slack": self._search.gallery.slack,
        }

    def above(self, queries: Vectors, threshold: float, allowed: NDArray[np.bool_] | None = None) -> list[Hits]:
        """Return what `ExactIndex.above` returns."""
        check_search(self, queries, threshold, allowed)
        if allowed is not None and len(self._order):
            allowed = allowed[self._order]
        numbers, rows, scores = self._search.pairs(queries, threshold, allowed)
        positions = self._order[rows].astype(np.int64) if len(self._order) else rows
        return hits_of(len(queries), numbers, positions, scores, threshold)


def devices_of(device: str) -> list[Device]:
    """Return the devices that `cpu` or `cuda` stands for: every GPU of the machine."""
    return [Device(device, number) for number in range(max(1, n_gpus()) if device == "cuda" else 1)]


def _widened(half: Half) -> Half:
    """Return the queries with columns of 0 up to a multiple of WIDTH, as the tiles have."""
    return np.pad(half, ((0, 0), (0, -half.shape[1] % WIDTH)))
