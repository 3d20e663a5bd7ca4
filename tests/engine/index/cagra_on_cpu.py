"""A graph as FAISS copies it from a GPU, made on the CPU: the links of the lowest level are written into it."""

from __future__ import annotations

from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from retrieval.engine.index.spec import IndexSpec

library: Any = faiss


def cagra_on_cpu(vectors: NDArray[np.float32], spec: IndexSpec, *, device: str) -> Any:
    """Return the graph. Takes the place of `faiss_native.cagra_on_gpu`; the nearest vectors are the links."""
    n, dimension = vectors.shape
    graph = library.IndexHNSWCagra(dimension, spec.n_links // 2, faiss.METRIC_INNER_PRODUCT)
    graph.keep_max_size_level0, graph.init_level0, graph.base_level_only = True, False, False
    graph.add(vectors)  # the upper levels
    flat = faiss.IndexFlatIP(dimension)
    flat.add(vectors)
    _, nearest = flat.search(vectors, spec.n_links + 1)
    links = library.vector_to_array(graph.hnsw.neighbors)
    for row, offset in enumerate(library.vector_to_array(graph.hnsw.offsets)[:n]):
        others = nearest[row][nearest[row] != row]
        links[offset : offset + spec.n_links] = others[: spec.n_links]
    library.copy_array_to_vector(links, graph.hnsw.neighbors)
    graph.init_level0 = True
    return graph
