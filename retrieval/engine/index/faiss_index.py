"""The vector index: everything whose score reaches a threshold.

Decides how vectors are arranged and searched; leaves what the vectors mean to `contract/score.py`. Hides FAISS.

An index is one short string: `Flat` (exact) or `IVF<lists>,nprobe=<n>` (inverted lists, of which n are looked at; an
approximate index, whose recall is measured when a snapshot is built). FAISS keeps inner products strictly above its
radius, we accept `score >= threshold`; the radius below is chosen so that both say the same for float32 scores.
"""

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import faiss
import numpy as np
from numpy.typing import NDArray

from retrieval.errors import CorruptArtifact, DeviceUnavailable, InvalidEmbeddings, InvalidInput

_SPEC = re.compile(r"Flat|IVF(?P<lists>[1-9]\d{0,6}),nprobe=(?P<probes>[1-9]\d{0,6})")
_POINTS_PER_LIST = 39  # below this many vectors a list, FAISS itself warns that the k-means is not to be trusted
_BLAS_BATCH = 16  # query batches from this size on use matrix products, see `_use_matrix_products`


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexSpec:
    """A parsed index string; `n_lists` is 0 for the exact index."""

    n_lists: int = 0
    n_probes: int = 0

    @classmethod
    def parse(cls, text: str) -> "IndexSpec":
        """The spec that `text` declares. Raises InvalidInput where it is not one."""
        match = _SPEC.fullmatch(text)
        if match is None:
            raise InvalidInput(
                f"index: expected `Flat` or `IVF<lists>,nprobe=<n>` such as IVF256,nprobe=16, found {text!r}"
            )
        if text == "Flat":
            return cls()
        lists, probes = int(match["lists"]), int(match["probes"])
        if probes > lists:
            raise InvalidInput(f"index: nprobe must be at most the number of lists, found {text!r}")
        return cls(n_lists=lists, n_probes=probes)

    @property
    def is_exact(self) -> bool:
        """True where a search looks at every vector."""
        return self.n_probes == self.n_lists

    def __str__(self) -> str:
        return f"IVF{self.n_lists},nprobe={self.n_probes}" if self.n_lists else "Flat"


@dataclass(frozen=True, slots=True)
class Hits:
    """What one query found, best first: `positions` [m] int64 (rows as added), `scores` [m] float32."""

    positions: NDArray[np.int64]
    scores: NDArray[np.float32]


