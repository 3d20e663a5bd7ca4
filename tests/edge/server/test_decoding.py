"""A hostile image costs its caller an error and the other callers nothing."""

from __future__ import annotations

import time
from collections.abc import Iterator

import grpc
import pytest

from retrieval.client import connect
from retrieval.edge.settings import load_settings
from retrieval.errors import InvalidInput
from retrieval.v1 import search_pb2, search_pb2_grpc
from tests import hostile, pictures
from tests.edge.conftest import CATALOG, Running, Serving
from tests.photos import shot

SLOW = hostile.many_scans(3500, 75)  # within every limit; half a second of a core
GOOD = pictures.encoded(shot(3, 0))


def request(image: bytes) -> search_pb2.SearchRequest:
    return search_pb2.SearchRequest(catalog=CATALOG, query=search_pb2.Query(image=image))


def serving(running: Running, **settings: object) -> Serving:
    return Serving(load_settings(state_dir=running.folder / "state", address="127.0.0.1:0", threads=2, **settings))


@pytest.mark.slow
def test_an_image_that_takes_too_long_is_an_invalid_argument(running: Running) -> None:
    with serving(running, image_cpu_s=0.2) as port, connect(f"127.0.0.1:{port}") as client:
        with pytest.raises(InvalidInput, match=r"the image needs more than 0\.2 CPU seconds to decode"):
            client.call(client.search.Search, request(SLOW))
        assert client.call(client.search.Search, request(GOOD)).matches[0].label == "place 3"


@pytest.fixture
def channels(running: Running) -> Iterator[list[grpc.Channel]]:
    """Connections of two callers to one server that decodes one large image at a time."""
    own = [("grpc.use_local_subchannel_pool", 1)]  # or both would share one connection
    with serving(running) as port:
        opened = [grpc.insecure_channel(f"127.0.0.1:{port}", options=own) for _ in range(2)]
        yield opened
        for channel in opened:
            channel.close()


@pytest.mark.slow
def test_callers_with_large_images_take_turns(channels: list[grpc.Channel]) -> None:
    """Who comes with one image waits for one of another's, not for all of them."""
    greedy, modest = (search_pb2_grpc.SearchServiceStub(channel) for channel in channels)
    modest.Search(request(GOOD))
    calls = [greedy.Search.future(request(SLOW)) for _ in range(16)]
    while not any(call.done() for call in calls):
        time.sleep(0.01)
    modest.Search(request(SLOW))
    n_done = sum(call.done() for call in calls)
    for call in calls:
        call.cancel()
    assert n_done <= 4


@pytest.mark.slow
def test_calls_that_are_cancelled_free_the_decoders(channels: list[grpc.Channel]) -> None:
    greedy, modest = (search_pb2_grpc.SearchServiceStub(channel) for channel in channels)
    started = time.monotonic()
    modest.Search(request(SLOW))
    alone = time.monotonic() - started
    calls = [greedy.Search.future(request(SLOW), timeout=0.5) for _ in range(16)]
    assert {call.code() for call in calls} <= {grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.OK}
    started = time.monotonic()
    modest.Search(request(SLOW))
    assert time.monotonic() - started < 2 * alone + 1  # not eight seconds


@pytest.mark.slow
def test_a_query_of_a_batch_that_finds_no_room_says_when_to_try_again(channels: list[grpc.Channel]) -> None:
    queries = [search_pb2.Query(image=SLOW)] * 20 + [search_pb2.Query(image=GOOD)]
    request = search_pb2.BatchSearchRequest(catalog=CATALOG, queries=queries)
    call = search_pb2_grpc.SearchServiceStub(channels[0]).BatchSearch(request, timeout=100)
    refused = [result.error for result in call.results if result.error.code]
    assert {error.code for error in refused} == {grpc.StatusCode.RESOURCE_EXHAUSTED.value[0]}
    assert {error.retry_after.ToMilliseconds() for error in refused} == {1000}
    assert call.results[-1].response.matches[0].label == "place 3"
