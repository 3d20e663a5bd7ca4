"""An index in Milvus, for more vectors than one machine holds. Only this file uses pymilvus.

Milvus finds candidates by its own float32 scores, within a slack of the threshold. Their exact scores decide, computed
from the vectors that Milvus returns with them. So no reply holds a wrong score or one below the threshold. With the
index FLAT no match is missed; the approximate indexes of Milvus promise no completeness.

A search of Milvus returns the best matches, at most `limit` of them, and takes longer the higher the limit is. If that
many come, the limit is raised. If the largest one is not enough for a range of rows, it is searched as two halves.
Narrowing the scores by `range_filter` would take fewer calls, but it is not complete: an implementation may search for
the best first and apply the range afterwards, as milvus-lite does.
"""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from retrieval.contract.canonical import digest_array, digest_json
from retrieval.contract.documents import Count, Size, parse
from retrieval.engine.index.exact.file import map_arrays, write_arrays
from retrieval.engine.index.exact_scores import hits_of, lowest_score, own_columns, score_pairs
from retrieval.engine.index.index import Hits, check_search, check_vectors
from retrieval.engine.index.milvus_address import MilvusAddress, token
from retrieval.engine.index.self_test import SelfTest
from retrieval.engine.index.spec import IndexSpec
from retrieval.errors import CorruptArtifact, FailedPrecondition, Unavailable, ValidationFailed

if TYPE_CHECKING:
    from pymilvus import MilvusClient

Vectors = NDArray[np.float32]
Rows = range | NDArray[np.int64]

LIMIT = 16_384  # the most matches that Milvus returns for one query, and the most rows that a filter lists here
_BATCH = 64  # queries in one call
_FIRST, _GROWTH = 128, 12  # matches that a query asks for, and how many times more when it got as many
_BYTES = 32 * 1024**2  # of a call or its reply: half of what a message may have
_LISTED = 0.1  # share of the rows: with more, reading the list takes Milvus longer than the matches that it spares
_ROW, _VECTOR = "row", "vector"
_SAMPLE = 1000  # rows that are compared with the pointer when an index is opened
_TILE = 1 << 16
_TIMEOUT_S, _OPEN_TIMEOUT_S, _BUILD_TIMEOUT_S = 20.0, 120.0, 3600.0
_FORMAT = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class _Pointer:
    """The file of the index: where it is and what must be there.

    longest: the largest norm of a vector. own_columns: the number of columns that are no offset of the score.
    """

    format: int
    uri: str
    collection: str
    n_items: Size
    dimension: Size
    checksum: str
    sample: str
    longest: float
    own_columns: Count


