"""Every reply over a real connection: what is answered, and what bad input gets."""

from __future__ import annotations

import shutil

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from retrieval.contract.bundle import Bundle
from retrieval.errors import (
    CorruptArtifact,
    FailedPrecondition,
    InvalidInput,
    NotFound,
    RetrievalError,
    Unavailable,
)
from retrieval.v1 import audits_pb2, catalogs_pb2, jobs_pb2, operating_points_pb2, search_pb2
from tests import pictures
from tests.edge.conftest import CATALOG, Running
from tests.photos import shot


def search(running: Running, *, image: bytes | None = None, **fields: object) -> search_pb2.SearchResponse:
    """One search for an image, or with fields as given."""
    query = search_pb2.Query(image=image) if image is not None else search_pb2.Query()
    request = search_pb2.SearchRequest(**{"catalog": CATALOG, "query": query, **fields})  # type: ignore[arg-type]  # fields vary
    reply: search_pb2.SearchResponse = running.client.call(running.client.search.Search, request)
    return reply


def embedding(bundle: Bundle, values: np.ndarray) -> search_pb2.Query:
    return search_pb2.Query(embedding=search_pb2.Embedding(values=values.tolist(), bundle_digest=bundle.digest))


def test_reply_says_where_it_came_from(running: Running) -> None:
    """A reply names threshold, operating point, bundle and snapshot."""
    reply = search(running, image=pictures.encoded(shot(3, 0)))
    manifest = running.store.snapshot_manifest(CATALOG, running.store.current(CATALOG))
    point = running.store.active_operating_point(manifest.bundle_digest)
    assert reply.matches[0].label == "place 3"
    assert reply.provenance.threshold == point.threshold
    assert reply.provenance.operating_point_id == point.id
    assert reply.provenance.bundle_digest == manifest.bundle_digest
    assert reply.provenance.snapshot_id == manifest.id
    assert reply.provenance.index_recall == 1


def test_no_match_is_an_empty_answer(running: Running, tiny_bundle: Bundle) -> None:
    """Nothing above the threshold is OK with an empty list, not an error."""
    away = far_from_all(running)
    request = search_pb2.SearchRequest(catalog=CATALOG, query=embedding(tiny_bundle, away))
    reply = running.client.call(running.client.search.Search, request)
    assert (len(reply.matches), reply.total_matches, reply.truncated) == (0, 0, False)


def far_from_all(running: Running) -> np.ndarray:
    """A unit vector whose largest similarity to the catalogue is smallest among a thousand random ones."""
    manifest = running.store.snapshot_manifest(CATALOG, running.store.current(CATALOG))
    gallery = np.concatenate([running.store.embeddings(key) for key in manifest.shards])
    vectors = np.random.default_rng(0).normal(size=(1000, gallery.shape[1])).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.asarray(vectors[np.argmin((vectors @ gallery.T).max(axis=1))])


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (b"", "0 bytes"),
        (b"this is text, not a picture", "expected one of JPEG"),
        (pictures.truncated_jpeg(), "truncated"),
        (pictures.huge_png(), "10000 x 10000 pixels"),
        (b"\x89PNG" + bytes(300_000), "300,004 bytes"),
    ],
    ids=["empty", "text", "truncated", "pixels", "bytes"],
)
def test_bad_image_is_an_invalid_argument(running: Running, image: bytes, message: str) -> None:
    """What is no usable image gets INVALID_ARGUMENT with what was found."""
    with pytest.raises(InvalidInput, match=message):
        search(running, image=image)


@pytest.mark.parametrize("limit", [0, -1, 10_001])
def test_limit_outside_its_range_is_an_invalid_argument(running: Running, limit: int) -> None:
    """`limit` must be 1 to 10,000."""
    with pytest.raises(InvalidInput, match="limit: expected 1 to 10000"):
        search(running, image=pictures.encoded(shot(3, 0)), limit=limit)


def test_query_without_image_or_embedding_is_an_invalid_argument(running: Running) -> None:
    """An empty query is refused."""
    with pytest.raises(InvalidInput, match="an image or an embedding"):
        search(running)


