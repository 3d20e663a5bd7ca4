"""Builds an index of the declared kind from vectors, or opens one from a file.

Each kind is imported when it is used, because it needs its own library.
"""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from retrieval.engine.index.index import Hits, Index
from retrieval.engine.index.milvus_address import MilvusAddress
from retrieval.engine.index.spec import IndexSpec
from retrieval.errors import CorruptArtifact


def build_index(
    vectors: NDArray[np.float32], spec: IndexSpec, *, device: str = "cpu", threshold: float | None = None
) -> Index:
    """Build an index over `vectors` [n, D] float32, n >= 1; position = row.

    `device="cuda"` trains inverted lists and builds CAGRA on the GPU. threshold: the one that most searches use; any
    other works too.

    Raises InvalidEmbeddings for NaN or a wrong shape, InvalidInput if there are too few vectors for the lists,
    DeviceUnavailable if a GPU is needed and missing, and what `MilvusIndex.build` raises.
    """
    if spec.kind == "Exact":
        from retrieval.engine.index.exact_index import ExactIndex

        return ExactIndex.build(vectors, threshold=threshold, half=spec.codes == "fp16")
    if spec.kind == "milvus":
        from retrieval.engine.index.milvus_index import MilvusIndex

        return MilvusIndex.build(vectors, spec, threshold=threshold)
    from retrieval.engine.index.faiss_index import FaissIndex

    return FaissIndex.build(vectors, spec, device=device, threshold=threshold)


def load_index(path: Path, spec: IndexSpec, *, dimension: int, n_items: int, device: str = "cpu") -> Index:
    """Open the index in a file. `device="cuda"` searches the exact index on the GPUs of this machine.

    Raises CorruptArtifact if it is damaged or does not have this shape, DeviceUnavailable if the GPU is missing,
    Unavailable if it is in a Milvus that does not answer.
    """
    if spec.kind == "Exact" and device == "cuda":
        from retrieval.engine.index.gpu_index import GpuIndex

        return _checked(GpuIndex.load(path, dimension=dimension, n_items=n_items), path, spec)
    if spec.kind == "Exact":
        from retrieval.engine.index.exact_index import ExactIndex

        return _checked(ExactIndex.load(path, dimension=dimension, n_items=n_items), path, spec)
    if spec.kind == "milvus":
        from retrieval.engine.index.milvus_index import MilvusIndex

        return MilvusIndex.load(path, spec, dimension=dimension, n_items=n_items)
    from retrieval.engine.index.faiss_index import FaissIndex

    return FaissIndex.load(path, spec, dimension=dimension, n_items=n_items)


def _checked(index: Index, path: Path, spec: IndexSpec) -> Index:
    """Return the index. Raises CorruptArtifact if it is of another kind: its scores would be those of other vectors."""
    if index.spec != spec:
        raise CorruptArtifact(f"index {path}: expected {spec}, found {index.spec}; reindex the catalogue")
    return index


def lies_in_database(spec: IndexSpec) -> bool:
    """Return True if the file of an index is a pointer: the vectors lie in a database, which is told what is live."""
    return spec.kind == "milvus"


def check_place(spec: IndexSpec) -> None:
    """Raise InvalidInput if the index would lie in a database that the settings do not name."""
    if lies_in_database(spec):
        MilvusAddress.parse(spec.uri).check_allowed()


def publish_index(path: Path, spec: IndexSpec) -> None:
    """Make the index in a database the one that others find there by its name. Raises Unavailable, CorruptArtifact."""
    from retrieval.engine.index.milvus_index import MilvusIndex

    MilvusIndex.named_in(path, spec).publish()


def remove_index(path: Path, spec: IndexSpec) -> None:
    """Remove the vectors of an index from its database, if they are there. Raises Unavailable, CorruptArtifact."""
    from retrieval.engine.index.milvus_index import MilvusIndex

    MilvusIndex.named_in(path, spec).remove()


def exact_hits(vectors: NDArray[np.float32], queries: NDArray[np.float32], threshold: float) -> list[Hits]:
    """Return the hits of a complete search, with which approximate indexes are compared. Costs q * n * D."""
    return build_index(vectors, IndexSpec(kind="Flat")).above(queries, threshold)


def warm() -> None:
    """Compile the loops of the default kind, or read them from the disk."""
    from retrieval.engine.index.exact_index import warm as warm_exact

    warm_exact()
