"""The kinds of index that FAISS searches: `Flat`, `IVF` (inverted lists), `HNSW` and `CAGRA` (graphs).

FAISS finds candidates with rounded scores: float32 sums, or codes of few bits. So it is asked for a lower threshold,
and the candidates are scored again as in `ExactIndex`. The reply holds nothing below the threshold, and the kinds give
the same scores bit for bit. `faiss_slack.py` says how much lower.
"""

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from retrieval.engine.index.exact.layout import has_offset
from retrieval.engine.index.exact_scores import hits_of, lowest_score, score_pairs
from retrieval.engine.index.faiss_file import is_bare, read_bare, read_file, write_file
from retrieval.engine.index.faiss_native import (
    BLAS_BATCH,
    build_native,
    candidates_above,
    check_device,
    decoded,
    only,
    prepare,
    shape_of,
    stored_vectors,
)
from retrieval.engine.index.faiss_slack import Slack, coded_width, rotation, slack_of, turned
from retrieval.engine.index.index import Hits, check_search, check_vectors
from retrieval.engine.index.self_test import QUERIES, SelfTest, check_that_vectors_find_themselves
from retrieval.engine.index.spec import IndexSpec
from retrieval.errors import CorruptArtifact

Vectors = NDArray[np.float32]

_CHUNK = 1 << 16  # rows
_COST_OF_ONE = 4  # of scoring a row at random, in rows that a scan passes
_MANY = 0.25  # share of the rows; FAISS needs longer to skip the others than to score them
_ROWS_FOR_GRAPH = 20  # a search in a graph with n candidates costs as much as scoring about this many times n rows

_OF_A_GRAPH = (
    "FAISS has no complete range search in a graph: it ends after ef steps without a better candidate, and a match "
    "that it has not visited is missed; the lower the threshold, the more are missed"
)
_CANNOT_PROMISE = {
    "IVF": "a match in a list that is not looked at is missed",
    "codes": "a match in a list that is not looked at is missed, and one whose code is far off",
    "HNSW": _OF_A_GRAPH,
    "CAGRA": _OF_A_GRAPH,
}


