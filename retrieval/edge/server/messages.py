"""Converts messages of retrieval.v1 to domain values, and domain values to messages."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retrieval.edge.jobs.messages import timestamp
from retrieval.engine.matches import SearchResult
from retrieval.engine.store import REPORT, Store
from retrieval.errors import InvalidInput
from retrieval.flows.audit import AuditRequest
from retrieval.flows.reindex import ReindexRequest
from retrieval.flows.search import DEFAULT_LIMIT, QueryEmbedding
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
    return AuditRequest(
        catalog=message.catalog,
        manifest_uri=message.manifest_uri,
        group_by=tuple(message.group_by),
        family=message.family,
    )


def audit_message(store: Store, report: Mapping[str, Any]) -> audits_pb2.Audit:
    """Convert the stored report of an audit."""
    audit_id, catalog = str(report["id"]), str(report["catalog"])
    passed, strangers_promised = report["verdict"] == "passed", report.get("stranger_far_promised")
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
        passed_over=report.get("passed_over", ()),  # this and what follows: not in reports of older versions
        warnings=report.get("warnings", ()),
        family=report.get("family", ""),
        n_families=report.get("n_families"),
        n_rounds=report.get("n_rounds", 0),
        stranger_far=report.get("stranger_far"),
        stranger_far_promised=strangers_promised and operating_points_pb2.Interval(**strangers_promised),
    )
