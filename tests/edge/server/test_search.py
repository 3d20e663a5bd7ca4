"""The search service over a real connection: what is answered, and what bad input gets."""

from __future__ import annotations

import grpc
import numpy as np
import pytest

from retrieval.contract.bundle import Bundle
from retrieval.errors import (
    FailedPrecondition,
    InvalidInput,
)
from retrieval.v1 import search_pb2
from tests import pictures
from tests.edge.conftest import CATALOG, Running
from tests.edge.server.calls import embedding, search
from tests.photos import shot


def test_reply_says_where_it_came_from(running: Running) -> None:
    """A reply names threshold, operating point, bundle and snapshot."""
    reply = search(running, image=pictures.encoded(shot(3, 0)))
    manifest = running.store.snapshot_manifest(CATALOG, running.store.current(CATALOG))
    point = running.store.active_operating_point(manifest.bundle_digest)
    assert reply.matches[0].label == "place 3"
    assert reply.provenance.threshold == point.threshold
    assert reply.provenance.operating_point_id == point.id
    assert reply.provenance.bundle_digest == manifest.bundle_digest
    assert reply.provenance.snapshot_id == manifest.id
    assert reply.provenance.index_recall == 1


def test_no_match_is_an_empty_answer(running: Running, tiny_bundle: Bundle) -> None:
    """Nothing above the threshold is OK with an empty list, not an error."""
    away = far_from_all(running)
    request = search_pb2.SearchRequest(catalog=CATALOG, query=embedding(tiny_bundle, away))
    reply = running.client.call(running.client.search.Search, request)
    assert (len(reply.matches), reply.total_matches, reply.truncated) == (0, 0, False)


def far_from_all(running: Running) -> np.ndarray:
    """A unit vector whose largest similarity to the catalogue is smallest among a thousand random ones."""
    manifest = running.store.snapshot_manifest(CATALOG, running.store.current(CATALOG))
    gallery = np.concatenate([running.store.embeddings(key) for key in manifest.shards])
    vectors = np.random.default_rng(0).normal(size=(1000, gallery.shape[1])).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.asarray(vectors[np.argmin((vectors @ gallery.T).max(axis=1))])


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (b"", "0 bytes"),
        (b"this is text, not a picture", "expected one of JPEG"),
        (pictures.truncated_jpeg(), "truncated"),
        (pictures.huge_png(), "10000 x 10000 pixels"),
        (b"\x89PNG" + bytes(300_000), "300,004 bytes"),
    ],
    ids=["empty", "text", "truncated", "pixels", "bytes"],
)
def test_bad_image_is_an_invalid_argument(running: Running, image: bytes, message: str) -> None:
    """What is no usable image gets INVALID_ARGUMENT with what was found."""
    with pytest.raises(InvalidInput, match=message):
        search(running, image=image)


@pytest.mark.parametrize("limit", [0, -1, 10_001])
def test_limit_outside_its_range_is_an_invalid_argument(running: Running, limit: int) -> None:
    """`limit` must be 1 to 10,000."""
    with pytest.raises(InvalidInput, match="limit: expected 1 to 10000"):
        search(running, image=pictures.encoded(shot(3, 0)), limit=limit)


def test_query_without_image_or_embedding_is_an_invalid_argument(running: Running) -> None:
    """An empty query is refused."""
    with pytest.raises(InvalidInput, match="an image or an embedding"):
        search(running)


def test_embedding_of_wrong_dimension_or_with_nan_is_an_invalid_argument(running: Running, tiny_bundle: Bundle) -> None:
    """A vector must have the bundle's dimension and unit norm."""
    with pytest.raises(InvalidInput, match="expected an embedding of 32 values, found 31"):
        search(running, query=embedding(tiny_bundle, np.ones(31)))
    with pytest.raises(InvalidInput, match="norm 1, found nan"):
        search(running, query=embedding(tiny_bundle, np.full(32, np.nan)))
    with pytest.raises(InvalidInput, match="norm 1"):
        search(running, query=embedding(tiny_bundle, np.ones(32)))


def test_embedding_of_another_bundle_is_refused(running: Running, other_bundle: Bundle) -> None:
    """A vector made by another model is never compared."""
    with pytest.raises(FailedPrecondition, match=other_bundle.digest):
        search(running, query=embedding(other_bundle, np.eye(32)[0]))


def test_batch_answers_each_query_on_its_own(running: Running) -> None:
    """One bad image does not spoil the others; results come in the order of the queries."""
    queries = [
        search_pb2.Query(image=pictures.encoded(shot(1, 0))),
        search_pb2.Query(image=b"not an image"),
        search_pb2.Query(image=pictures.encoded(shot(2, 0))),
    ]
    request = search_pb2.BatchSearchRequest(catalog=CATALOG, queries=queries)
    first, second, third = running.client.call(running.client.search.BatchSearch, request).results
    assert first.response.matches[0].label == "place 1"
    assert second.error.code == grpc.StatusCode.INVALID_ARGUMENT.value[0]
    assert "expected one of JPEG" in second.error.message
    assert third.response.matches[0].label == "place 2"


@pytest.mark.parametrize("n_queries", [0, 257])
def test_batch_of_no_or_too_many_queries_is_an_invalid_argument(running: Running, n_queries: int) -> None:
    """A batch holds 1 to 256 queries."""
    request = search_pb2.BatchSearchRequest(catalog=CATALOG, queries=[search_pb2.Query(image=b"x")] * n_queries)
    with pytest.raises(InvalidInput, match="expected 1 to 256"):
        running.client.call(running.client.search.BatchSearch, request)
