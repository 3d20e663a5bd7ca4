"""Callers who wait at the same time are answered by one call of the index, each as if it had asked alone."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import numpy as np
import pytest
from structlog.testing import capture_logs

from retrieval.contract.bundle import Bundle
from retrieval.engine.batcher import Batcher
from retrieval.engine.index.exact_index import ExactIndex
from retrieval.engine.index.index import Hits
from retrieval.v1 import search_pb2, search_pb2_grpc
from tests import pictures
from tests.edge.conftest import CATALOG, Running, Serving
from tests.edge.server.calls import embedding
from tests.photos import shot

TIMEOUT_S = 30.0
Call = Any  # grpc ships no types


class Gate:
    """Notes how many queries each call of the index has; holds the calls up, or breaks them, while it is told to."""

    def __init__(self) -> None:
        self.sizes: list[int] = []
        self.n_asked = 0
        self.error: Exception | None = None
        self.may_run = threading.Event()
        self.may_run.set()

    def await_(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + TIMEOUT_S
        while not condition():
            assert time.monotonic() < deadline, f"calls of the index: {self.sizes}, queries: {self.n_asked}"
            time.sleep(0.005)


@pytest.fixture
def gate(running: Running, monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    """Stands before the index of the server."""
    gate = Gate()
    above, ask = ExactIndex.above, Batcher.ask

    def noted(self: ExactIndex, queries: np.ndarray, threshold: float) -> list[Hits]:
        gate.sizes.append(len(queries))
        assert gate.may_run.wait(TIMEOUT_S)
        if gate.error is not None:
            raise gate.error
        return above(self, queries, threshold)

    async def counted(self: Batcher[Any, Any], request: Any) -> Any:
        gate.n_asked += self._name == "index"
        return await ask(self, request)

    monkeypatch.setattr(ExactIndex, "above", noted)
    monkeypatch.setattr(Batcher, "ask", counted)
    yield gate
    gate.may_run.set()


@pytest.fixture(scope="module")
def stub(running: Running) -> Iterator[search_pb2_grpc.SearchServiceStub]:
    """A connection to a server that searches on one thread."""
    settings = running.settings.model_copy(update={"threads": 1})
    with Serving(settings) as port, grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield search_pb2_grpc.SearchServiceStub(channel)


@pytest.fixture
def queries(running: Running, tiny_bundle: Bundle) -> list[search_pb2.Query]:
    """Images, embeddings of the catalogue, and a vector that finds nothing."""
    manifest = running.store.snapshot_manifest(CATALOG, running.store.current(CATALOG))
    gallery = np.concatenate([running.store.embeddings(key) for key in manifest.shards])
    asked = [search_pb2.Query(image=pictures.encoded(shot(number, 0))) for number in range(4)]
    asked += [embedding(tiny_bundle, row) for row in gallery[::11]]
    return [*asked, embedding(tiny_bundle, -gallery[0])]


def request(query: search_pb2.Query) -> search_pb2.SearchRequest:
    return search_pb2.SearchRequest(catalog=CATALOG, query=query)


def held_up(stub: search_pb2_grpc.SearchServiceStub, gate: Gate, query: search_pb2.Query) -> Call:
    """A call that occupies the thread: what follows must wait."""
    gate.may_run.clear()
    call = stub.Search.future(request(query), timeout=TIMEOUT_S)
    gate.await_(lambda: gate.sizes == [1])
    return call


def test_callers_who_wait_share_a_call_and_get_what_each_gets_alone(
    stub: search_pb2_grpc.SearchServiceStub, gate: Gate, queries: list[search_pb2.Query]
) -> None:
    """By image, by embedding and in a batch request: the replies are equal in every bit."""
    alone = [stub.Search(request(query)) for query in queries]
    assert gate.sizes == [1] * len(queries), "a single caller waits for nobody"
    assert {bool(reply.matches) for reply in alone} == {True, False}

    gate.sizes.clear()
    gate.n_asked = 0
    first = held_up(stub, gate, queries[5])
    calls = [stub.Search.future(request(query), timeout=TIMEOUT_S) for query in queries]
    batch = stub.BatchSearch.future(search_pb2.BatchSearchRequest(catalog=CATALOG, queries=queries), timeout=TIMEOUT_S)
    gate.await_(lambda: gate.n_asked == 1 + 2 * len(queries))
    gate.may_run.set()
    assert [call.result() for call in calls] == alone
    assert [result.response for result in batch.result().results] == alone
    assert first.result() == alone[5]
    assert gate.sizes == [1, 2 * len(queries)]


def test_callers_who_went_away_cost_nothing(
    stub: search_pb2_grpc.SearchServiceStub, gate: Gate, queries: list[search_pb2.Query]
) -> None:
    """Neither a cancelled call nor one whose deadline is over reaches the index; the others are answered."""
    first = held_up(stub, gate, queries[5])
    staying = [stub.Search.future(request(query), timeout=TIMEOUT_S) for query in queries[:6]]
    cancelled = [stub.Search.future(request(query), timeout=TIMEOUT_S) for query in queries[:3]]
    expired = [stub.Search.future(request(query), timeout=1) for query in queries[4:6]]
    gate.await_(lambda: gate.n_asked == 1 + 11)
    for call in cancelled:
        call.cancel()
    assert [call.code() for call in expired] == [grpc.StatusCode.DEADLINE_EXCEEDED] * 2
    time.sleep(0.2)  # until the server knows
    gate.may_run.set()
    assert {call.code() for call in (first, *staying)} == {grpc.StatusCode.OK}
    assert {call.code() for call in cancelled} == {grpc.StatusCode.CANCELLED}
    assert gate.sizes == [1, 6]


def test_a_batch_that_fails_fails_for_all_its_callers_and_for_nobody_later(
    stub: search_pb2_grpc.SearchServiceStub, gate: Gate, queries: list[search_pb2.Query]
) -> None:
    """None hangs, and none learns more than a request id."""
    first = held_up(stub, gate, queries[5])
    calls = [stub.Search.future(request(query), timeout=TIMEOUT_S) for query in queries[-3:]]
    gate.await_(lambda: gate.n_asked == 1 + 3)
    gate.error = KeyError("secret")
    with capture_logs() as logged:
        gate.may_run.set()
        errors = [call.exception() for call in (first, *calls)]
    assert {error.code() for error in errors} == {grpc.StatusCode.INTERNAL}
    assert [entry["event"] for entry in logged] == ["call_failed"] * 4
    assert len({error.details() for error in errors}) == len(errors), "each has its own request id"
    assert "secret" not in "".join(error.details() for error in errors)
    gate.error = None
    assert stub.Search(request(queries[0])).matches
