"""Calls that the tests of several services make."""

from __future__ import annotations

import numpy as np

from retrieval.contract.bundle import Bundle
from retrieval.v1 import search_pb2
from tests.edge.conftest import CATALOG, Running


def search(running: Running, *, image: bytes | None = None, **fields: object) -> search_pb2.SearchResponse:
    """One search for an image, or with fields as given."""
    query = search_pb2.Query(image=image) if image is not None else search_pb2.Query()
    request = search_pb2.SearchRequest(**{"catalog": CATALOG, "query": query, **fields})  # type: ignore[arg-type]  # fields vary
    reply: search_pb2.SearchResponse = running.client.call(running.client.search.Search, request)
    return reply


def embedding(bundle: Bundle, values: np.ndarray) -> search_pb2.Query:
    return search_pb2.Query(embedding=search_pb2.Embedding(values=values.tolist(), bundle_digest=bundle.digest))
