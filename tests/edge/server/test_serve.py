"""The server as a whole: its services, its port."""

from __future__ import annotations

import socket
import threading
from dataclasses import replace

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from retrieval.client import connect
from retrieval.errors import FailedPrecondition, Unavailable
from retrieval.flows.search import Searcher
from tests import pictures
from tests.edge.conftest import CATALOG, Running, Serving
from tests.edge.server.calls import search
from tests.photos import shot


def test_standard_services_answer(running: Running) -> None:
    """Health says that searches are served, reflection names every service."""
    with grpc.insecure_channel(running.address) as channel:
        request = health_pb2.HealthCheckRequest(service="retrieval.v1.SearchService")
        assert health_pb2_grpc.HealthStub(channel).Check(request).status == health_pb2.HealthCheckResponse.SERVING
        asked = reflection_pb2.ServerReflectionRequest(list_services="")
        (reply,) = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo(iter([asked]))
    names = {service.name for service in reply.list_services_response.service}
    assert {f"retrieval.v1.{name}Service" for name in ("Search", "Catalog", "OperatingPoint", "Audit", "Job")} <= names


def test_second_server_on_the_same_port_does_not_start(running: Running) -> None:
    """A taken address is an error, not a shared port."""
    from retrieval.edge.server.serve import serve
    from retrieval.edge.settings import load_settings

    settings = load_settings(state_dir=running.folder / "state", address=running.address)
    with pytest.raises(FailedPrecondition, match="cannot be listened on"):
        serve(settings)


def test_a_server_that_compiles_its_search_is_alive_and_not_serving(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first start compiles for a while: health answers meanwhile, and a query gets the reason."""
    compiled, compiling = threading.Event(), threading.Event()

    def warm(self: Searcher) -> None:
        compiling.set()
        assert compiled.wait(30)

    monkeypatch.setattr(Searcher, "warm", warm)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{listener.getsockname()[1]}"
    serving = Serving(running.settings.model_copy(update={"address": address}))
    starting = threading.Thread(target=serving.__enter__)
    starting.start()
    try:
        assert compiling.wait(30)
        with connect(address) as client:
            assert not client.is_serving()
            with pytest.raises(Unavailable, match=f"'{CATALOG}' is not live: the server has just started"):
                search(replace(running, client=client), image=pictures.encoded(shot(3, 0)))
            compiled.set()
            starting.join(30)
            assert client.is_serving()
            assert search(replace(running, client=client), image=pictures.encoded(shot(3, 0))).matches
    finally:
        compiled.set()
        starting.join(30)
        serving.__exit__()
