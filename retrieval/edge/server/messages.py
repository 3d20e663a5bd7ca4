"""Converts messages of retrieval.v1 to domain values, and domain values to messages."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retrieval.consistency import Interval
from retrieval.contract.operating_point import OperatingPoint
from retrieval.edge.jobs.messages import timestamp
from retrieval.engine.snapshot import SnapshotManifest
from retrieval.engine.store import REPORT, Store
from retrieval.errors import InvalidInput
from retrieval.flows.audit import AuditRequest
from retrieval.flows.reindex import ReindexRequest
from retrieval.flows.search import DEFAULT_LIMIT, QueryEmbedding, SearchResult
from retrieval.v1 import audits_pb2, catalogs_pb2, operating_points_pb2, search_pb2


def query_from(message: search_pb2.Query) -> bytes | QueryEmbedding:
    """Return the image or the embedding of a query. Raises InvalidInput if it holds neither."""
    match message.WhichOneof("query"):
        case "image":
            return message.image
        case "embedding":
            return QueryEmbedding(_floats(message.embedding), message.embedding.bundle_digest)
    raise InvalidInput("query: expected an image or an embedding, found neither")


def _floats(message: search_pb2.Embedding) -> NDArray[np.float32]:
    """Return the values of an embedding, read from its wire format: one by one they cost 100 times as much."""
    n_values = len(message.values)
    if n_values == 0:
        return np.empty(0, dtype=np.float32)
    n_bytes = 4 * n_values
    content = message.SerializeToString()  # the first field, packed: its key, its length (7 bits a byte), its values
    return np.frombuffer(content, dtype="<f4", count=n_values, offset=1 + -(-n_bytes.bit_length() // 7))


def limit_from(message: search_pb2.SearchRequest | search_pb2.BatchSearchRequest) -> int:
    """Return the limit of a request, or the default if it is not set."""
    return message.limit if message.HasField("limit") else DEFAULT_LIMIT


def search_response(result: SearchResult) -> search_pb2.SearchResponse:
    """Convert the result of a query."""
    live = result.live
    return search_pb2.SearchResponse(
        matches=[
            search_pb2.Match(
                item_id=match.item.id,
                similarity=match.similarity,
                score=match.score,
                match_probability=match.probability,
                label=match.item.label,
                uri=match.item.uri,
                attributes=match.item.attributes,
            )
            for match in result.matches
        ],
        total_matches=result.n_total,
        truncated=result.n_total > len(result.matches),
        provenance=search_pb2.Provenance(
            threshold=live.point.threshold,
            operating_point_id=live.point_id,
            bundle_digest=live.bundle.digest,
            snapshot_id=live.snapshot.manifest.id,
            score_kind=live.score.kind,
            index_recall=live.snapshot.manifest.index_recall,
        ),
    )


def snapshot_message(manifest: SnapshotManifest, *, live: bool) -> catalogs_pb2.Snapshot:
    """Convert a snapshot."""
    return catalogs_pb2.Snapshot(
        id=manifest.id,
        catalog=manifest.catalog,
        bundle_digest=manifest.bundle_digest,
        score_digest=manifest.score_digest,
        index_spec=manifest.index_spec,
        n_items=manifest.n_items,
        n_failed=manifest.n_failed,
        failures=manifest.failures,
        index_recall=manifest.index_recall,
        created_at=timestamp(manifest.created_at),
        live=live,
    )


def reindex_request(message: catalogs_pb2.StartReindexRequest) -> ReindexRequest:
    """Convert the request for a reindex; a field that is not set takes the default of the flow."""
    given: dict[str, Any] = {"catalog": message.catalog, "manifest_uri": message.manifest_uri}
    if message.bundle_digest:
        given["bundle_digest"] = message.bundle_digest
    if message.index_spec:
        given["index_spec"] = message.index_spec
    if message.HasField("max_failed_share"):
        given["max_failed_share"] = message.max_failed_share
    return ReindexRequest(**given)


def audit_request(message: audits_pb2.StartAuditRequest) -> AuditRequest:
    """Convert the request for an audit."""
    return AuditRequest(catalog=message.catalog, manifest_uri=message.manifest_uri, group_by=tuple(message.group_by))


def operating_point_message(
    point: OperatingPoint, *, active: bool, needs_reindex: Sequence[str] = ()
) -> operating_points_pb2.OperatingPoint:
    """Convert an operating point; `needs_reindex`: the catalogues whose live snapshot has another score."""
    choice = point.choice
    return operating_points_pb2.OperatingPoint(
        id=point.id,
        bundle_digest=point.bundle_digest,
        score_digest=point.score_digest,
        score_kind=point.score_kind,
        threshold=point.threshold,
        threshold_interval=_interval(choice.threshold_interval),
        far_target=choice.target_far,
        far=choice.far,
        far_interval=_interval(choice.far_interval),
        tar=choice.tar,
        tar_interval=_interval(choice.tar_interval),
        confidence=choice.confidence,
        n_classes=choice.n_classes,
        n_images=choice.n_images,
        prevalence=point.calibrator.prevalence,
        created_at=timestamp(point.created_at),
        active=active,
        target=str(choice.target),
        needs_reindex=needs_reindex,
    )


def audit_message(store: Store, report: Mapping[str, Any]) -> audits_pb2.Audit:
    """Convert the stored report of an audit."""
    audit_id, catalog = str(report["id"]), str(report["catalog"])
    passed = report["verdict"] == "passed"
    return audits_pb2.Audit(
        id=audit_id,
        catalog=catalog,
        bundle_digest=report["bundle_digest"],
        operating_point_id=report["operating_point_id"],
        threshold=report["threshold"],
        verdict=audits_pb2.VERDICT_PASSED if passed else audits_pb2.VERDICT_FAILED,
        findings=[audits_pb2.Finding(**finding) for finding in report["findings"]],
        far=report["far"],
        tar=report["tar"],
        far_promised=operating_points_pb2.Interval(**report["far_promised"]),
        recall_at_1=report["recall_at_1"],
        opis=report["opis"]["value"],
        opis_floor=report["opis"]["floor"],
        n_classes=report["n_classes"],
        n_images=report["n_images"],
        created_at=timestamp(report["created_at"]),
        report_html_uri=store.audit_uri(catalog, audit_id, "report.html"),
        report_json_uri=store.audit_uri(catalog, audit_id, REPORT),
    )


def _interval(interval: Interval) -> operating_points_pb2.Interval:
    return operating_points_pb2.Interval(low=interval.low, high=interval.high)
