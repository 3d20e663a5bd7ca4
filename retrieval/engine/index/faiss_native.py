"""Makes the objects of FAISS that a spec declares, and reads the vectors out of them."""

from typing import Any, cast

import faiss
import numpy as np
from numpy.typing import NDArray

from retrieval.engine.index.spec import IndexSpec
from retrieval.errors import DeviceUnavailable

Vectors = NDArray[np.float32]
library: Any = faiss  # for what its stubs forget

BLAS_BATCH = 16  # query batches from this size on use matrix products, see `prepare`
_ANY_NUMBER = 1 << 30
_BUILD_CANDIDATES = 200  # of HNSW: FAISS's 40 is too few for recalls near 1


def n_gpus() -> int:
    """Return the number of GPUs that FAISS can use; 0 with the CPU build."""
    return int(faiss.get_num_gpus()) if hasattr(faiss, "StandardGpuResources") else 0


def check_device(device: str) -> None:
    """Raise DeviceUnavailable if a GPU is wanted and FAISS sees none."""
    if device == "cuda" and not n_gpus():
        raise DeviceUnavailable("device=cuda was requested, but FAISS sees no GPU: install the `gpu` extra or use cpu")


def build_native(vectors: Vectors, spec: IndexSpec, *, device: str) -> faiss.Index:
    """Return the index of FAISS over these vectors."""
    dimension = vectors.shape[1]
    flat = faiss.IndexFlatIP(dimension)
    if spec.kind == "Flat":
        flat.add(vectors)
        return flat
    if spec.kind == "HNSW":
        graph = faiss.IndexHNSWFlat(dimension, spec.n_links, faiss.METRIC_INNER_PRODUCT)
        graph.hnsw.efConstruction = max(_BUILD_CANDIDATES, spec.n_links)
        graph.add(vectors)
        return graph
    if spec.kind == "CAGRA":
        return cagra_on_gpu(vectors, spec, device=device)
    # np: no polysemous codes, which take most of the time of training and are not used here
    codes = f"{spec.codes}np" if spec.n_code_bytes else spec.codes or "Flat"
    native = library.index_factory(dimension, f"IVF{spec.n_lists},{codes}", faiss.METRIC_INNER_PRODUCT)
    if device == "cuda":
        native.clustering_index = faiss.index_cpu_to_all_gpus(flat)
    native.train(vectors)
    native.clustering_index = None
    native.add(vectors)
    return cast(faiss.Index, native)


def cagra_on_gpu(vectors: Vectors, spec: IndexSpec, *, device: str) -> faiss.Index:
    """Return a graph that is built on the GPU and searched on the CPU. Raises DeviceUnavailable."""
    if device != "cuda":
        raise DeviceUnavailable(f"index {spec} is built on a GPU, and device=cuda was not requested: use HNSW on a CPU")
    check_device(device)
    if not hasattr(library, "GpuIndexCagra"):
        raise DeviceUnavailable(
            f"index {spec}: this FAISS was built without cuVS: install `faiss-gpu-cuvs` in place of `faiss-gpu`"
        )
    config = library.GpuIndexCagraConfig()
    config.graph_degree, config.intermediate_graph_degree = spec.n_links, 2 * spec.n_links
    graph = library.IndexHNSWCagra()
    graph.base_level_only = False  # a range search enters the graph through its upper levels
    try:
        resources, dimension = library.StandardGpuResources(), vectors.shape[1]
        on_gpu = library.GpuIndexCagra(resources, dimension, faiss.METRIC_INNER_PRODUCT, config)
        on_gpu.train(vectors)
        on_gpu.copyTo(graph)
    except RuntimeError as error:
        raise DeviceUnavailable(f"index {spec} cannot be built on the GPU, perhaps it has no room: {error}") from error
    return cast(faiss.Index, graph)


def shape_of(native: faiss.Index) -> tuple[int, int, int, int]:
    """Return the number of vectors, their dimension, and the numbers of lists and of links."""
    graph = cast(Any, native)
    n_lists = native.nlist if isinstance(native, faiss.IndexIVF) else 0
    n_links = 0
    if isinstance(native, faiss.IndexHNSW):  # CAGRA counts the links of the lowest level, which are twice as many
        n_links = graph.hnsw.nb_neighbors(0 if isinstance(native, library.IndexHNSWCagra) else 1)
    return int(native.ntotal), int(native.d), int(n_lists), int(n_links)