class MilvusIndex:
    """An immutable collection of Milvus. Searching is safe from several threads."""

    def __init__(
        self, client: MilvusClient, pointer: _Pointer, spec: IndexSpec, self_test: SelfTest | None = None
    ) -> None:
        self._client = client
        self._address = MilvusAddress.parse(spec.uri)
        self._pointer = pointer
        self.spec = spec
        self.self_test = self_test

    @classmethod
    def build(cls, vectors: Vectors, spec: IndexSpec, *, threshold: float | None = None) -> MilvusIndex:
        """Store `vectors` [n, D] float32 in a new collection; `publish` makes it the one of the alias.

        Raises InvalidEmbeddings, Unavailable if Milvus is, ValidationFailed if it does not hold what it was sent.
        """
        check_vectors(vectors, vectors.shape[-1] if vectors.ndim == 2 else 0)
        address = MilvusAddress.parse(spec.uri)
        checksum = digest_json([digest_array(vectors[i : i + _TILE]) for i in range(0, len(vectors), _TILE)])
        pointer = _Pointer(
            format=_FORMAT,
            uri=address.uri,
            collection=f"{address.name}_{checksum[-12:]}_{secrets.token_hex(4)}",
            n_items=len(vectors),
            dimension=vectors.shape[1],
            checksum=checksum,
            sample=digest_array(vectors[_sampled(len(vectors))]),
            longest=max(_largest_norm(vectors[i : i + _TILE]) for i in range(0, len(vectors), _TILE)),
            own_columns=own_columns(vectors),
        )
        index = cls(_connected(address), pointer, spec)
        try:
            with _calls(address):
                index._fill(vectors)
            index._verify(ValidationFailed)
            margin = min(4 * index._slack(pointer.longest), 1.0)  # more only if norms are huge, and scores too
            index.self_test = SelfTest.record(index, vectors, threshold, margin=margin)
        except BaseException:
            with contextlib.suppress(Unavailable):
                index.remove()
            raise
        return index

    @classmethod
    def named_in(cls, path: Path, spec: IndexSpec) -> MilvusIndex:
        """Return the index that a pointer names, to publish or remove it: nothing in Milvus is verified."""
        where, address = f"index {path}", MilvusAddress.parse(spec.uri)
        description, arrays = map_arrays(path)
        pointer = parse(_Pointer, description, where)
        if (found := (pointer.format, pointer.uri)) != (_FORMAT, address.uri):
            raise CorruptArtifact(f"{where}: expected format and address {(_FORMAT, address.uri)}, found {found}")
        return cls(_connected(address), pointer, spec, SelfTest.read(arrays, path, pointer.dimension))

    @classmethod
    def load(cls, path: Path, spec: IndexSpec, *, dimension: int, n_items: int) -> MilvusIndex:
        """Open the index that a pointer names, see `load_index`. Raises Unavailable if Milvus is."""
        index = cls.named_in(path, spec)
        pointer = index._pointer
        if (found := (pointer.dimension, pointer.n_items)) != (dimension, n_items):
            raise CorruptArtifact(
                f"index {path}: expected dimension and number of items {(dimension, n_items)}, found {found}"
            )
        with _calls(index._address):
            if not index._client.has_collection(pointer.collection, timeout=_TIMEOUT_S):
                raise CorruptArtifact(
                    f"index {path}: Milvus has no collection {pointer.collection}; reindex the catalogue"
                )
            index._client.load_collection(pointer.collection, timeout=_OPEN_TIMEOUT_S)
        index._verify(CorruptArtifact)
        if index.self_test:
            index.self_test.check(index, path)
        return index

    def save(self, path: Path) -> None:
        """Write the pointer and the self-test into a file that `load` reads. Raises OSError if the disk is full."""
        write_arrays(path, asdict(self._pointer), self.self_test.arrays() if self.self_test else {})

    def publish(self) -> None:
        """Make this collection the one that the alias names: others find the newest vectors by it. One step."""
        collection, alias = self._pointer.collection, self._address.name
        with _calls(self._address):
            if self._has_alias():
                self._client.alter_alias(collection, alias, timeout=_TIMEOUT_S)
            else:
                self._client.create_alias(collection, alias, timeout=_TIMEOUT_S)

    def remove(self) -> None:
        """Drop the collection, and the alias if it still names it. Nothing happens if it is gone already."""
        collection, alias = self._pointer.collection, self._address.name
        with _calls(self._address):
            if not self._client.has_collection(collection, timeout=_TIMEOUT_S):
                return
            if self._has_alias():
                named = self._client.describe_alias(alias, timeout=_TIMEOUT_S)["collection_name"]
                if named == collection:
                    self._client.drop_alias(alias, timeout=_TIMEOUT_S)
            self._client.drop_collection(collection, timeout=_TIMEOUT_S)

    def _has_alias(self) -> bool:
        return self._address.name in self._client.list_aliases(timeout=_TIMEOUT_S)["aliases"]

    @property
    def n_items(self) -> int:
        """The number of vectors."""
        return self._pointer.n_items

    @property
    def dimension(self) -> int:
        """The number of columns of the vectors."""
        return self._pointer.dimension

    def details(self) -> dict[str, Any]:
        """Return what the manifest records."""
        promise = (
            {"completeness": "Milvus compares every vector; complete as far as it answers for all of its segments"}
            if self._address.is_complete
            else {"cannot_promise": f"{self._address.kind} of Milvus is approximate, so matches can be missing"}
        )
        return {
            "complete": self._address.is_complete,
            **promise,
            "milvus_index": self._address.kind,
            "collection": self._pointer.collection,
            "scores": "exact, from the vectors that Milvus returns",
        }

    def above(self, queries: Vectors, threshold: float, allowed: NDArray[np.bool_] | None = None) -> list[Hits]:
        """Return, for each row of `queries` [q, D], everything with `score >= threshold`: best first, ties by row.

        allowed: [n], the rows that may be found. Few of them are listed in the call, many are selected from its reply.
        """
        check_search(self, queries, threshold, allowed)
        rows: Rows = range(self.n_items)
        if allowed is not None and np.count_nonzero(allowed) <= min(LIMIT, _LISTED * self.n_items):
            rows = np.flatnonzero(allowed)
        hits = []
        for start in range(0, len(queries), _BATCH):
            hits += self._above(queries[start : start + _BATCH], threshold, rows)
        if allowed is None:
            return hits
        return [Hits(found.positions[kept := allowed[found.positions]], found.scores[kept]) for found in hits]

    def _above(self, queries: Vectors, threshold: float, rows: Rows) -> list[Hits]:
        """Return the hits of a batch among some rows."""
        radius = self._radius(queries, threshold)
        numbers, positions, scores = [np.empty(0, np.int64)], [np.empty(0, np.int64)], [np.empty(0, np.float32)]
        waiting = [(np.arange(len(queries)), rows, _FIRST)] if len(rows) else []
        while waiting:
            asked, part, wanted = waiting.pop()
            limit = min(wanted, len(part), self._page(len(asked)))
            for number, reply in zip(asked, self._search(queries[asked], radius, part, limit), strict=True):
                if len(reply) == limit < len(part):  # full: there may be more
                    half = len(part) // 2
                    again = [part] if limit < self._page(1) else [part[:half], part[half:]]
                    waiting += [(np.array([number]), rest, _GROWTH * limit) for rest in again]
                elif reply:
                    vectors = np.array([hit["entity"][_VECTOR] for hit in reply], np.float32)
                    own = np.zeros(len(reply), np.int64)
                    asked_one, columns = queries[number : number + 1], self._pointer.own_columns
                    scores.append(score_pairs(vectors, asked_one, np.arange(len(reply)), own, d=columns))
                    positions.append(np.array([hit[_ROW] for hit in reply], np.int64))
                    numbers.append(own + number)
        found = np.concatenate(numbers), np.concatenate(positions), np.concatenate(scores)
        return hits_of(len(queries), *found, threshold)

    def _radius(self, queries: Vectors, threshold: float) -> float:
        """Return a number below the float32 score of every match."""
        norm = _largest_norm(queries)
        largest = 2 * norm * self._pointer.longest
        lowest = float(np.clip(lowest_score(threshold), -largest, largest)) - self._slack(norm)
        return float(np.clip(lowest, -3e38, 3e38))

    def _slack(self, norm: float) -> float:
        """Return twice the error of a score of a query of this norm, and of a radius that Milvus rounds to float32."""
        largest = norm * self._pointer.longest
        return self.dimension * (largest * 2.0**-22 + 1e-37) + 4e-6 * largest

    def _page(self, n_queries: int) -> int:
        """Return the number of matches per query for which the reply is not too large."""
        return max(1, min(LIMIT, _BYTES // (n_queries * (4 * self.dimension + 32))))

    def _search(self, queries: Vectors, radius: float, rows: Rows, limit: int) -> Sequence[Sequence[Any]]:
        """Return the best matches of each query among some rows, with their vectors."""
        own = {
            name: max(value, limit) if name == "ef" else value for name, value in self._address.search_params.items()
        }
        parameters = {"metric_type": "IP", "params": {"radius": radius, **own}}  # Milvus refuses an ef below the limit
        with _calls(self._address):
            replies: Sequence[Sequence[Any]] = self._client.search(
                self._pointer.collection,
                data=list(queries),
                filter=_filter(rows, self.n_items),
                limit=limit,
                search_params=parameters,
                output_fields=[_VECTOR],
                timeout=_TIMEOUT_S,
            )
        return replies

    def _fill(self, vectors: Vectors) -> None:
        """Create the collection, store the vectors, and wait until they can be searched."""
        from pymilvus import DataType

        client, name = self._client, self._pointer.collection
        schema = client.create_schema(auto_id=False, enable_dynamic_field=False)
        schema.add_field(_ROW, DataType.INT64, is_primary=True)
        schema.add_field(_VECTOR, DataType.FLOAT_VECTOR, dim=self.dimension)
        client.create_collection(name, schema=schema, consistency_level="Strong", timeout=_TIMEOUT_S)
        step = max(1, _BYTES // 4 // (4 * self.dimension + 32))
        for start in range(0, len(vectors), step):
            part = vectors[start : start + step]
            client.insert(
                name, [{_ROW: start + i, _VECTOR: row} for i, row in enumerate(part)], timeout=_BUILD_TIMEOUT_S
            )
        client.flush(name, timeout=_BUILD_TIMEOUT_S)
        index = client.prepare_index_params()
        index.add_index(_VECTOR, index_type=self._address.kind, metric_type="IP", params=self._address.index_params)
        client.create_index(name, index, timeout=_BUILD_TIMEOUT_S)
        client.load_collection(name, timeout=_BUILD_TIMEOUT_S)

    def _verify(self, error: type[CorruptArtifact | ValidationFailed]) -> None:
        """Raise the error unless the collection has as many rows as expected, and a sample of them as expected."""
        name, rows = self._pointer.collection, _sampled(self.n_items)
        step = max(1, _BYTES // (4 * self.dimension + 32))
        with _calls(self._address):
            described = self._client.describe_collection(name, timeout=_TIMEOUT_S)
            counted = self._client.query(name, output_fields=["count(*)"], timeout=_OPEN_TIMEOUT_S)
            replies: list[Any] = []
            for start in range(0, len(rows), step):
                ids = rows[start : start + step].tolist()
                replies += self._client.get(name, ids, output_fields=[_ROW, _VECTOR], timeout=_OPEN_TIMEOUT_S)
        columns = [entry["params"].get("dim") for entry in described["fields"] if entry["name"] == _VECTOR]
        expected = ([self.dimension], self.n_items)
        if (found := ([int(n) for n in columns], counted[0]["count(*)"])) != expected:
            raise error(f"collection {name}: expected columns and vectors {expected}, Milvus has {found}")
        vectors = {reply[_ROW]: reply[_VECTOR] for reply in replies}
        sample = np.array([vectors[row] for row in rows.tolist() if row in vectors], np.float32)
        if digest_array(sample) != self._pointer.sample:
            raise error(f"collection {name}: Milvus holds other vectors than were stored: reindex the catalogue")


def _filter(rows: Rows, n: int) -> str:
    """Return the expression that selects some rows, "" for all."""
    if not isinstance(rows, range):
        return f"{_ROW} in {rows.tolist()}"
    return "" if len(rows) == n else f"{_ROW} >= {rows.start} and {_ROW} < {rows.stop}"


def _sampled(n: int) -> NDArray[np.int64]:
    """Return the rows that are compared: evenly spaced ones, at most _SAMPLE."""
    return np.linspace(0, n - 1, min(n, _SAMPLE)).astype(np.int64)


def _largest_norm(vectors: Vectors) -> float:
    return float(np.linalg.norm(vectors.astype(np.float64), axis=1).max())


def _connected(address: MilvusAddress) -> MilvusClient:
    """Connect to Milvus. Raises FailedPrecondition without pymilvus, InvalidInput if this server is not allowed.

    Raises Unavailable if Milvus does not answer.
    """
    address.check_allowed()
    try:
        from pymilvus import MilvusClient
    except ImportError as error:
        raise FailedPrecondition("an index in Milvus needs pymilvus: install the extra `milvus`") from error
    with _calls(address):
        return MilvusClient(uri=address.server, token=token(), db_name=address.database, timeout=_TIMEOUT_S)


@contextlib.contextmanager
def _calls(address: MilvusAddress) -> Iterator[None]:
    """Turn what Milvus answers in place of a result into Unavailable.

    pymilvus passes some errors of gRPC on as they are, such as a call that took too long.
    """
    import grpc
    from pymilvus import MilvusException

    try:
        yield
    except (MilvusException, grpc.RpcError) as error:
        raise Unavailable(
            f"Milvus at {address.uri} did not answer as expected: {getattr(error, 'message', '') or error}; check that "
            "it runs and that RETRIEVAL_MILVUS_TOKEN is the token for it"
        ) from error
