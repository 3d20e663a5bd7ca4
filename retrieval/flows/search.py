"""Search: finds the items of a catalogue that show the same thing as a query.

Everything in a reply comes from one snapshot and one operating point. `Searcher.refresh` decides when a new pair of
them goes live.
"""

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from operator import attrgetter

import numpy as np
from numpy.typing import NDArray

from retrieval.consistency import check_unit_rows
from retrieval.contract.bundle import Bundle
from retrieval.contract.limits import ImageLimits
from retrieval.engine.batcher import Batcher
from retrieval.engine.decoding.lanes import Decoders
from retrieval.engine.encoder import Encoder
from retrieval.engine.index.open import warm as warm_index
from retrieval.engine.live import ImageBatcher, Live, Opener
from retrieval.engine.matches import LiveQuery, SearchResult, find_matches, probe_query
from retrieval.engine.snapshot import SnapshotId
from retrieval.engine.store import Store
from retrieval.errors import (
    BundleMismatch,
    CorruptArtifact,
    InvalidEmbeddings,
    InvalidInput,
    NotFound,
    NotReady,
    Overloaded,
    RetrievalError,
    Unavailable,
    UnknownCatalog,
)

DEFAULT_LIMIT, MAX_LIMIT = 100, 10_000
_SEARCHED_TOGETHER = 64  # queries; a GPU takes as many in one pass, and a CPU gains little from more than eight
_GPU_THREADS = 2  # one waits for the GPU, which takes one search at a time, while the other describes matches


@dataclass(frozen=True, slots=True)
class QueryEmbedding:
    """A query that was embedded elsewhere, by the bundle of this digest: `values` [d] float32."""

    values: NDArray[np.float32]
    bundle_digest: str