class Index:
    """An immutable index over score vectors. Searching is safe from several threads."""

    def __init__(self, native: faiss.Index, spec: IndexSpec) -> None:
        self._native = native
        self.spec = spec
        if isinstance(native, faiss.IndexIVF):
            native.nprobe = spec.n_probes
        _use_matrix_products(native.d)

    @classmethod
    def build(cls, vectors: NDArray[np.float32], spec: IndexSpec, *, device: str = "cpu") -> "Index":
        """An index over `vectors` [n, D] float32, n >= 1; position = row.

        `device="cuda"` trains the inverted lists on the GPU. Raises InvalidEmbeddings for NaN or a wrong shape,
        InvalidInput where there are too few vectors for the lists, DeviceUnavailable where the GPU is missing.
        """
        _check(vectors, vectors.shape[-1] if vectors.ndim == 2 else 0)
        if device == "cuda" and not n_gpus():
            raise DeviceUnavailable(
                "device=cuda was asked for, but FAISS sees no GPU: install the `gpu` extra or use cpu"
            )
        dimension = vectors.shape[1]
        flat = faiss.IndexFlatIP(dimension)
        if not spec.n_lists:
            flat.add(vectors)
            return cls(flat, spec)
        if len(vectors) < spec.n_lists * _POINTS_PER_LIST:
            raise InvalidInput(
                f"index {spec}: expected at least {spec.n_lists * _POINTS_PER_LIST} items ({_POINTS_PER_LIST} a list), "
                f"found {len(vectors)}: use Flat or fewer lists"
            )
        native = faiss.IndexIVFFlat(flat, dimension, spec.n_lists, faiss.METRIC_INNER_PRODUCT)
        if device == "cuda":
            native.clustering_index = faiss.index_cpu_to_all_gpus(faiss.IndexFlatIP(dimension))
        native.train(vectors)
        native.clustering_index = None  # type: ignore[assignment]  # nullptr; the stub forgets it
        native.add(vectors)
        return cls(native, spec)

    @classmethod
    def load(cls, path: Path, spec: IndexSpec, *, dimension: int, n_items: int) -> "Index":
        """The index in a file. Raises CorruptArtifact where it is damaged or not of this shape."""
        try:
            native = faiss.read_index(str(path))
        except RuntimeError as error:  # FAISS reports a truncated file this way
            raise CorruptArtifact(f"index {path} cannot be read: it is truncated or no index") from error
        n_lists = native.nlist if isinstance(native, faiss.IndexIVF) else 0
        if (native.d, native.ntotal, n_lists) != (dimension, n_items, spec.n_lists):
            raise CorruptArtifact(
                f"index {path}: expected {n_items} vectors of dimension {dimension} in {spec.n_lists} lists, "
                f"found {native.ntotal} of {native.d} in {n_lists}"
            )
        return cls(native, spec)

    def save(self, path: Path) -> None:
        """Write the index into a file; `load` reads it."""
        faiss.write_index(self._native, str(path))

    @property
    def n_items(self) -> int:
        """Number of vectors."""
        return int(self._native.ntotal)

    @property
    def dimension(self) -> int:
        """Columns of the vectors."""
        return int(self._native.d)

    def above(self, queries: NDArray[np.float32], threshold: float) -> list[Hits]:
        """For each row of `queries` [q, D] everything with `score >= threshold`, best first, ties by position."""
        _check(queries, self.dimension)
        limits, scores, positions = self._native.range_search(queries, _radius(threshold))
        return [_sorted(positions[a:b], scores[a:b]) for a, b in itertools.pairwise(limits)]


def exact_hits(vectors: NDArray[np.float32], queries: NDArray[np.float32], threshold: float) -> list[Hits]:
    """What a complete search must find; judges approximate indexes. Costs q * n * D."""
    return Index.build(vectors, IndexSpec()).above(queries, threshold)


def recall(found: Sequence[Hits], expected: Sequence[Hits]) -> float:
    """Share of the expected hits that were found; 1 where nothing was expected."""
    n_expected = sum(len(hits.positions) for hits in expected)
    n_found = sum(np.isin(wanted.positions, hits.positions).sum() for hits, wanted in zip(found, expected, strict=True))
    return float(n_found) / n_expected if n_expected else 1.0


def n_gpus() -> int:
    """GPUs that FAISS can use; 0 with the CPU build."""
    return int(faiss.get_num_gpus()) if hasattr(faiss, "StandardGpuResources") else 0


def _radius(threshold: float) -> float:
    """The largest float32 below every float32 score that reaches `threshold`."""
    smallest_accepted = np.float32(threshold)
    if float(smallest_accepted) < threshold:
        smallest_accepted = np.nextafter(smallest_accepted, np.float32(np.inf))
    return float(np.nextafter(smallest_accepted, np.float32(-np.inf)))


def _sorted(positions: NDArray[np.int64], scores: NDArray[np.float32]) -> Hits:
    order = np.lexsort((positions, -scores))
    return Hits(positions[order], scores[order])


def _check(vectors: NDArray[np.float32], dimension: int) -> None:
    if vectors.ndim != 2 or vectors.dtype != np.float32 or vectors.shape[1] != dimension or not dimension:
        raise InvalidEmbeddings(
            f"expected float32 vectors [n, {dimension or 'd'}], found {vectors.dtype} {vectors.shape}"
        )
    if not len(vectors):
        raise InvalidEmbeddings(f"expected at least one vector of dimension {dimension}, found none")
    if not np.isfinite(vectors).all():
        row = int(np.argmin(np.isfinite(vectors).all(axis=1)))
        raise InvalidEmbeddings(f"expected finite vectors, found NaN or infinity in row {row}")


def _use_matrix_products(dimension: int) -> None:
    """FAISS multiplies matrices only from n * d on since 1.15; its default leaves middling batches slow."""
    faiss.cvar.distance_compute_blas_threshold = _BLAS_BATCH * dimension
