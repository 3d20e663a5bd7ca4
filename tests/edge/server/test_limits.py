"""Requests and replies have bounded sizes, and a caller learns which bound it met."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import grpc
import numpy as np
import pytest
from google.protobuf import unknown_fields
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from retrieval.contract.limits import ImageLimits
from retrieval.edge.server.limits import CallsInFlight, check_reply, check_request
from retrieval.edge.server.messages import query_from
from retrieval.engine import matches
from retrieval.engine.matches import SearchResult
from retrieval.errors import InvalidInput, Overloaded, ReplyTooLarge
from retrieval.flows.search import QueryEmbedding
from retrieval.v1 import search_pb2
from tests import pictures
from tests.edge.conftest import CATALOG, Running
from tests.edge.server.calls import search
from tests.photos import shot

SEARCH, BATCH = "/retrieval.v1.SearchService/Search", "/retrieval.v1.SearchService/BatchSearch"
METHODS = [SEARCH, BATCH, "/retrieval.v1.CatalogService/StartReindex", "/retrieval.v1.JobService/GetJob"]
LIMITS = ImageLimits()


def refused(address: str, method: str, content: bytes) -> grpc.RpcError:
    """The error that a call with these bytes gets."""
    with grpc.insecure_channel(address) as channel, pytest.raises(grpc.RpcError, match="StatusCode") as caught:
        channel.unary_unary(method)(content, timeout=30)
    return caught.value


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    "content",
    [
        b"\xff",
        b"\x0a\x05ab",
        b"\x0a\x02\xff\xfe",
        b"\x0b",
        b"\x0f",
        b"\x00\x01",
        b"not a message",
        b"\x08" + b"\xff" * 11,
    ],
    ids=["varint", "truncated", "utf-8", "group", "wire type", "field 0", "text", "long number"],
)
def test_malformed_requests_are_invalid_arguments(running: Running, method: str, content: bytes) -> None:
    """Bytes that are no message are the caller's error, and no name of a class of Python is shown."""
    error = refused(running.address, method, content)
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT, error.details()
    assert error.details().startswith("request: ")
    assert "DecodeError" not in error.details()


def test_forty_million_empty_queries_cost_nothing() -> None:
    """Counts are taken before parsing, and counting stops at the first query too many."""
    content = search_pb2.BatchSearchRequest(catalog="places").SerializeToString() + b"\x12\x00" * 20_000_000
    started = time.perf_counter()
    with pytest.raises(InvalidInput, match="queries: expected 1 to 256, found more"):
        check_request(BATCH, content, LIMITS)
    assert time.perf_counter() - started < 0.1


@pytest.mark.parametrize(
    ("method", "content", "message"),
    [
        (SEARCH, bytes(22 * 2**20), "expected at most 22,020,096 bytes"),
        (METHODS[2], bytes(2**17), "expected at most 65,536 bytes"),
        (SEARCH, b"\x10\x01" * 5000, "at most 4,096 fields"),
        (SEARCH, b"\x12\x90\x4e" + b"\x10\x01" * 5000, "at most 4,096 fields"),
    ],
)
def test_every_method_has_its_own_limits(method: str, content: bytes, message: str) -> None:
    """Names and ids need few bytes, images need many; the parts of a message are counted at every depth."""
    with pytest.raises(InvalidInput, match=message):
        check_request(method, content, LIMITS)


def test_an_embedding_far_larger_than_any_model_is_not_parsed() -> None:
    query = search_pb2.Query(embedding=search_pb2.Embedding(values=np.zeros(65_537, np.float32)))
    for method, request in (
        (SEARCH, search_pb2.SearchRequest(query=query)),
        (BATCH, search_pb2.BatchSearchRequest(queries=[query])),
    ):
        with pytest.raises(InvalidInput, match="values: expected at most 65,536 values, found 65,537"):
            check_request(method, request.SerializeToString(), LIMITS)


def test_full_batches_are_within_the_limits() -> None:
    values = np.ones(2048, np.float32)
    embedding = search_pb2.Query(embedding=search_pb2.Embedding(values=values, bundle_digest="a" * 64))
    check_request(
        BATCH, search_pb2.BatchSearchRequest(catalog="c", queries=[embedding] * 256).SerializeToString(), LIMITS
    )
    image = search_pb2.Query(image=bytes(200_000))
    check_request(BATCH, search_pb2.BatchSearchRequest(catalog="c", queries=[image] * 256).SerializeToString(), LIMITS)


@pytest.mark.parametrize("n_values", [0, 1, 31, 32, 511, 4095, 4096, 600_000])
def test_embeddings_keep_every_bit(n_values: int) -> None:
    """The values are read from the wire format, whatever else the message holds."""
    values = np.random.default_rng(0).normal(size=n_values).astype(np.float32)
    for extra in (b"", b"\x7a\x03abc"):  # an unknown field comes first
        packed = search_pb2.Embedding(values=values, bundle_digest="digest").SerializeToString()
        message = search_pb2.Embedding.FromString(extra + packed)
        assert bool(len(unknown_fields.UnknownFieldSet(message))) == bool(extra)
        query = query_from(search_pb2.Query(embedding=message))
        assert isinstance(query, QueryEmbedding)
        np.testing.assert_array_equal(query.values, values)


