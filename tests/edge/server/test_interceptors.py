"""Errors over a real connection: each gets its status, a defect shows nothing."""

from __future__ import annotations

import pytest

from retrieval.errors import (
    NotFound,
    RetrievalError,
)
from retrieval.v1 import audits_pb2, catalogs_pb2, operating_points_pb2
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


def test_unknown_errors_leak_nothing(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    """A defect is INTERNAL with a request id; its text stays in the log."""

    def broken(*_: object) -> None:
        raise KeyError("secret path /etc/shadow")

    monkeypatch.setattr("retrieval.flows.search.find_matches", broken)
    with pytest.raises(RetrievalError, match=r"^INTERNAL: internal error, request id [0-9a-f]{32}") as caught:
        search(running, image=pictures.encoded(shot(3, 0)))
    assert "secret" not in str(caught.value)
