"""Every conversion between messages and domain values, field by field."""

from __future__ import annotations

import json
from dataclasses import fields, replace
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

from retrieval.consistency import Interval, StrangerRate
from retrieval.contract.manifest import Item
from retrieval.contract.operating_point import OperatingPoint
from retrieval.edge.messages import operating_point_message, snapshot_message
from retrieval.edge.server import messages
from retrieval.engine.matches import Match, SearchResult
from retrieval.engine.snapshot import LabelSummary, SnapshotManifest
from retrieval.engine.store import Store
from retrieval.errors import InvalidInput
from retrieval.flows.audit import AuditRequest
from retrieval.flows.reindex import ReindexRequest
from retrieval.flows.search import DEFAULT_LIMIT, QueryEmbedding
from retrieval.v1 import audits_pb2, catalogs_pb2, search_pb2

TEXT = st.text(st.characters(codec="utf-8"), max_size=20)
COUNT = st.integers(0, 2**31 - 1)
FLOAT32 = st.floats(width=32, allow_nan=False)
TIME = st.integers(0, 4_000_000_000_000).map(lambda ms: datetime.fromtimestamp(ms / 1000, UTC))
MATCH = st.tuples(TEXT, TEXT, TEXT, st.dictionaries(TEXT, TEXT, max_size=2), FLOAT32, FLOAT32)


def time_of(text: str) -> datetime:
    return datetime.fromisoformat(text)


@given(
    catalog=TEXT, manifest_uri=TEXT, bundle_digest=TEXT.filter(bool), index_spec=TEXT.filter(bool),
    max_failed_share=st.floats(allow_nan=False),
)  # fmt: skip
def test_a_reindex_request_keeps_every_value(**values: Any) -> None:
    """What a client sets is what the flow gets, a share of 0 included; the flow checks it."""
    assert messages.reindex_request(catalogs_pb2.StartReindexRequest(**values)) == ReindexRequest(**values)


def test_unset_fields_of_a_reindex_request_take_the_defaults_of_the_flow() -> None:
    """An unset share differs from 0."""
    message = catalogs_pb2.StartReindexRequest(catalog="shop", manifest_uri="images")
    assert messages.reindex_request(message) == ReindexRequest(catalog="shop", manifest_uri="images")
    message.max_failed_share = 0
    assert messages.reindex_request(message).max_failed_share == 0


@given(catalog=TEXT, manifest_uri=TEXT, group_by=st.lists(TEXT, max_size=3), family=TEXT)
def test_an_audit_request_keeps_every_value(catalog: str, manifest_uri: str, group_by: list[str], family: str) -> None:
    """Columns keep their order."""
    message = audits_pb2.StartAuditRequest(catalog=catalog, manifest_uri=manifest_uri, group_by=group_by, family=family)
    expected = AuditRequest(catalog=catalog, manifest_uri=manifest_uri, group_by=tuple(group_by), family=family)
    assert messages.audit_request(message) == expected


@given(st.binary(max_size=50))
def test_a_query_image_is_passed_on_as_it_is(image: bytes) -> None:
    """Empty bytes are an image too: the decoder says what is wrong with it."""
    assert messages.query_from(search_pb2.Query(image=image)) == image


@given(st.lists(FLOAT32, max_size=40), TEXT)
def test_a_query_embedding_keeps_its_bits(values: list[float], digest: str) -> None:
    """float32 on the wire and behind it."""
    query = search_pb2.Query(embedding=search_pb2.Embedding(values=values, bundle_digest=digest))
    found = messages.query_from(query)
    assert isinstance(found, QueryEmbedding)
    assert found.values.dtype == np.float32
    assert found.values.tobytes() == np.array(values, dtype=np.float32).tobytes()
    assert found.bundle_digest == digest


def test_an_empty_query_is_refused() -> None:
    """Neither image nor embedding."""
    with pytest.raises(InvalidInput, match="expected an image or an embedding, found neither"):
        messages.query_from(search_pb2.Query())


@pytest.mark.parametrize("kind", [search_pb2.SearchRequest, search_pb2.BatchSearchRequest])
def test_only_an_unset_limit_takes_the_default(kind: type[Any]) -> None:
    """0 is a value that the flow refuses."""
    assert messages.limit_from(kind()) == DEFAULT_LIMIT
    assert [messages.limit_from(kind(limit=limit)) for limit in (0, -1, 7)] == [0, -1, 7]