def test_a_large_embedding_is_read_fast() -> None:
    query = search_pb2.Query(embedding=search_pb2.Embedding(values=np.ones(4_000_000, np.float32)))
    started = time.perf_counter()
    query_from(query)
    assert time.perf_counter() - started < 0.2  # one by one they take most of a second


@pytest.fixture
def many_matches(monkeypatch: pytest.MonkeyPatch, running: Running) -> Callable[[int], None]:
    """Makes every query find as many matches as asked for."""
    described = matches._described

    def repeat(n: int) -> None:
        def found(*arguments: Any) -> SearchResult:
            result = described(*arguments)
            return SearchResult(matches=result.matches[:1] * n, n_total=n, live=result.live)

        monkeypatch.setattr(matches, "_described", found)

    return repeat


@pytest.mark.slow
def test_a_reply_that_a_plain_client_cannot_receive_is_answered_with_advice(
    running: Running, many_matches: Callable[[int], None]
) -> None:
    """gRPC clients refuse more than 4 MiB unless told otherwise: the server says what to do instead."""
    many_matches(1000)
    query = search_pb2.Query(image=pictures.encoded(shot(3, 0)))
    request = search_pb2.BatchSearchRequest(catalog=CATALOG, queries=[query] * 64)
    error = refused(running.address, BATCH, request.SerializeToString())
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT, error.details()
    for advice in ("4,194,304", "`limit`", "grpc.max_receive_message_length", "retrieval-max-reply-bytes"):
        assert advice in error.details()
    # the client of this package states what it accepts
    assert running.client.call(running.client.search.BatchSearch, request).ByteSize() > 4 * 2**20
    options = [("grpc.max_receive_message_length", -1)]
    with grpc.insecure_channel(running.address, options=options) as channel:
        metadata = (("retrieval-max-reply-bytes", str(2**31 - 1)),)
        assert len(channel.unary_unary(BATCH)(request.SerializeToString(), metadata=metadata)) > 4 * 2**20


def test_a_single_reply_is_checked_too(running: Running, many_matches: Callable[[int], None]) -> None:
    many_matches(60_000)
    request = search_pb2.SearchRequest(catalog=CATALOG, query=search_pb2.Query(image=pictures.encoded(shot(3, 0))))
    assert "smaller `limit`" in refused(running.address, SEARCH, request.SerializeToString()).details()


def test_the_limit_on_replies_is_inclusive() -> None:
    check_reply(100, 100)
    with pytest.raises(ReplyTooLarge, match="101 bytes or more, and this client accepts 100"):
        check_reply(101, 100)


def test_calls_in_flight_are_bounded() -> None:
    """One call is always admitted, so that no request is refused for ever."""
    calls = CallsInFlight(max_bytes=100)
    calls.enter(1000)
    with pytest.raises(Overloaded, match="hold 1,000 bytes already"):
        calls.enter(1)
    calls.leave(1000)
    for _ in range(2048):
        calls.enter(0)
    with pytest.raises(Overloaded, match="2,048 calls run already"):
        calls.enter(0)


def test_overload_says_when_to_try_again(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    """RESOURCE_EXHAUSTED carries google.rpc.RetryInfo; the client gives its delay with the error."""
    error = Overloaded("too many: try again later")
    error.retry_after_s = 2.5

    def full(*_: object) -> None:
        raise error

    monkeypatch.setattr("retrieval.engine.matches._described", full)
    request = search_pb2.SearchRequest(catalog=CATALOG, query=search_pb2.Query(image=pictures.encoded(shot(3, 0))))
    answer = refused(running.address, SEARCH, request.SerializeToString())
    status = rpc_status.from_call(answer)
    info = error_details_pb2.RetryInfo()
    assert status.details[0].Unpack(info)
    assert info.retry_delay.ToMilliseconds() == 2500
    with pytest.raises(Overloaded, match="too many") as caught:
        search(running, image=pictures.encoded(shot(3, 0)))
    assert caught.value.retry_after_s == 2.5


@pytest.mark.slow
def test_a_burst_while_the_server_is_busy_is_never_cancelled(running: Running) -> None:
    """Every call of a burst is answered, or refused as RESOURCE_EXHAUSTED; gRPC itself would cancel some."""
    request = search_pb2.SearchRequest(catalog=CATALOG).SerializeToString()
    statuses: Counter[grpc.StatusCode] = Counter()
    channels = [
        grpc.insecure_channel(running.address, options=[("grpc.use_local_subchannel_pool", 1), ("own", number)])
        for number in range(4)
    ]
    calls = [channel.unary_unary(SEARCH).future(request) for channel in channels for _ in range(1500)]
    statuses.update(call.code() for call in calls)
    for channel in channels:
        channel.close()
    assert set(statuses) <= {grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.RESOURCE_EXHAUSTED}, statuses
