"""Indexes that the GPU builds and the CPU searches: saved, opened, and measured."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

from retrieval.errors import ValidationFailed
from tests.gpu.run import NotInstalled, Run
from tests.gpu.searching import DIMENSION, clustered, threshold_for

_MATCHES = 10  # a query: half of its cluster, because approximate indexes find little far from a query


def inverted_lists(run: Run) -> dict[str, Any]:
    """An IVF index whose lists were trained on the device."""
    return built(run, f"IVF{run.size(4096, 16)},nprobe={run.size(64, 8)}", run.size(1_000_000, 2000))


def graph(run: Run) -> dict[str, Any]:
    """A CAGRA graph of the device; on the CPU, links of the nearest vectors take its place."""
    from retrieval.engine.index import faiss_native
    from tests.engine.index.cagra_on_cpu import cagra_on_cpu

    spec, n = f"CAGRA{run.size(64, 32)},ef={run.size(256, 64)}", run.size(1_000_000, 2000)
    if run.device == "cuda":
        if not hasattr(faiss_native.library, "GpuIndexCagra"):
            raise NotInstalled("this FAISS was built without cuVS: install faiss-gpu-cuvs in place of faiss-gpu")
        return built(run, spec, n)
    on_gpu = faiss_native.cagra_on_gpu
    faiss_native.cagra_on_gpu = cagra_on_cpu
    try:
        return built(run, spec, n)
    finally:
        faiss_native.cagra_on_gpu = on_gpu


def built(run: Run, text: str, n: int) -> dict[str, Any]:
    """Build an index on the device; open it on the CPU, where it must answer the same, and measure its recall.

    wrong: queries with another answer.
    """
    from retrieval.engine.index.open import build_index, load_index
    from retrieval.engine.index.recall import measure_recall
    from retrieval.engine.index.spec import IndexSpec

    vectors, spec = clustered(n), IndexSpec.parse(text)
    queries = vectors[:: n // 64]
    threshold = threshold_for(vectors, queries, _MATCHES)
    start = time.monotonic()
    index = build_index(vectors, spec, device=run.device, threshold=threshold)
    seconds = time.monotonic() - start
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "index"
        index.save(path)
        opened = load_index(path, spec, dimension=DIMENSION, n_items=n)
        n_bytes = path.stat().st_size
    pairs = zip(index.above(queries, threshold), opened.above(queries, threshold), strict=True)
    wrong = sum(first.positions.tolist() != second.positions.tolist() for first, second in pairs)
    start = time.monotonic()
    opened.above(queries, threshold)
    per_s = len(queries) / (time.monotonic() - start)
    try:
        recall = measure_recall(opened, vectors, threshold).details()
    except ValidationFailed as error:  # too low to be published, which is no fault of the device
        recall = {"refused": str(error)}
    return {
        "index": text,
        "n": n,
        "seconds_to_build": round(seconds, 1),
        "bytes_a_vector": round(n_bytes / n, 1),
        "wrong": wrong,
        "queries_per_s_on_the_cpu": round(per_s, 1),
        **recall,
    }