class Searcher:
    """Answers queries from the live pair of each catalogue.

    `refresh` may run on any thread, one at a time; it replaces entries of `_live`, which queries read once each.
    """

    def __init__(
        self,
        store: Store,
        *,
        open_encoder: Callable[[Bundle], Encoder],
        limits: ImageLimits,
        max_waiting: int,
        threads: int,
        catalogs: Sequence[str] = (),
        device: str = "cpu",
    ) -> None:
        """`catalogs`: the ones to serve, or all in the store if empty. `threads`: for decoding and index search.

        device: where exact indexes search, `cpu` or `cuda`.
        """
        self._store = store
        self._open_encoder = open_encoder
        self._opener = Opener(store, self._batcher_for, device)
        self._limits = limits
        self._max_waiting = max_waiting
        self._catalogs = tuple(catalogs)
        self._n_waiting = 0
        # threads of their own: a search must not queue behind images that still have to be decoded
        self._decoders = Decoders(threads)
        self._searches: Batcher[LiveQuery, SearchResult] = Batcher(
            find_matches,
            name="index",
            max_batch=_SEARCHED_TOGETHER,
            n_threads=min(threads, _GPU_THREADS) if device == "cuda" else threads,
            group_of=attrgetter("live"),
        )
        self._live: dict[str, Live] = {}
        self._problems: dict[str, str] = {}
        self._store_problem = "the server has just started and has not read the store yet"

    def warm(self) -> None:
        """Start what decodes images and compile what searches, so that no query waits for it."""
        self._decoders.warm()
        warm_index()

    @property
    def live(self) -> dict[str, Live]:
        """The live pair of each catalogue."""
        return dict(self._live)

    async def search(
        self, catalog: str, query: bytes | QueryEmbedding, *, limit: int = DEFAULT_LIMIT, caller: str = ""
    ) -> SearchResult:
        """Find everything in the catalogue whose score against the query reaches the threshold.

        caller: who asks; callers with large images take turns. If this call is cancelled, its work ends. Raises
        InvalidInput (image, limit, vector), UnknownCatalog, NotReady, BundleMismatch, Overloaded.
        """
        if not 1 <= limit <= MAX_LIMIT:
            raise InvalidInput(f"limit: expected 1 to {MAX_LIMIT}, found {limit}")
        live = self._live_of(catalog)
        if isinstance(query, bytes):
            embedding = await self._embed(query, live, caller)
        else:
            embedding = _checked_embedding(query, live)
        return await self._searches.ask(LiveQuery(live, embedding, limit))

    def refresh(self) -> list["CatalogChange"]:
        """Read the pointers, open every new pair while the old one serves, then swap them; return the changes.

        If a pair cannot be served, the old one stays live; the same problem is reported once. After a restart the old
        one is the snapshot with the operating point that was active before another score was, see `engine/live.py`.
        Raises Unavailable if the store does not answer; queries to what is not live get that as the reason.
        """
        try:
            changes = self._refresh_all()
        except Unavailable as error:
            self._store_problem = str(error)
            raise
        self._store_problem = ""
        return changes

    def _refresh_all(self) -> list["CatalogChange"]:
        changes = []
        for catalog in self._catalogs or self._store.catalogs():
            before = self._live.get(catalog)
            try:
                changed = self._refresh_one(catalog)
            except Exception as error:  # noqa: BLE001  # whatever is wrong with one catalogue, the others go on
                if isinstance(error, Unavailable):
                    self._store_problem = str(error)  # until it is known to be the catalogue's
                    self._store.catalogs()  # raises if it is not this catalogue but the store
                problem = _as_known(error)
                if self._live.get(catalog) is not before:  # the pair of before another score was activated
                    changes.append(CatalogChange(catalog=catalog, live=self._live[catalog], problem=None))
                if self._problems.get(catalog) != str(problem):
                    self._problems[catalog] = str(problem)
                    changes.append(CatalogChange(catalog=catalog, live=None, problem=problem))
                continue
            self._problems.pop(catalog, None)
            if changed is not None:
                changes.append(CatalogChange(catalog=catalog, live=changed, problem=None))
        return changes

    def _live_of(self, catalog: str) -> Live:
        live = self._live.get(catalog)
        if live is not None:
            return live
        if catalog in self._problems:
            raise NotReady(f"catalogue {catalog!r} is not live: {self._problems[catalog]}")
        if self._store_problem:
            raise NotReady(f"catalogue {catalog!r} is not live: {self._store_problem}")
        served = ", ".join(sorted(self._live)) or "none yet; make one with `retrieval reindex`"
        raise UnknownCatalog(f"catalogue {catalog!r} is not served here; served are: {served}")

    async def _embed(self, image: bytes, live: Live, caller: str) -> NDArray[np.float32]:
        if self._n_waiting >= self._max_waiting:  # counts decoding too, which may be slower than the model
            raise Overloaded(f"{self._max_waiting} images wait to be decoded and embedded already: try again later")
        self._n_waiting += 1
        try:
            pixels = await self._decoders.prepare_for(caller, image, live.bundle.preprocessing, self._limits)
            return await live.batcher.ask(pixels)
        finally:
            self._n_waiting -= 1

    def _refresh_one(self, catalog: str) -> Live | None:
        """Swap in what is live now. If that changes meanwhile, what was live may be pruned already: start again."""
        snapshot_id = self._store.current(catalog)
        while True:
            try:
                return self._open_if_new(catalog, snapshot_id)
            except (NotFound, CorruptArtifact):
                before, snapshot_id = snapshot_id, self._store.current(catalog)
                if before == snapshot_id:
                    raise

    def _open_if_new(self, catalog: str, snapshot_id: SnapshotId) -> Live | None:
        old = self._live.get(catalog)
        manifest = self._store.snapshot_manifest(catalog, snapshot_id)
        active = self._store.active_id(manifest.bundle_digest)
        if old is not None and old.key == (snapshot_id, active):
            return None
        try:
            new = self._opener.live(catalog, snapshot_id)
        except BundleMismatch:
            if old is None:  # after a restart; otherwise the old pair goes on
                with contextlib.suppress(RetrievalError):
                    self._swap_in(catalog, self._opener.last_live(catalog, snapshot_id))
            raise
        return self._swap_in(catalog, new)

    def _swap_in(self, catalog: str, new: Live) -> Live:
        find_matches([probe_query(new)])  # touches every page before the first query does
        self._live[catalog] = new
        return new

    def _batcher_for(self, bundle: Bundle) -> ImageBatcher:
        for live in self._live.values():
            if live.bundle.digest == bundle.digest:
                return live.batcher
        encoder = self._open_encoder(bundle)
        return Batcher(
            lambda pixels: list(encoder.embed(np.stack(pixels))),
            name="model",
            max_batch=encoder.max_batch,
            max_waiting=self._max_waiting,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class CatalogChange:
    """A catalogue that went live (`live`) or could not (`problem`)."""

    catalog: str
    live: Live | None
    problem: RetrievalError | None


def _as_known(error: Exception) -> RetrievalError:
    """Return an error of the family: the error itself, or one that names it and has it as its cause."""
    if isinstance(error, RetrievalError):
        return error
    known = RetrievalError(f"it cannot be opened, by a defect of the program: {type(error).__name__}: {error}")
    known.__cause__ = error
    return known


def _checked_embedding(query: QueryEmbedding, live: Live) -> NDArray[np.float32]:
    if query.bundle_digest != live.bundle.digest:
        raise BundleMismatch(
            f"the embedding was made by bundle {query.bundle_digest or '(none stated)'}, live is {live.bundle.digest}"
        )
    if query.values.shape != (live.bundle.dimension,):
        raise InvalidEmbeddings(
            f"expected an embedding of {live.bundle.dimension} values, found {query.values.size} "
            f"in shape {query.values.shape}"
        )
    check_unit_rows(query.values[None, :], "the query's embedding")
    return query.values
