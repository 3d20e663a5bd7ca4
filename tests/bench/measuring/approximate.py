"""The best approximate indexes for a threshold search, at settings that find 99 % of the matches.

IVF at several numbers of lists, with 32 and with 16 bits a value, and HNSW at several numbers of links. For each, the
least effort of a grid that reaches the recall is taken. The recall is counted on queries that are not timed later.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

Vectors = NDArray[np.float32]
Rows = NDArray[np.int32]

RECALL = 0.99
_LISTS = (0.5, 1, 2, 4)  # times the square root of the number of vectors; 8 is slower at each FAR
_PROBES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024)
_GRAPH_BATCH = 16  # FAISS 1.15 ends the process if a range search in a graph has more than some dozens of queries
_LINKS = ((16, 40), (32, 80))  # links a vector, candidates while building
_EFS = (16, 32, 64, 128, 256, 512, 1024, 2048)
_FASTEST = 2  # at each threshold, so many take part in the rounds
_ROWS_PER_LIST, _ROUNDS = 64, 8  # of k-means
_MATCHES, _FEWEST = 40_000, 40  # that a recall is counted on; queries
_MARGIN = 1e-4  # 16 bits a value change a cosine of 128 columns by about 2e-5
_TILE = 1 << 16


@dataclass(frozen=True, slots=True, eq=False)
class Candidate:
    """An index of FAISS that is searched as it is fastest.

    margin: how far below the threshold it is asked, so that its 16 bits lose no match at the threshold.
    """

    name: str
    index: faiss.Index
    margin: float = 0.0

    @property
    def efforts(self) -> Sequence[int]:
        """The settings to try, from fast to thorough."""
        if isinstance(self.index, faiss.IndexHNSW):
            return _EFS
        return [probes for probes in _PROBES if probes <= self.index.nlist]

    def prepared(self, vectors: Vectors) -> Vectors:
        """Return the vectors with as many columns as the index has: those added are 0."""
        added = self.index.d - vectors.shape[1]
        return np.ascontiguousarray(np.pad(vectors, ((0, 0), (0, added)))) if added else vectors

    def above(
        self, prepared: Vectors, threshold: float, effort: int
    ) -> tuple[NDArray[Any], Vectors, NDArray[np.int64]]:
        """Return what FAISS finds: where each query ends, the scores, the rows."""
        if isinstance(self.index, faiss.IndexIVF):
            self.index.nprobe = effort
            return self.index.range_search(prepared, threshold - self.margin)
        self.index.hnsw.efSearch = effort
        parts = [
            self.index.range_search(prepared[start : start + _GRAPH_BATCH], threshold)
            for start in range(0, len(prepared), _GRAPH_BATCH)
        ]
        sizes = np.concatenate([np.diff(ends.astype(np.int64)) for ends, _, _ in parts])
        ends = np.concatenate([[0], np.cumsum(sizes)])
        return ends, *(np.concatenate([part[which] for part in parts]) for which in (1, 2))


@dataclass(frozen=True, slots=True, eq=False)
class Opponent:
    """A candidate at the least effort that reaches the recall, at one threshold; seconds: CPU of a single query."""

    candidate: Candidate
    threshold: float
    effort: int
    recall: float
    seconds: float

    @property
    def name(self) -> str:
        """The candidate's."""
        return self.candidate.name

    def search(self, prepared: Vectors) -> object:
        """Find everything above the threshold."""
        return self.candidate.above(prepared, self.threshold, self.effort)


def fastest_approximate(
    queries: Vectors,
    truths: Mapping[float, Sequence[Rows]],
    candidates: Iterable[Candidate],
    show: Callable[[str], None],
) -> dict[float, list[Opponent]]:
    """Return the fastest at each threshold, best first.

    queries: those that the recall is counted on; truths: by threshold, the rows that match each of them.
    """
    best: dict[float, list[Opponent]] = {threshold: [] for threshold in truths}
    for candidate in candidates:
        shown = []
        for threshold, wanted in truths.items():
            found = _least_effort(candidate, queries, threshold, wanted)
            shown.append("none" if found is None else f"{found.effort} ({found.seconds * 1e6:.0f} us)")
            if found is not None:
                best[threshold] = sorted([*best[threshold], found], key=lambda each: each.seconds)[:_FASTEST]
        show(f"{candidate.name}, least effort at recall {RECALL}: {', '.join(shown)}")
    return best


