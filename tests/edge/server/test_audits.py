"""The audit service over a real connection: what is refused before it is queued, and finished audits."""

from __future__ import annotations

from concurrent.futures import Executor
from pathlib import Path

import pytest

from retrieval.contract.operating_point import OperatingPoint
from retrieval.contract.score import Score
from retrieval.edge.server.messages import audit_message
from retrieval.engine.encoder import Encoder
from retrieval.errors import FailedPrecondition, InvalidInput, NotFound
from retrieval.flows.audit import AuditLimits, AuditReport, AuditRequest, run_audit
from retrieval.v1 import audits_pb2
from tests.conftest import CREATED_AT
from tests.edge.conftest import CATALOG, Running
from tests.stores import embedder_of


@pytest.fixture(scope="module")
def audited(running: Running, tiny_encoder: Encoder, pool: Executor) -> list[AuditReport]:
    """Two finished audits of the catalogue, the older one first."""
    request = AuditRequest(catalog=CATALOG, manifest_uri=str(running.folder / "images" / "manifest.csv"))
    return [
        run_audit(
            running.store,
            request,
            audit_id=audit_id,
            created_at=created_at,
            embedder=embedder_of(tiny_encoder, pool),
            limits=AuditLimits(),
            progress=lambda done, total: None,
            render=lambda report: report.id,
        )
        for audit_id, created_at in (("older-audit", CREATED_AT), ("newer-audit", "2027-01-01T00:00:00+00:00"))
    ]


def test_finished_audits_are_listed_newest_first(running: Running, audited: list[AuditReport]) -> None:
    client = running.client
    listed = client.call(client.audits.ListAudits, audits_pb2.ListAuditsRequest(catalog=CATALOG)).audits
    assert [audit.id for audit in listed] == ["newer-audit", "older-audit"]
    older = client.call(client.audits.GetAudit, audits_pb2.GetAuditRequest(catalog=CATALOG, audit_id="olde"))
    assert older == listed[1]
    (report, _) = audited
    assert (older.far, older.tar, older.n_images) == (report.far, report.tar, report.n_images)
    assert (older.verdict == audits_pb2.VERDICT_PASSED) == report.passed
    assert (older.n_rounds, older.HasField("stranger_far"), older.HasField("stranger_far_promised")) == (
        0,
        False,
        False,
    )
    assert Path(older.report_html_uri.removeprefix("file://")).read_text() == "older-audit"


def test_an_audit_of_searches_has_the_rate_of_strangers_and_its_promise(
    running: Running, audited: list[AuditReport]
) -> None:
    """Read from the stored report, like every other figure."""
    stranger = {"n_rounds": 5, "stranger_far": 0.004, "stranger_far_promised": {"low": 0.001, "high": 0.01}}
    found = audit_message(running.store, audited[0].to_json() | stranger)
    assert (found.n_rounds, found.stranger_far) == (5, 0.004)
    assert (found.stranger_far_promised.low, found.stranger_far_promised.high) == (0.001, 0.01)


def test_unknown_catalogues_have_no_audits(running: Running) -> None:
    client = running.client
    with pytest.raises(NotFound, match="catalogue 'other' has no live snapshot"):
        client.call(client.audits.ListAudits, audits_pb2.ListAuditsRequest(catalog="other"))
    with pytest.raises(NotFound, match="catalogue 'other' has no live snapshot"):
        client.call(client.audits.StartAudit, audits_pb2.StartAuditRequest(catalog="other", manifest_uri="images"))


@pytest.mark.parametrize("name", ["", "../etc"])
def test_catalogue_names_cannot_leave_the_store(running: Running, name: str) -> None:
    client = running.client
    with pytest.raises(InvalidInput, match="catalogue: expected 1 to 64 letters"):
        client.call(client.audits.GetAudit, audits_pb2.GetAuditRequest(catalog=name, audit_id="audit"))
    with pytest.raises(InvalidInput, match="catalogue: expected 1 to 64 letters"):
        client.call(client.audits.StartAudit, audits_pb2.StartAuditRequest(catalog=name, manifest_uri="images"))


def test_a_threshold_that_is_not_in_use_is_not_audited(
    running: Running, cohort_point: OperatingPoint, cohort_score: Score
) -> None:
    """An operating point with another score than the snapshot's answers no query, so an audit of it would mislead."""
    client, store, bundle = running.client, running.store, cohort_point.bundle_digest
    before = store.active_operating_point(bundle)
    store.put_score(bundle, cohort_score)
    store.put_operating_point(cohort_point)
    store.activate(bundle, cohort_point.id)
    try:
        with pytest.raises(FailedPrecondition, match="was built with score"):
            client.call(client.audits.StartAudit, audits_pb2.StartAuditRequest(catalog=CATALOG, manifest_uri="images"))
    finally:
        store.activate(bundle, before.id)
        store.objects.delete(f"bundles/{bundle}/operating_points/{cohort_point.id}.json")  # other tests list them
