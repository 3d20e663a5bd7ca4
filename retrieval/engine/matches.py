"""Answers queries from the live pair of a catalogue: what the index finds, with the item and the numbers of each match.

`flows/search.py` decides which pair is live, and which queries are asked together.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from retrieval.contract.manifest import Item
from retrieval.engine.index.index import Hits, Index
from retrieval.engine.live import Live

Vectors = NDArray[np.float32]

_FIRST_QUERIES = 4  # of a batch: they show how many hits a query has
_HITS_AT_ONCE = 1 << 22  # an index needs up to 40 bytes for a hit while it searches: 160 MiB


@dataclass(frozen=True, slots=True, kw_only=True)
class Match:
    """One accepted item: `score` the number that the threshold was applied to, `similarity` the cosine behind it."""

    item: Item
    similarity: float
    score: float
    probability: float


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchResult:
    """Accepted items, best first; `n_total` also counts those that the limit cut off."""

    matches: tuple[Match, ...]
    n_total: int
    live: Live


@dataclass(frozen=True, slots=True, eq=False)
class LiveQuery:
    """An embedding [d] float32 that the live bundle made, and how many of its matches are described."""

    live: Live
    embedding: Vectors
    limit: int


def find_matches(queries: Sequence[LiveQuery]) -> list[SearchResult]:
    """Answer queries to the same live pair with one call of its index, or with a few if they have very many hits.

    Each result is bit-identical to that of the query alone.
    """
    live = queries[0].live
    # A matrix product of several rows is rounded otherwise than that of one: each query is made on its own.
    made = [live.score.query_vectors_and_densities(query.embedding[None, :]) for query in queries]
    vectors = np.concatenate([vector for vector, _ in made])
    found = _found(live.snapshot.index, vectors, live.point.threshold)
    return [
        _described(live, hits, float(densities[0]), query.limit)
        for query, (_, densities), hits in zip(queries, made, found, strict=True)
    ]


def probe_query(live: Live) -> LiveQuery:
    """Return a query with an embedding that the live bundle made itself, for its best match."""
    embedding: Vectors = live.bundle.probe()[1][0]
    return LiveQuery(live, embedding, 1)


def _found(index: Index, vectors: Vectors, threshold: float) -> Iterator[Hits]:
    """Yield the hits of each query. How many are asked for at once depends on the hits of those before."""
    start, size = 0, max(_FIRST_QUERIES, _HITS_AT_ONCE // index.n_items)
    most = 1
    while start < len(vectors):
        found = index.above(vectors[start : start + size], threshold)
        most = max(most, *(len(hits.positions) for hits in found))
        yield from found
        start, size = start + size, max(1, _HITS_AT_ONCE // most)


def _described(live: Live, hits: Hits, density: float, limit: int) -> SearchResult:
    """Return the best `limit` of the hits with their items."""
    positions, scores = hits.positions[:limit], hits.scores[:limit]
    items = live.snapshot.items
    ranks = scores if items.offsets is None else scores + items.offsets[positions]
    similarities = live.score.similarities(ranks, density, items.densities[positions])
    numbers = np.clip(similarities, -1, 1), scores, live.point.calibrator.probability(scores)
    rows = zip(items.take(positions), *(column.tolist() for column in numbers), strict=True)
    matches = tuple(
        Match(item=item, similarity=similarity, score=score, probability=probability)
        for item, similarity, score, probability in rows
    )
    return SearchResult(matches=matches, n_total=len(hits.positions), live=live)