def test_embedding_of_wrong_dimension_or_with_nan_is_an_invalid_argument(running: Running, tiny_bundle: Bundle) -> None:
    """A vector must have the bundle's dimension and unit norm."""
    with pytest.raises(InvalidInput, match="expected an embedding of 32 values, found 31"):
        search(running, query=embedding(tiny_bundle, np.ones(31)))
    with pytest.raises(InvalidInput, match="norm 1, found nan"):
        search(running, query=embedding(tiny_bundle, np.full(32, np.nan)))
    with pytest.raises(InvalidInput, match="norm 1"):
        search(running, query=embedding(tiny_bundle, np.ones(32)))


def test_embedding_of_another_bundle_is_refused(running: Running, other_bundle: Bundle) -> None:
    """A vector made by another model is never compared."""
    with pytest.raises(FailedPrecondition, match=other_bundle.digest):
        search(running, query=embedding(other_bundle, np.eye(32)[0]))


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


@pytest.mark.parametrize("name", ["", "../etc", "a/b", "x" * 65, "ü"])
def test_catalogue_names_cannot_leave_the_store(running: Running, name: str) -> None:
    """Names become paths: only letters, digits, - and _ pass."""
    client = running.client
    with pytest.raises(InvalidInput, match="catalogue: expected 1 to 64 letters"):
        client.call(client.catalogs.ListSnapshots, catalogs_pb2.ListSnapshotsRequest(catalog=name))
    request = catalogs_pb2.StartReindexRequest(catalog=name, manifest_uri="images")
    with pytest.raises(InvalidInput, match="catalogue: expected 1 to 64 letters"):
        client.call(client.catalogs.StartReindex, request)


def test_batch_answers_each_query_on_its_own(running: Running) -> None:
    """One bad image does not spoil the others; results come in the order of the queries."""
    queries = [
        search_pb2.Query(image=pictures.encoded(shot(1, 0))),
        search_pb2.Query(image=b"not an image"),
        search_pb2.Query(image=pictures.encoded(shot(2, 0))),
    ]
    request = search_pb2.BatchSearchRequest(catalog=CATALOG, queries=queries)
    first, second, third = running.client.call(running.client.search.BatchSearch, request).results
    assert first.response.matches[0].label == "place 1"
    assert second.error.code == grpc.StatusCode.INVALID_ARGUMENT.value[0]
    assert "expected one of JPEG" in second.error.message
    assert third.response.matches[0].label == "place 2"


@pytest.mark.parametrize("n_queries", [0, 257])
def test_batch_of_no_or_too_many_queries_is_an_invalid_argument(running: Running, n_queries: int) -> None:
    """A batch holds 1 to 256 queries."""
    request = search_pb2.BatchSearchRequest(catalog=CATALOG, queries=[search_pb2.Query(image=b"x")] * n_queries)
    with pytest.raises(InvalidInput, match="expected 1 to 256"):
        running.client.call(running.client.search.BatchSearch, request)


def test_jobs_without_a_queue_are_unavailable(running: Running) -> None:
    """Without Redis, jobs say what to start, and queries go on."""
    client = running.client
    with pytest.raises(Unavailable, match="retrieval worker"):
        client.call(client.jobs.GetJob, jobs_pb2.GetJobRequest(job_id="0" * 32))
    images = str(running.folder / "images" / "manifest.csv")
    request = catalogs_pb2.StartReindexRequest(catalog=CATALOG, manifest_uri=images)
    with pytest.raises(Unavailable, match="retrieval worker"):
        client.call(client.catalogs.StartReindex, request)
    with pytest.raises(Unavailable, match="retrieval worker"):
        client.call(client.audits.StartAudit, audits_pb2.StartAuditRequest(catalog=CATALOG, manifest_uri="images"))
    assert search(running, image=pictures.encoded(shot(3, 0))).matches