@given(
    n_total=st.integers(0, 10),
    matches=st.lists(
        st.tuples(TEXT, TEXT, TEXT, st.dictionaries(TEXT, TEXT, max_size=2), FLOAT32, FLOAT32), max_size=5
    ),
    threshold=st.floats(allow_nan=False),
)
def test_a_result_keeps_matches_and_provenance(n_total: int, matches: list[Any], threshold: float) -> None:
    """Order is kept; `truncated` exactly if some matches are missing."""
    n_total = max(n_total, len(matches))
    live = SimpleNamespace(
        point=SimpleNamespace(threshold=threshold),
        point_id="point",
        bundle=SimpleNamespace(digest="bundle"),
        snapshot=SimpleNamespace(manifest=SimpleNamespace(id="snapshot", index_recall=0.5)),
        score=SimpleNamespace(kind="cohort"),
    )
    found = tuple(
        Match(
            item=Item(id=item_id, uri=uri, label=label, attributes=attributes),
            similarity=similarity,
            score=score,
            probability=0.25,
        )
        for item_id, uri, label, attributes, similarity, score in matches
    )
    reply = messages.search_response(SearchResult(matches=found, n_total=n_total, live=live))  # type: ignore[arg-type]  # a stand-in
    assert [(m.item_id, m.uri, m.label, dict(m.attributes), m.similarity, m.score) for m in reply.matches] == matches
    assert all(match.match_probability == 0.25 for match in reply.matches)
    assert (reply.total_matches, reply.truncated) == (n_total, n_total > len(matches))
    provenance = reply.provenance
    assert provenance.threshold == threshold
    assert (provenance.operating_point_id, provenance.bundle_digest) == ("point", "bundle")
    assert (provenance.snapshot_id, provenance.score_kind, provenance.index_recall) == ("snapshot", "cohort", 0.5)


MANIFEST = SnapshotManifest(
    id="snapshot",  # type: ignore[arg-type]
    catalog="shop",
    bundle_digest="bundle",  # type: ignore[arg-type]
    score_digest="score",  # type: ignore[arg-type]
    catalog_digest="catalog",
    index_spec="Flat",
    dimension=32,
    n_items=7,
    n_failed=2,
    failures={"a": "no picture"},
    index_recall=0.5,
    index_recall_low=0.25,
    index_recall_high=0.75,
    index_details={"complete": False},
    shards=("shard",),
    files={},
    created_at="2026-01-02T03:04:05.678+00:00",
)


@pytest.mark.parametrize("live", [True, False])
def test_a_snapshot_keeps_every_value_that_clients_see(live: bool) -> None:
    """All but its files."""
    message = snapshot_message(MANIFEST, live=live)
    for field in message.DESCRIPTOR.fields:
        if field.name not in ("created_at", "live", "failures", "problem", "passed_over", "index_details", "labels"):
            assert getattr(message, field.name) == getattr(MANIFEST, field.name), field.name
    assert dict(message.failures) == MANIFEST.failures
    assert json.loads(message.index_details) == MANIFEST.index_details
    assert message.created_at.ToDatetime(UTC) == time_of(MANIFEST.created_at)
    assert message.live == live
    assert not message.HasField("labels")


def test_a_snapshot_states_which_labels_look_wrong() -> None:
    labels = LabelSummary(n_classes=3, n_unlabelled=2, n_far=101, far_items=("a", "b"))
    message = snapshot_message(replace(MANIFEST, labels=labels), live=True).labels
    assert (message.n_classes, message.n_unlabelled, message.n_far) == (3, 2, 101)
    assert message.far_items == ["a", "b"]


@pytest.mark.parametrize("active", [True, False])
def test_an_operating_point_keeps_its_evidence(cosine_point: OperatingPoint, active: bool) -> None:
    """Each field of the message comes from the field of the same name; no field stays at its default."""
    choice = replace(cosine_point.choice, confidence=0.9, n_families=7)  # not the default
    strangers = StrangerRate(
        far=0.01,
        interval=Interval(0.005, 0.02),
        n_classes=30,
        n_images=120,
        confidence=0.95,
        class_variance=0.01,
        pair_variance=0.01,
        far_units=100.0,
    )
    cosine_point = replace(cosine_point, choice=choice, family="maker", strangers=strangers, n_rounds=5, n_choosing=15)
    message = operating_point_message(cosine_point, active=active, needs_reindex=["shop"])
    for name in ("id", "bundle_digest", "score_digest", "score_kind", "threshold"):
        assert getattr(message, name) == getattr(cosine_point, name), name
    for name in ("far", "tar", "confidence", "n_classes", "n_images"):
        assert getattr(message, name) == getattr(choice, name), name
    for name in ("threshold_interval", "far_interval", "tar_interval"):
        interval, expected = getattr(message, name), getattr(choice, name)
        assert (interval.low, interval.high) == (expected.low, expected.high), name
    assert message.far_target == choice.target_far
    assert message.prevalence == cosine_point.calibrator.prevalence
    assert message.target == str(choice.target)
    assert message.created_at.ToDatetime(UTC) == time_of(cosine_point.created_at)
    assert message.active == active
    assert message.needs_reindex == ["shop"]
    assert (message.family, message.n_families) == ("maker", 7)
    assert (message.stranger_far, message.n_rounds, message.n_choosing) == (0.01, 5, 15)
    assert (message.stranger_far_interval.low, message.stranger_far_interval.high) == (0.005, 0.02)
    predicted = strangers.predicted(choice.n_classes)
    assert (message.stranger_far_promised.low, message.stranger_far_promised.high) == (predicted.low, predicted.high)
    unset = (
        {field.name for field in message.DESCRIPTOR.fields}
        - {"problem"}
        - {field.name for field, _ in message.ListFields()}
    )
    assert unset <= ({"tar", "far"} if active else {"tar", "far", "active"})


