"""The server as a whole: its services, its port."""

from __future__ import annotations

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from retrieval.errors import (
    FailedPrecondition,
)
from tests.edge.conftest import Running


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