def test_bad_job_requests_are_refused_before_they_are_queued(running: Running) -> None:
    """A bad index spec or share is INVALID_ARGUMENT, also with no queue at hand."""
    client = running.client
    bad_spec = catalogs_pb2.StartReindexRequest(catalog=CATALOG, manifest_uri="images", index_spec="HNSW32")
    with pytest.raises(InvalidInput, match="HNSW"):
        client.call(client.catalogs.StartReindex, bad_spec)
    bad_share = catalogs_pb2.StartReindexRequest(catalog=CATALOG, manifest_uri="images", max_failed_share=2)
    with pytest.raises(InvalidInput, match="max_failed_share"):
        client.call(client.catalogs.StartReindex, bad_share)
    with pytest.raises(InvalidInput, match="manifest_uri"):
        client.call(client.audits.StartAudit, audits_pb2.StartAuditRequest(catalog=CATALOG))


def test_damaged_snapshot_is_refused_and_the_old_one_serves(running: Running) -> None:
    """A truncated index file cannot be rolled back to; it is DATA_LOSS and changes nothing."""
    live = running.store.current(CATALOG)
    manifest = running.store.snapshot_manifest(CATALOG, live)
    folder = running.store.objects.local(f"catalogs/{CATALOG}/snapshots/{live}")
    copy = folder.with_name("damaged")
    shutil.copytree(folder, copy)
    try:
        index_file = next(copy / name for name in manifest.files if name.endswith("index.faiss"))
        index_file.write_bytes(index_file.read_bytes()[:100])
        request = catalogs_pb2.RollbackRequest(catalog=CATALOG, snapshot_id="damaged")
        with pytest.raises(CorruptArtifact, match="truncated or"):
            running.client.call(running.client.catalogs.Rollback, request)
    finally:
        shutil.rmtree(copy)
    assert search(running, image=pictures.encoded(shot(3, 0))).provenance.snapshot_id == live


def test_unknown_errors_leak_nothing(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    """A defect is INTERNAL with a request id; its text stays in the log."""

    def broken(*_: object) -> None:
        raise KeyError("secret path /etc/shadow")

    monkeypatch.setattr("retrieval.flows.search.find_matches", broken)
    with pytest.raises(RetrievalError, match=r"^INTERNAL: internal error, request id [0-9a-f]{32}") as caught:
        search(running, image=pictures.encoded(shot(3, 0)))
    assert "secret" not in str(caught.value)


def test_standard_services_answer(running: Running) -> None:
    """Health says that searches are served, reflection names every service."""
    with grpc.insecure_channel(running.address) as channel:
        request = health_pb2.HealthCheckRequest(service="retrieval.v1.SearchService")
        assert health_pb2_grpc.HealthStub(channel).Check(request).status == health_pb2.HealthCheckResponse.SERVING
        asked = reflection_pb2.ServerReflectionRequest(list_services="")
        (reply,) = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo(iter([asked]))
    names = {service.name for service in reply.list_services_response.service}
    assert {f"retrieval.v1.{name}Service" for name in ("Search", "Catalog", "OperatingPoint", "Audit", "Job")} <= names


def test_operating_points_are_listed_with_their_evidence(running: Running, tiny_bundle: Bundle) -> None:
    """The active operating point comes with target, rates and intervals."""
    client = running.client
    got = client.call(client.operating_points.GetOperatingPoint, operating_points_pb2.GetOperatingPointRequest())
    (listed,) = client.call(
        client.operating_points.ListOperatingPoints, operating_points_pb2.ListOperatingPointsRequest()
    ).operating_points
    assert got == listed
    assert got.active
    assert got.bundle_digest == tiny_bundle.digest
    assert got.far <= got.far_target == 0.01
    assert got.target == "far=0.01"
    assert got.threshold_interval.low <= got.threshold <= got.threshold_interval.high


def test_second_server_on_the_same_port_does_not_start(running: Running) -> None:
    """A taken address is an error, not a shared port."""
    from retrieval.edge.server.serve import serve
    from retrieval.edge.settings import load_settings

    settings = load_settings(state_dir=running.folder / "state", address=running.address)
    with pytest.raises(FailedPrecondition, match="cannot be listened on"):
        serve(settings)
