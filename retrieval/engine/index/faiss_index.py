"""The indexes of FAISS: `Flat` (every vector) and `IVF` (inverted lists). Only this file imports faiss.

FAISS returns the inner products strictly above its radius, but a pair is accepted if `score >= threshold`. The radius
is chosen so that both give the same result for float32 scores.
"""

import itertools
from pathlib import Path

import faiss
import numpy as np
from numpy.typing import NDArray

from retrieval.consistency import float32_at_least
from retrieval.engine.index.index import Hits, check_vectors
from retrieval.engine.index.spec import IndexSpec
from retrieval.errors import CorruptArtifact, DeviceUnavailable

_BLAS_BATCH = 16  # query batches from this size on use matrix products, see `_use_matrix_products`


class FaissIndex:
    """An immutable index in memory. Searching is safe from several threads."""

    def __init__(self, native: faiss.Index, spec: IndexSpec) -> None:
        self._native = native
        self.spec = spec
        if isinstance(native, faiss.IndexIVF):
            native.nprobe = spec.n_probes
        _use_matrix_products(native.d)

    @classmethod
    def build(cls, vectors: NDArray[np.float32], spec: IndexSpec, *, device: str = "cpu") -> "FaissIndex":
        """Build an index, see `build_index`."""
        check_vectors(vectors, vectors.shape[-1] if vectors.ndim == 2 else 0)
        if device == "cuda" and not n_gpus():
            raise DeviceUnavailable(
                "device=cuda was requested, but FAISS sees no GPU: install the `gpu` extra or use cpu"
            )
        dimension = vectors.shape[1]
        flat = faiss.IndexFlatIP(dimension)
        if not spec.n_lists:
            flat.add(vectors)
            return cls(flat, spec)
        spec.check_items(len(vectors))
        native = faiss.IndexIVFFlat(flat, dimension, spec.n_lists, faiss.METRIC_INNER_PRODUCT)
        if device == "cuda":
            native.clustering_index = faiss.index_cpu_to_all_gpus(faiss.IndexFlatIP(dimension))
        native.train(vectors)
        native.clustering_index = None  # type: ignore[assignment]  # nullptr; the stub forgets it
        native.add(vectors)
        return cls(native, spec)

    @classmethod
    def load(cls, path: Path, spec: IndexSpec, *, dimension: int, n_items: int) -> "FaissIndex":
        """Open an index, see `load_index`."""
        try:
            native = faiss.read_index(str(path))
        except RuntimeError as error:  # raised by FAISS for a truncated file
            raise CorruptArtifact(f"index {path} cannot be read: it is truncated or no index") from error
        n_lists = native.nlist if isinstance(native, faiss.IndexIVF) else 0
        if (native.d, native.ntotal, n_lists) != (dimension, n_items, spec.n_lists):
            raise CorruptArtifact(
                f"index {path}: expected {n_items} vectors of dimension {dimension} in {spec.n_lists} lists, "
                f"found {native.ntotal} of {native.d} in {n_lists}"
            )
        return cls(native, spec)

    def save(self, path: Path) -> None:
        """Write the index into a file that `load` reads. Raises OSError if the disk is full.

        FAISS's own writer raises a RuntimeError then, or reports nothing if only its last bytes find no room.
        """
        failed: list[OSError] = []
        with path.open("wb") as file:

            def write(data: bytes) -> None:
                try:
                    file.write(data)
                except OSError as error:
                    failed.append(error)
                    raise

            try:
                faiss.write_index(self._native, faiss.PyCallbackIOWriter(write))  # type: ignore[attr-defined]  # the stub forgets it
            except RuntimeError:
                if not failed:
                    raise
                raise failed[0] from None

    @property
    def n_items(self) -> int:
        """The number of vectors."""
        return int(self._native.ntotal)

    @property
    def dimension(self) -> int:
        """The number of columns of the vectors."""
        return int(self._native.d)

    def above(self, queries: NDArray[np.float32], threshold: float) -> list[Hits]:
        """Return, for each row of `queries` [q, D], what has `score >= threshold`: best first, ties by position."""
        check_vectors(queries, self.dimension)
        limits, scores, positions = self._native.range_search(queries, _radius(threshold))
        return [_sorted(positions[a:b], scores[a:b]) for a, b in itertools.pairwise(limits)]


def n_gpus() -> int:
    """Return the number of GPUs that FAISS can use; 0 with the CPU build."""
    return int(faiss.get_num_gpus()) if hasattr(faiss, "StandardGpuResources") else 0


def _radius(threshold: float) -> float:
    """Return the largest float32 below every float32 score that reaches `threshold`."""
    (lowest_accepted,) = float32_at_least(np.array([threshold]))
    return float(np.nextafter(lowest_accepted, np.float32(-np.inf)))


def _sorted(positions: NDArray[np.int64], scores: NDArray[np.float32]) -> Hits:
    order = np.lexsort((positions, -scores))
    return Hits(positions[order], scores[order])


def _use_matrix_products(dimension: int) -> None:
    """Make FAISS multiply matrices for smaller batches too: since 1.15 it does so only from n * d on."""
    faiss.cvar.distance_compute_blas_threshold = _BLAS_BATCH * dimension
