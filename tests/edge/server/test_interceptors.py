"""Errors over a real connection: each gets its status, a defect shows nothing."""

from __future__ import annotations

import re
import time

import grpc
import pytest
from prometheus_client import REGISTRY

from retrieval.errors import InvalidInput, NotFound, RetrievalError
from retrieval.v1 import audits_pb2, catalogs_pb2, operating_points_pb2, search_pb2
from tests import pictures
from tests.edge.conftest import CATALOG, Running
from tests.edge.server.calls import search
from tests.photos import shot


def test_unknown_names_are_not_found(running: Running) -> None:
    """Unknown catalogue, snapshot, operating point, bundle and audit each get NOT_FOUND naming them."""
    client = running.client
    listing = catalogs_pb2.ListSnapshotsRequest(catalog="nowhere")
    going_back = catalogs_pb2.RollbackRequest(catalog=CATALOG)
    going_to = catalogs_pb2.RollbackRequest(catalog=CATALOG, snapshot_id="unknown-snapshot")
    activating = operating_points_pb2.ActivateOperatingPointRequest(operating_point_id="unknown-point")
    of_bundle = operating_points_pb2.ListOperatingPointsRequest(bundle_digest="unknown-bundle")
    getting = audits_pb2.GetAuditRequest(catalog=CATALOG, audit_id="unknown-audit")
    for method, request, message in (
        (client.catalogs.ListSnapshots, listing, "nowhere"),
        (client.catalogs.Rollback, going_back, "no snapshot older"),
        (client.catalogs.Rollback, going_to, "unknown-snapshot"),
        (client.operating_points.ActivateOperatingPoint, activating, "unknown-point"),
        (client.operating_points.ListOperatingPoints, of_bundle, "unknown-bundle"),
        (client.audits.GetAudit, getting, "unknown-audit"),
    ):
        with pytest.raises(NotFound, match=message):
            client.call(method, request)
    with pytest.raises(NotFound, match="'nowhere' is not served"):
        search(running, catalog="nowhere", image=pictures.encoded(shot(3, 0)))


@pytest.mark.slow
def test_unknown_errors_leak_nothing(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    """A defect is INTERNAL with a request id; its text stays in the log."""

    def broken(*_: object) -> None:
        raise KeyError("secret path /etc/shadow")

    monkeypatch.setattr("retrieval.engine.matches._described", broken)
    with pytest.raises(RetrievalError, match=r"^INTERNAL: internal error, request id [0-9a-f]{32}") as caught:
        search(running, image=pictures.encoded(shot(3, 0)))
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("name", ["a" * 9000, "ü" * 5000, "\N{GRINNING FACE}" * 3000])
def test_long_messages_reach_the_client_with_their_status(running: Running, name: str) -> None:
    """Statuses travel in headers of at most 8 KiB, where a byte outside ASCII takes three."""
    request = catalogs_pb2.ListSnapshotsRequest(catalog=name)
    with pytest.raises(InvalidInput, match=r"^catalogue: expected 1 to 64 letters, digits, - or _, found"):
        running.client.call(running.client.catalogs.ListSnapshots, request)


def test_calls_are_counted_by_method_and_status(running: Running) -> None:
    """An operator sees the share of each status for each method."""

    def count(status: str) -> float:
        labels = {"method": "/retrieval.v1.SearchService/Search", "status": status}
        return REGISTRY.get_sample_value("retrieval_call_seconds_count", labels) or 0

    before = {status: count(status) for status in ("OK", "INVALID_ARGUMENT")}
    search(running, image=pictures.encoded(shot(3, 0)))
    with pytest.raises(InvalidInput, match="0 bytes"):
        search(running, image=b"")
    expected = {"OK": 1, "INVALID_ARGUMENT": 1}
    deadline = time.monotonic() + 10
    while {status: count(status) - n for status, n in before.items()} != expected:
        assert time.monotonic() < deadline, "a call is counted after it was answered, but not this late"
        time.sleep(0.01)


def test_labels_of_metrics_take_no_value_from_requests(running: Running) -> None:
    """Unknown catalogues, ids and methods are counted under known labels, or not at all."""
    for number in range(3):
        with pytest.raises(NotFound, match="is not served"):
            search(running, catalog=f"catalogue-{number}", image=pictures.encoded(shot(3, 0)))
        with grpc.insecure_channel(running.address) as channel:
            unknown = channel.unary_unary(f"/retrieval.v1.SearchService/Method{number}")
            with pytest.raises(grpc.RpcError, match="UNIMPLEMENTED"):
                unknown(b"")
    labels = [
        sample.labels
        for metric in REGISTRY.collect()
        if metric.name.startswith("retrieval_")
        for sample in metric.samples
    ]
    methods = {label["method"].rsplit("/", 1)[-1] for label in labels if "method" in label}
    assert "Search" in methods
    assert not {method for method in methods if method.startswith("Method")}
    assert not {label["catalog"] for label in labels if label.get("catalog", "").startswith("catalogue-")}
    assert {name for label in labels for name in label} <= {"method", "status", "catalog", "le"}


def test_a_defect_in_one_query_of_a_batch_leaks_nothing(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is INTERNAL in the result of its query, with a request id and nothing else."""

    def broken(*_: object) -> None:
        raise KeyError("secret path /etc/shadow")

    monkeypatch.setattr("retrieval.engine.matches._described", broken)
    queries = [search_pb2.Query(image=pictures.encoded(shot(3, 0))), search_pb2.Query(image=b"no picture")]
    request = search_pb2.BatchSearchRequest(catalog=CATALOG, queries=queries)
    defect, refused = running.client.call(running.client.search.BatchSearch, request).results
    assert defect.error.code == grpc.StatusCode.INTERNAL.value[0]
    assert re.fullmatch(r"internal error, request id [0-9a-f]{32}: see the server's log", defect.error.message)
    assert refused.error.code == grpc.StatusCode.INVALID_ARGUMENT.value[0]
