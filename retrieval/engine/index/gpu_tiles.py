"""Tiles of a gallery that stay in the memory of one or more devices, and the search through them.

Only this file and `encoder.py` run ONNX Runtime. `gpu_index.py` decides what is in the tiles and which limits are safe.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from retrieval.engine.encoder import providers_of
from retrieval.engine.index.gpu_graph import graph
from retrieval.errors import DeviceUnavailable

Half = NDArray[np.float16]

WIDTH = 8  # the tensor cores of a GPU work on multiples of so many columns
_QUERIES = 64  # in one pass: the scores of a tile of a million rows then take 128 MiB

# Bit 2 of this setting of ONNX Runtime: sums of float16 products are never rounded to float16 on their way.
_GEMM_OPTIONS = ("ORT_CUDA_GEMM_OPTIONS", "2")


class Candidates(NamedTuple):
    """Pairs that reached their limit, in no order: rows of the gallery and numbers of queries, [m] int64 each."""

    rows: NDArray[np.int64]
    queries: NDArray[np.int64]


class Device(NamedTuple):
    """A device of ONNX Runtime: `cpu`, or `cuda` and its number."""

    kind: str
    number: int = 0


class Tiles:
    """A gallery in device memory. Searching is safe from several threads; each device works on one search at a time."""

    def __init__(self, tiles: Iterable[Half], devices: Sequence[Device]) -> None:
        """Move the tiles [n, d] to the devices in turn; d is a multiple of WIDTH."""
        self._shards = [_Shard(device) for device in devices]
        self.n_items = 0
        for number, tile in enumerate(tiles):
            self._shards[number % len(devices)].add(tile, self.n_items)
            self.n_items += len(tile)
        self._threads = ThreadPoolExecutor(len(devices), "gpu-shard") if len(devices) > 1 else None

    def candidates(self, queries: Half, limits: Half, allowed: NDArray[np.bool_] | None = None) -> Candidates:
        """Return the pairs whose score on the device reaches the limit of the query.

        queries: [q, d]. limits: [q]. allowed: [n], the rows that may be found.
        """
        run = self._threads.map if self._threads else map
        parts = []
        for start in range(0, len(queries), _QUERIES):
            columns, padded = _padded(queries[start : start + _QUERIES], limits[start : start + _QUERIES])
            for found in run(lambda shard, c=columns, p=padded: shard.search(c, p, allowed), self._shards):  # type: ignore[misc]  # mypy infers no type for its defaults
                parts += [Candidates(rows, numbers + start) for rows, numbers in found]
        return Candidates(*map(np.concatenate, zip(*parts, strict=True)))


class _Shard:
    """The tiles of one device."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self._session = _session(device)
        self._tiles: list[tuple[onnxruntime.OrtValue, onnxruntime.OrtValue, slice]] = []
        self._lock = threading.Lock()

    def add(self, tile: Half, start: int) -> None:
        """Move a tile to the device; `start` is its first row in the gallery."""
        everything = np.ones((len(tile), 1), np.bool_)
        self._tiles.append((self._moved(tile), self._moved(everything), slice(start, start + len(tile))))

    def search(self, queries: Half, limits: Half, allowed: NDArray[np.bool_] | None) -> list[Candidates]:
        """Return the candidates of each tile. queries: [d, q]. limits: [q]."""
        with self._lock:
            on_device = self._moved(queries), self._moved(limits)
            return [self._found(tile, everything, rows, on_device, allowed) for tile, everything, rows in self._tiles]

    def _found(
        self,
        tile: onnxruntime.OrtValue,
        everything: onnxruntime.OrtValue,
        rows: slice,
        queries: tuple[onnxruntime.OrtValue, onnxruntime.OrtValue],
        allowed: NDArray[np.bool_] | None,
    ) -> Candidates:
        mask = everything if allowed is None else self._moved(np.ascontiguousarray(allowed[rows, None]))
        binding = self._session.io_binding()
        for name, value in zip(("tile", "queries", "limits", "allowed"), (tile, *queries, mask), strict=True):
            binding.bind_ortvalue_input(name, value)
        binding.bind_output("found", "cpu")
        try:
            self._session.run_with_iobinding(binding)
        except Exception as error:  # ONNX Runtime's own exceptions have no common public base
            raise DeviceUnavailable(f"{self._name}: the search failed: {error}") from error
        found = binding.copy_outputs_to_cpu()[0]
        return Candidates(found[0] + rows.start, found[1])

    def _moved(self, array: NDArray[np.generic]) -> onnxruntime.OrtValue:
        """Return the array in the memory of the device."""
        try:
            return onnxruntime.OrtValue.ortvalue_from_numpy(array, *self._device)
        except Exception as error:  # as above
            raise DeviceUnavailable(
                f"{self._name}: {array.nbytes:,} bytes could not be moved there, perhaps it has no room: {error}"
            ) from error

    @property
    def _name(self) -> str:
        return f"device {self._device.kind}:{self._device.number}"


def _session(device: Device) -> onnxruntime.InferenceSession:
    """Open the graph on a device. Raises DeviceUnavailable."""
    os.environ.setdefault(*_GEMM_OPTIONS)
    providers: list[str | tuple[str, dict[str, str]]] = [*providers_of(device.kind)]
    if device.kind == "cuda":
        options = {"device_id": str(device.number), "use_tf32": "0", "arena_extend_strategy": "kSameAsRequested"}
        providers[0] = ("CUDAExecutionProvider", options)
    settings = onnxruntime.SessionOptions()
    settings.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        session = onnxruntime.InferenceSession(graph(), settings, providers=providers)
    except Exception as error:  # as above
        raise DeviceUnavailable(f"device {device.kind}:{device.number} cannot be used: {error}") from error
    if device.kind == "cuda" and "CUDAExecutionProvider" not in session.get_providers():
        raise DeviceUnavailable("device=cuda was requested, but ONNX Runtime could not start its CUDA provider")
    return session


def _padded(queries: Half, limits: Half) -> tuple[Half, Half]:
    """Return the queries as columns, with columns added that find nothing: [d, q'], [q']."""
    missing = -len(queries) % WIDTH
    columns = np.pad(queries, ((0, missing), (0, 0))).T
    return np.ascontiguousarray(columns), np.pad(limits, (0, missing), constant_values=np.float16(np.inf))