def prepare(native: faiss.Index, spec: IndexSpec) -> None:
    """Set how the index is searched."""
    if isinstance(native, faiss.IndexIVF):
        native.nprobe = spec.n_probes
    if isinstance(native, faiss.IndexHNSW):
        native.hnsw.efSearch = spec.n_candidates
    # Since 1.15 FAISS multiplies matrices only from n * d on: make it do so for smaller batches too.
    faiss.cvar.distance_compute_blas_threshold = BLAS_BATCH * native.d


def stored_vectors(native: faiss.Index) -> Vectors | None:
    """Return the vectors [n, D] that the index stores in their order, without a copy; None for lists."""
    if isinstance(native, faiss.IndexHNSW):
        native = faiss.downcast_index(native.storage)
    if not isinstance(native, faiss.IndexFlat):
        return None
    rows: Vectors = faiss.rev_swig_ptr(native.get_xb(), native.ntotal * native.d).reshape(native.ntotal, native.d)
    rows.flags.writeable = False
    return rows


def decoded(native: faiss.Index, rows: NDArray[np.int64]) -> Vectors:
    """Return the vectors of these rows as the lists store them."""
    lists = cast(Any, native)
    if lists.direct_map.type != library.DirectMap.Array:
        lists.make_direct_map()
    vectors: Vectors = lists.reconstruct_batch(rows)
    vectors.flags.writeable = False
    return vectors


def forget_places(native: faiss.Index) -> None:
    """Free what `decoded` needs to find rows in the lists."""
    cast(Any, native).set_direct_map_type(library.DirectMap.NoMap)


def only(spec: IndexSpec, allowed: NDArray[np.bool_]) -> Any:
    """Return FAISS's parameters of a search in some rows."""
    selector = library.IDSelectorBitmap(np.packbits(allowed, bitorder="little"))
    if spec.kind in ("HNSW", "CAGRA"):
        return library.SearchParametersHNSW(sel=selector, efSearch=spec.n_candidates)
    if spec.codes == "RaBitQ":
        return library.IVFRaBitQSearchParameters(sel=selector, nprobe=spec.n_probes)
    if spec.kind == "IVF":
        return library.SearchParametersIVF(sel=selector, nprobe=spec.n_probes)
    return library.SearchParameters(sel=selector)


def candidates_above(
    native: faiss.Index, queries: Vectors, radius: float, chosen: Any
) -> tuple[NDArray[np.int64], NDArray[np.int64], Vectors]:
    """Return the query, the position and the rounded score of what FAISS finds above `radius`, ordered by query.

    Calls the compiled method itself, because `faiss.contrib.torch_utils`, which pytorch-metric-learning imports,
    replaces the method of Python by one without parameters.
    """
    parts = []
    for start in range(0, max(len(queries), 1), most := _most_at_once(native)):
        part = queries[start : start + most]
        found = faiss.RangeSearchResult(len(part))
        cast(Any, native).range_search_c(len(part), faiss.swig_ptr(part), radius, found, chosen)
        limits = faiss.rev_swig_ptr(found.lims, len(part) + 1).astype(np.int64)
        positions = faiss.rev_swig_ptr(found.labels, int(limits[-1])).copy()
        rounded = faiss.rev_swig_ptr(found.distances, int(limits[-1])).copy()
        parts.append((np.repeat(np.arange(start, start + len(part)), np.diff(limits)), positions, rounded))
    numbers, positions, rounded = map(np.concatenate, zip(*parts, strict=True))
    return numbers, positions, rounded


def _most_at_once(native: faiss.Index) -> int:
    """Return how many queries FAISS takes in one range search.

    In a graph it looks for Ctrl-C every so many queries, and then allocates its result twice, which ends the process
    (seen with FAISS 1.15).
    """
    if not isinstance(native, faiss.IndexHNSW):
        return _ANY_NUMBER
    graph = cast(Any, native).hnsw
    return int(library.InterruptCallback.get_period_hint(graph.max_level * native.d * graph.efSearch))
