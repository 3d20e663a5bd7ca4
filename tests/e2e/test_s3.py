"""A store on S3: the whole line, and a server whose S3 hangs, is refused, or is not there when it starts."""

from __future__ import annotations

import shutil
import signal
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import Executor
from pathlib import Path

import pytest

from retrieval.client import Client, connect
from retrieval.contract.bundle import Bundle
from retrieval.contract.operating_point import OperatingPoint
from retrieval.contract.score import Score
from retrieval.edge.jobs.connection import redis_url
from retrieval.edge.jobs.embedded import embedded_valkey
from retrieval.edge.jobs.records import Jobs
from retrieval.edge.settings import Settings, load_settings
from retrieval.engine.encoder import Encoder
from retrieval.engine.store import Store
from retrieval.errors import Unavailable
from retrieval.flows.reindex import ReindexRequest
from retrieval.v1 import audits_pb2, catalogs_pb2, jobs_pb2, operating_points_pb2, search_pb2
from tests.edge.conftest import Serving
from tests.photos import write_shots
from tests.pictures import write_class_folders
from tests.processes import Deployment
from tests.s3 import S3, running_s3, variables
from tests.stores import activate, reindex

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(300)]

BOUND_S = 3.0


@pytest.fixture(scope="module")
def s3() -> Iterator[S3]:
    with running_s3() as server, variables(server.environment):
        yield server


@pytest.fixture
def url(s3: S3) -> str:
    """A store with a path inside a bucket of its own."""
    bucket = f"b{uuid.uuid4().hex[:12]}"
    s3.make_bucket(bucket)
    return f"s3://{bucket}/some/store"


def test_the_whole_line(s3: S3, url: str, tiny_bundle: Bundle, tmp_path: Path) -> None:
    """Calibrate, reindex twice, serve, search, roll back, prune, with the commands that users run."""
    deployment = Deployment.in_folder(tmp_path, worker_processes="1", store_url=url)
    shutil.copytree(tiny_bundle.directory, tmp_path / "bundle")
    calibration = write_shots(tmp_path / "calibration", places=range(1000, 1040), n_shots=5)
    deployment.run("calibrate", "--bundle", str(tmp_path / "bundle"), "--data", str(calibration), "--activate")
    (bundle,) = deployment.run_json("bundles", "list")
    assert bundle["threshold"] is not None
    made = []
    with deployment.running("worker"), deployment.running("serve"):
        for n_places in (20, 25, 30):
            manifest = write_shots(tmp_path / f"catalog{n_places}", places=range(n_places), n_shots=2)
            made.append(deployment.run_json("reindex", "places", str(manifest))["result_id"])
        image = tmp_path / "catalog30" / "7-1.jpg"
        found = deployment.run_json("search", "--catalog", "places", "--image", str(image))
        assert "7-1" in str(found)
        back = deployment.run_json("snapshots", "rollback", "places")
        assert back["id"] == made[1]
        assert [s["id"] for s in deployment.run_json("snapshots", "list", "places") if s["live"]] == [made[1]]
        deployment.run("snapshots", "rollback", "places", made[2])
        would = deployment.run_json("prune", "--keep", "1", "--dry-run")
        done = deployment.run_json("prune", "--keep", "1")
        assert {**done, "dry_run": True} == would
        assert done["snapshots"] == {"places": [made[0]]}
        assert {s["id"] for s in deployment.run_json("snapshots", "list", "places")} == set(made[1:])
        assert deployment.run_json("search", "--catalog", "places", "--image", str(image)) is not None


@pytest.fixture
def settings(url: str, tmp_path: Path) -> Settings:
    return load_settings(
        state_dir=tmp_path / "state",
        store_url=url,
        address="127.0.0.1:0",
        refresh_s=0.2,
        store_timeout_s=BOUND_S,
        threads=1,
    )


@pytest.fixture
def filled(
    settings: Settings, tiny_bundle: Bundle, tiny_encoder: Encoder, cosine_point: OperatingPoint, pool: Executor,
    tmp_path: Path,
) -> Store:  # fmt: skip
    """A store with two snapshots of the catalogue shoes."""
    store = Store(settings.store)
    store.add_bundle(tiny_bundle.directory)
    activate(store, cosine_point, Score())
    for number in range(2):
        folder = write_class_folders(tmp_path / f"images{number}", n_classes=2 + number, n_images=2)
        request = ReindexRequest(catalog="shoes", manifest_uri=str(folder))
        at = f"2026-01-0{number + 1}T00:00:00+00:00"
        reindex(store, tiny_encoder, pool, request, job_id=f"job{number}", created_at=at)
    return store


def query(bundle: Bundle) -> search_pb2.Query:
    values = bundle.probe()[1][0].tolist()
    return search_pb2.Query(embedding=search_pb2.Embedding(values=values, bundle_digest=bundle.digest))