REPORT = {
    "id": "audit",
    "catalog": "shop",
    "bundle_digest": "bundle",
    "operating_point_id": "point",
    "threshold": 0.5,
    "verdict": "passed",
    "findings": [{"limit": "far_within_promise", "passed": True, "explanation": "as promised"}],
    "far": 0.01,
    "tar": 0.9,
    "far_promised": {"low": 0.001, "high": 0.02},
    "recall_at_1": 0.75,
    "opis": {"value": 0.02, "floor": 0.01, "debiased": 0.01},
    "n_classes": 30,
    "n_images": 120,
    "passed_over": ["1 passed over (hidden): .x"],
    "warnings": ["class 'a' holds 90% of the true pairs"],
    "family": "maker",
    "n_families": 6,
    "n_rounds": 5,
    "stranger_far": 0.011,
    "stranger_far_promised": {"low": 0.002, "high": 0.03},
    "created_at": "2026-01-02T03:04:05.678+00:00",
}


@pytest.mark.parametrize(
    ("verdict", "expected"), [("passed", audits_pb2.VERDICT_PASSED), ("failed", audits_pb2.VERDICT_FAILED)]
)
def test_an_audit_keeps_its_figures_and_names_its_files(store: Store, verdict: str, expected: int) -> None:
    """Both reports are named by URLs in the store."""
    message = messages.audit_message(store, {**REPORT, "verdict": verdict})
    for name in (
        "id", "catalog", "bundle_digest", "operating_point_id", "threshold", "far", "tar", "recall_at_1", "n_classes",
        "n_images", "passed_over", "warnings", "family", "n_families", "n_rounds", "stranger_far",
    ):  # fmt: skip
        assert getattr(message, name) == REPORT[name], name
    assert message.verdict == expected
    (finding,) = message.findings
    assert (finding.limit, finding.passed, finding.explanation) == ("far_within_promise", True, "as promised")
    assert (message.far_promised.low, message.far_promised.high) == (0.001, 0.02)
    assert (message.stranger_far_promised.low, message.stranger_far_promised.high) == (0.002, 0.03)
    assert (message.opis, message.opis_floor) == (0.02, 0.01)
    assert message.created_at.ToDatetime(UTC) == time_of(REPORT["created_at"])
    assert message.report_html_uri == f"{store.url}/catalogs/shop/audits/audit/report.html"
    assert message.report_json_uri == f"{store.url}/catalogs/shop/audits/audit/report.json"
    assert {field.name for field, _ in message.ListFields()} | {"problem"} == {
        f.name for f in message.DESCRIPTOR.fields
    }


def test_a_report_of_an_older_version_is_still_shown(store: Store) -> None:
    """It has no families, no warnings, no rounds, and nothing that was passed over."""
    added = ("passed_over", "warnings", "family", "n_families", "n_rounds", "stranger_far", "stranger_far_promised")
    message = messages.audit_message(store, {name: value for name, value in REPORT.items() if name not in added})
    assert (message.passed_over, message.warnings, message.family) == ([], [], "")
    assert not message.HasField("n_families")
    assert (message.n_rounds, message.HasField("stranger_far")) == (0, False)


def test_requests_of_the_flows_have_no_field_that_clients_cannot_set() -> None:
    """A field that is added to a flow's request is added to the message, or to this test."""
    for request, message in (
        (ReindexRequest, catalogs_pb2.StartReindexRequest),
        (AuditRequest, audits_pb2.StartAuditRequest),
    ):
        assert {field.name for field in fields(request)} == set(message.DESCRIPTOR.fields_by_name)