def candidates_of(gallery: Vectors, *, quick: bool, hnsw: bool) -> Iterator[Candidate]:
    """Build the indexes one by one: only the fastest stay in memory. quick: one number of lists.

    The centres have length 1. Centres that are means are slower at each FAR, also where the vectors have an offset.
    """
    for factor in (2,) if quick else _LISTS:
        n_lists = round(factor * math.sqrt(len(gallery)))
        centres = _centres(gallery, n_lists)
        for codes in ("Flat", "SQfp16"):
            yield _ivf(f"IVF{n_lists},{codes}", gallery, centres, in_16_bits=codes == "SQfp16")
    for links, considered in _LINKS if hnsw else ():
        graph = faiss.IndexHNSWFlat(gallery.shape[1], links, faiss.METRIC_INNER_PRODUCT)
        graph.hnsw.efConstruction = considered
        candidate = Candidate(f"HNSW{links}", graph)
        _add(candidate, gallery)
        yield candidate


def _centres(gallery: Vectors, n_lists: int) -> Vectors:
    means = faiss.Kmeans(
        gallery.shape[1],
        n_lists,
        niter=_ROUNDS,
        seed=1,
        spherical=True,
        max_points_per_centroid=_ROWS_PER_LIST,
        min_points_per_centroid=1,
    )
    rows = np.random.default_rng(0).permutation(len(gallery))[: n_lists * _ROWS_PER_LIST]
    means.train(gallery[rows])
    return np.asarray(means.centroids, np.float32)


def _ivf(name: str, gallery: Vectors, centres: Vectors, *, in_16_bits: bool) -> Candidate:
    """Build lists around the centres. FAISS reads 16-bit codes fast only if their number is a multiple of 16."""
    metric = faiss.METRIC_INNER_PRODUCT
    n_lists, d = centres.shape
    padded = -(-d // 16) * 16 if in_16_bits else d
    quantiser = faiss.IndexFlatIP(padded)
    quantiser.add(np.pad(centres, ((0, 0), (0, padded - d))))
    if in_16_bits:
        kind = faiss.ScalarQuantizer.QT_fp16
        index = faiss.IndexIVFScalarQuantizer(quantiser, padded, n_lists, kind, metric, False)
    else:
        index = faiss.IndexIVFFlat(quantiser, padded, n_lists, metric)
    index.own_fields = True
    quantiser.this.disown()
    index.is_trained = True
    longest = float(np.linalg.norm(gallery[:_TILE], axis=1).max())
    candidate = Candidate(name, index, _MARGIN * longest if in_16_bits else 0.0)
    _add(candidate, gallery)
    return candidate


def _add(candidate: Candidate, gallery: Vectors) -> None:
    for start in range(0, len(gallery), _TILE):
        candidate.index.add(candidate.prepared(gallery[start : start + _TILE]))


def _least_effort(candidate: Candidate, queries: Vectors, threshold: float, wanted: Sequence[Rows]) -> Opponent | None:
    """Return the candidate at the least effort that finds enough of the matches; None if none does."""
    n_matches = np.cumsum([len(rows) for rows in wanted])
    n_queries = max(_FEWEST, int(np.searchsorted(n_matches, _MATCHES)) + 1)
    asked, wanted, efforts = candidate.prepared(queries[:n_queries]), wanted[:n_queries], candidate.efforts
    low, high = 0, len(efforts)
    recalls: dict[int, float] = {}
    while low < high:  # recall grows with the effort
        middle = (low + high) // 2
        ends, _, rows = candidate.above(asked, threshold, efforts[middle])
        recalls[middle] = _recall(ends.astype(np.int64), rows, wanted)
        low, high = (low, middle) if recalls[middle] >= RECALL else (middle + 1, high)
    if low == len(efforts):
        return None
    started = time.thread_time()
    for number in range(len(asked)):
        candidate.above(asked[number : number + 1], threshold, efforts[low])
    return Opponent(candidate, threshold, efforts[low], recalls[low], (time.thread_time() - started) / len(asked))


def _recall(ends: NDArray[np.int64], rows: NDArray[np.int64], wanted: Sequence[Rows]) -> float:
    found = sum(int(np.isin(each, rows[ends[i] : ends[i + 1]]).sum()) for i, each in enumerate(wanted))
    return found / max(1, sum(len(each) for each in wanted))