def store_calls(client: Client) -> dict[str, Callable[[], object]]:
    """Every call that needs the store."""
    catalogs, points, audits = client.catalogs, client.operating_points, client.audits
    reindex = catalogs_pb2.StartReindexRequest(catalog="shoes", manifest_uri="/nowhere")
    audit = audits_pb2.StartAuditRequest(catalog="shoes", manifest_uri="/nowhere")
    activate = operating_points_pb2.ActivateOperatingPointRequest(operating_point_id="abcd")
    return {
        "ListCatalogs": lambda: client.call(catalogs.ListCatalogs, catalogs_pb2.ListCatalogsRequest()),
        "ListSnapshots": lambda: client.call(
            catalogs.ListSnapshots, catalogs_pb2.ListSnapshotsRequest(catalog="shoes")
        ),
        "CheckRollback": lambda: client.call(catalogs.CheckRollback, catalogs_pb2.RollbackRequest(catalog="shoes")),
        "Rollback": lambda: client.call(catalogs.Rollback, catalogs_pb2.RollbackRequest(catalog="shoes")),
        "StartReindex": lambda: client.call(catalogs.StartReindex, reindex),
        "ListOperatingPoints": lambda: client.call(
            points.ListOperatingPoints, operating_points_pb2.ListOperatingPointsRequest()
        ),
        "GetOperatingPoint": lambda: client.call(
            points.GetOperatingPoint, operating_points_pb2.GetOperatingPointRequest()
        ),
        "ActivateOperatingPoint": lambda: client.call(points.ActivateOperatingPoint, activate),
        "StartAudit": lambda: client.call(audits.StartAudit, audit),
        "ListAudits": lambda: client.call(audits.ListAudits, audits_pb2.ListAuditsRequest(catalog="shoes")),
        "GetAudit": lambda: client.call(audits.GetAudit, audits_pb2.GetAuditRequest(catalog="shoes", audit_id="abcd")),
    }


@pytest.mark.parametrize("how", [signal.SIGSTOP, signal.SIGKILL])
def test_s3_goes_away_while_the_server_runs(
    how: signal.Signals, settings: Settings, tiny_bundle: Bundle, filled: Store, s3: S3
) -> None:
    """Every call is answered in the bound, searches and jobs work; afterwards everything works without a restart."""
    with embedded_valkey(settings.state_dir), Serving(settings) as port, connect(f"127.0.0.1:{port}") as client:
        job = Jobs(redis_url(settings)).start("reindex", "shoes", {"manifest_uri": "a"})
        request = search_pb2.SearchRequest(catalog="shoes", query=query(tiny_bundle))
        before = client.call(client.search.Search, request)
        s3.send(how)
        try:
            for name, call in store_calls(client).items():
                started = time.monotonic()
                with pytest.raises(Unavailable, match=r"cannot access s3://|the store has not answered within 3 s"):
                    call()
                assert time.monotonic() - started < BOUND_S + 1, name
                started = time.monotonic()
                assert client.call(client.jobs.GetJob, jobs_pb2.GetJobRequest(job_id=job.id)).id == job.id
                assert client.call(client.search.Search, request).total_matches == before.total_matches
                assert time.monotonic() - started < 1, f"searches and jobs need no store: {name}"
            assert client.is_serving()
        finally:
            s3.send(signal.SIGCONT) if how is signal.SIGSTOP else s3.start()
        if how is signal.SIGSTOP:
            deadline = time.monotonic() + 60
            while True:
                try:
                    store_calls(client)["ListSnapshots"]()
                    break
                except Unavailable:
                    assert time.monotonic() < deadline


def test_a_server_starts_without_its_store(settings: Settings, tiny_bundle: Bundle, filled: Store, s3: S3) -> None:
    """It is alive and not serving, gives the reason, and serves when S3 is back."""
    request = search_pb2.SearchRequest(catalog="shoes", query=query(tiny_bundle))
    s3.send(signal.SIGSTOP)
    started = time.monotonic()
    try:
        with Serving(settings) as port, connect(f"127.0.0.1:{port}") as client:
            assert time.monotonic() - started < BOUND_S + 3
            assert not client.is_serving()
            with pytest.raises(Unavailable, match="'shoes' is not live: "):
                client.call(client.search.Search, request)
            s3.send(signal.SIGCONT)
            deadline = time.monotonic() + 60
            while not client.is_serving() or client.catalog_health() != {"shoes": True}:
                assert time.monotonic() < deadline
                time.sleep(0.1)
            assert client.call(client.search.Search, request).provenance.snapshot_id == filled.current("shoes")
    finally:
        s3.send(signal.SIGCONT)