class FaissIndex:
    """An immutable index in memory. Searching is safe from several threads.

    originals: the vectors [n, D] if FAISS has only codes of them, else [0, D]. turn: [D, D'], what vectors are
    multiplied with before they are coded, or [0, 0].
    """

    def __init__(self, native: faiss.Index, spec: IndexSpec, slack: Slack, originals: Vectors, turn: Vectors) -> None:
        prepare(native, spec)
        self.spec = spec
        self._native = native
        self._slack = slack
        self._turn = turn
        self._rows = originals if len(originals) else stored_vectors(native)  # None: FAISS's lists have them
        self._originals = originals
        self._d = self.dimension - (2 if all(map(has_offset, self._in_parts())) else 0)
        self.self_test: SelfTest | None = None

    @classmethod
    def build(
        cls, vectors: Vectors, spec: IndexSpec, *, device: str = "cpu", threshold: float | None = None
    ) -> "FaissIndex":
        """Build an index, see `build_index`."""
        check_vectors(vectors, vectors.shape[-1] if vectors.ndim == 2 else 0)
        check_device(device)
        spec.check_items(len(vectors))
        vectors = np.ascontiguousarray(vectors)
        turn = rotation(vectors.shape[1], spec)
        native = build_native(turned(vectors, turn), spec, device=device)
        slack = slack_of(native, spec, vectors, turn, threshold)
        index = cls(native, spec, slack, _read_only(vectors if spec.codes else vectors[:0]), turn)
        index.self_test = SelfTest.record(index, vectors, threshold)
        return index

    @classmethod
    def load(cls, path: Path, spec: IndexSpec, *, dimension: int, n_items: int) -> "FaissIndex":
        """Open an index, see `load_index`."""
        if is_bare(path):
            return cls._load_bare(path, spec, dimension=dimension, n_items=n_items)
        description, arrays, native = read_file(path)
        try:
            slack = Slack.parse(description["slack"])
            declared, originals, turn = str(description["spec"]), arrays["originals"], arrays["turn"]
        except (KeyError, TypeError, ValueError) as error:
            raise CorruptArtifact(f"index {path} cannot be read: {error}") from error
        width = coded_width(dimension, spec)
        turn_shape = (dimension, width) if spec.codes not in ("", "SQfp16") else (0, 0)
        found: list[object] = [declared, *shape_of(native), originals.shape, turn.shape, originals.dtype, turn.dtype]
        wanted: list[object] = [str(spec), n_items, width, spec.n_lists, spec.n_links]
        wanted += [(n_items if spec.codes else 0, dimension), turn_shape, np.dtype(np.float32), np.dtype(np.float32)]
        if found != wanted:
            raise CorruptArtifact(
                f"index {path}: expected {n_items} vectors of dimension {dimension} in {spec}, "
                f"found {native.ntotal} of {originals.shape[-1]} in {declared}"
            )
        index = cls(native, spec, slack, originals, np.array(turn))
        if not np.isfinite(turn).all() or not all(np.isfinite(rows).all() for rows in index._in_parts()):
            raise CorruptArtifact(f"index {path} cannot be read: it has vectors with NaN or infinity")
        index.self_test = SelfTest.read(arrays, path, dimension)
        index.self_test.check(index, path)
        return index

    @classmethod
    def _load_bare(cls, path: Path, spec: IndexSpec, *, dimension: int, n_items: int) -> "FaissIndex":
        """Open an index of an earlier version, which has no stored answers: its vectors must find themselves."""
        native = read_bare(path)
        if spec.codes or shape_of(native) != (n_items, dimension, spec.n_lists, spec.n_links):
            raise CorruptArtifact(
                f"index {path}: expected {n_items} vectors of dimension {dimension} in {spec}, "
                f"found {native.ntotal} of {native.d}"
            )
        nothing = np.empty((0, dimension), np.float32)
        index = cls(native, spec, Slack(of_norm=0, fixed=0, largest=0), nothing, np.empty((0, 0), np.float32))
        slacks = [slack_of(native, spec, rows, index._turn, None) for rows in index._in_parts()]
        index._slack = max(slacks, key=lambda slack: slack.largest)
        if not np.isfinite(index._slack.largest):
            raise CorruptArtifact(f"index {path} cannot be read: it has vectors with NaN or infinity")
        rows = np.unique(np.linspace(0, n_items - 1, QUERIES).astype(np.int64))
        vectors = decoded(native, rows) if index._rows is None else index._rows[rows]
        check_that_vectors_find_themselves(index, vectors, rows, path)
        return index

    def save(self, path: Path) -> None:
        """Write the index into a file that `load` reads. Raises OSError if the disk is full."""
        description = {"spec": str(self.spec), "slack": asdict(self._slack)}
        tests = self.self_test.arrays() if self.self_test else {}
        write_file(path, description, {"originals": self._originals, "turn": self._turn, **tests}, self._native)

    @property
    def n_items(self) -> int:
        """The number of vectors."""
        return int(self._native.ntotal)

    @property
    def dimension(self) -> int:
        """The number of columns of the vectors."""
        return int(self._originals.shape[1])

    def details(self) -> dict[str, Any]:
        """Return what the manifest records."""
        described: dict[str, Any] = {"complete": self.spec.is_exact, **self._slack.details()}
        if not self.spec.is_exact:
            coded = self.spec.codes not in ("", "SQfp16")
            described["cannot_promise"] = _CANNOT_PROMISE["codes" if coded else self.spec.kind]
        return described

    def above(self, queries: Vectors, threshold: float, allowed: NDArray[np.bool_] | None = None) -> list[Hits]:
        """Return, for each row of `queries` [q, D], what has `score >= threshold`: best first, ties by row.

        The score is that of `ExactIndex`. allowed: [n], the rows that may be found. If they are few, all of them are
        scored; if they are many, or FAISS would multiply no matrices with a filter, the others are dropped afterwards.
        """
        check_search(self, queries, threshold, allowed)
        queries = np.ascontiguousarray(queries)
        radius = self._slack.radius(lowest_score(threshold), queries)
        n_allowed = self.n_items if allowed is None else int(np.count_nonzero(allowed))
        if radius is None or (allowed is not None and n_allowed <= self._few()):
            rows = np.arange(self.n_items) if allowed is None else np.flatnonzero(allowed)
            numbers, positions = np.repeat(np.arange(len(queries)), len(rows)), np.tile(rows, len(queries))
        else:
            many = n_allowed > _MANY * self.n_items or (self.spec.kind == "Flat" and len(queries) >= BLAS_BATCH)
            chosen = None if allowed is None or many else only(self.spec, allowed)
            numbers, positions, _ = candidates_above(self._native, turned(queries, self._turn), radius, chosen)
            if allowed is not None and many:
                kept = allowed[positions]
                numbers, positions = numbers[kept], positions[kept]
        scores = self._scores(queries, numbers, positions)
        return hits_of(len(queries), numbers, positions, scores, threshold)

    def _few(self) -> int:
        """Return the number of rows that can be scored in the time of a search."""
        if self.spec.kind in ("HNSW", "CAGRA"):
            return self.spec.n_candidates * _ROWS_FOR_GRAPH
        share = self.spec.n_probes / self.spec.n_lists if self.spec.n_lists else 1
        return int(share * self.n_items / _COST_OF_ONE)

    def _scores(self, queries: Vectors, numbers: NDArray[np.int64], positions: NDArray[np.int64]) -> Vectors:
        """Return the exact score of each pair."""
        if self._rows is not None:
            return score_pairs(self._rows, queries, positions, numbers, d=self._d)
        parts = [np.empty(0, np.float32)]
        for start in range(0, len(positions), _CHUNK):
            part = slice(start, start + _CHUNK)
            rows = decoded(self._native, positions[part])
            parts.append(score_pairs(rows, queries, np.arange(len(rows)), numbers[part], d=self._d))
        return np.concatenate(parts)

    def _in_parts(self) -> Iterator[Vectors]:
        """Yield all vectors."""
        for start in range(0, self.n_items, _CHUNK):
            end = min(start + _CHUNK, self.n_items)
            yield decoded(self._native, np.arange(start, end)) if self._rows is None else self._rows[start:end]


def _read_only(vectors: Vectors) -> Vectors:
    view = vectors.view()
    view.flags.writeable = False
    return view
