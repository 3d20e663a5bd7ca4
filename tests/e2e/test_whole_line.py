"""The whole line with real processes: calibrate, index, kill, resume, query, audit."""

from __future__ import annotations

import json
import shutil
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from retrieval.client import Client, connect
from retrieval.contract.bundle import Bundle
from retrieval.engine.store import Store
from retrieval.errors import NotFound, Unavailable
from retrieval.v1 import catalogs_pb2, jobs_pb2, search_pb2
from tests.photos import write_shots
from tests.processes import Deployment, kill

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(300)]

CATALOG = "places"
N_PLACES, N_SHOTS = 200, 10
_KILL_AFTER_SHARDS = 3


@pytest.fixture(scope="module")
def deployment(tmp_path_factory: pytest.TempPathFactory, tiny_bundle: Bundle) -> Deployment:
    """A store with a calibrated bundle; no process runs yet."""
    folder = tmp_path_factory.mktemp("line")
    deployment = Deployment.in_folder(folder, worker_processes="1", threads="1")
    write_shots(folder / "calibration", places=range(1000, 1040), n_shots=5)
    write_shots(folder / "catalog", places=range(N_PLACES), n_shots=N_SHOTS)
    write_shots(folder / "audit", places=range(2000, 2040), n_shots=5)
    write_shots(folder / "queries", places=range(3), n_shots=N_SHOTS + 1)
    shutil.copytree(tiny_bundle.directory, folder / "bundle")
    point = deployment.run_json(
        "calibrate", "--bundle", str(folder / "bundle"), "--data", str(folder / "calibration" / "manifest.csv"),
        "--far", "0.01", "--activate",
    )  # fmt: skip
    assert point["active"]
    assert point["choice"]["far"] <= 0.01
    return deployment


@pytest.fixture(scope="module")
def indexed(deployment: Deployment) -> Iterator[Deployment]:
    """The catalogue, indexed while both the server and the worker were killed once in the middle."""
    manifest = str(deployment.folder / "catalog" / "manifest.csv")
    with deployment.running("serve") as server, deployment.running("worker") as worker:
        job = _start_reindex(deployment, manifest)
        with connect(deployment.address) as client:
            _await_shards(client, job.id, _KILL_AFTER_SHARDS)
        kill(worker)
        kill(server)
    with deployment.running("serve"), deployment.running("worker"):
        with connect(deployment.address) as client:
            seen = _eventually(lambda: _get(client, job.id))
            assert seen.state == jobs_pb2.JOB_STATE_RUNNING, "the kill came after the end: nothing was tested"
            assert seen.n_done >= _KILL_AFTER_SHARDS, "shards that were acknowledged are lost"
            done = client.wait(seen, lambda _: None)
        assert done.n_done == done.n_total
        yield deployment


def test_nothing_is_lost_when_server_and_worker_are_killed(indexed: Deployment) -> None:
    """A reindex that was interrupted by two kills indexes every item exactly once and leaves no working files."""
    (snapshot,) = indexed.run_json("snapshots", "list", CATALOG)
    assert int(snapshot["n_items"]) == N_PLACES * N_SHOTS
    assert int(snapshot["n_failed"]) == 0
    assert snapshot["live"]
    store = Store((indexed.folder / "state" / "store").as_uri())
    assert store.objects.names("staging") == []
    items = store.open_snapshot(CATALOG, store.current(CATALOG)).items
    assert len(items) == N_PLACES * N_SHOTS


def test_every_indexed_image_finds_itself(indexed: Deployment) -> None:
    """Over a real connection, an indexed image comes back first, with similarity 1 and its provenance."""
    with connect(indexed.address) as client:
        for item_id in ("0-0", "7-3", "199-9"):
            reply = _search(client, indexed.folder / "catalog" / f"{item_id}.jpg")
            assert reply.matches[0].item_id == item_id
            assert reply.matches[0].similarity == pytest.approx(1, abs=1e-4)
            assert reply.matches[0].label == f"place {item_id.split('-')[0]}"
            assert set(reply.matches[0].attributes) == {"camera"}
            assert reply.total_matches == len(reply.matches) or reply.truncated
            assert all(match.score >= reply.provenance.threshold for match in reply.matches)


def test_search_command_draws_a_contact_sheet(indexed: Deployment) -> None:
    """New shots of indexed places find their places; the sheet is a PNG."""
    sheet = indexed.folder / "sheet.png"
    result = indexed.run_json(
        "search", "--catalog", CATALOG, "--manifest", str(indexed.folder / "queries" / "manifest.csv"),
        "--limit", "20", "--sheet", str(sheet),
    )  # fmt: skip
    assert result["summary"]["n_queries"] == 3 * (N_SHOTS + 1)
    assert result["summary"]["first_match_right"] > 0.9
    assert sheet.read_bytes().startswith(b"\x89PNG")


def test_limit_cuts_the_list_and_says_so(indexed: Deployment) -> None:
    """`truncated` and the total tell that matches were cut off."""
    with connect(indexed.address) as client:
        image = indexed.folder / "catalog" / "0-0.jpg"
        whole, cut = _search(client, image, limit=10_000), _search(client, image, limit=1)
    assert not whole.truncated
    assert whole.total_matches == len(whole.matches) > 1
    assert cut.truncated
    assert (cut.total_matches, len(cut.matches)) == (whole.total_matches, 1)
    assert cut.matches[0] == whole.matches[0]


def test_audit_runs_over_the_queue_and_reports(indexed: Deployment) -> None:
    """An audit gives a verdict with an exit code, figures that agree with its report, and an HTML page."""
    manifest = str(indexed.folder / "audit" / "manifest.csv")
    done = indexed.run(
        "audit", CATALOG, manifest, "--group-by", "camera", "--report", str(indexed.folder / "report"), "--json",
        accept=(0, 1),
    )  # fmt: skip
    audit = json.loads(done.stdout)
    report = json.loads((indexed.folder / "report" / "report.json").read_text())
    assert done.returncode == (0 if report["verdict"] == "passed" else 1)
    assert report["far"] == pytest.approx(audit["far"])
    assert report["n_images"] == 200
    assert {group["name"] for group in report["groups"]["camera"]} == {"a", "b"}
    assert "<html" in (indexed.folder / "report" / "report.html").read_text()


def test_same_request_twice_is_one_snapshot(indexed: Deployment) -> None:
    """Reindexing unchanged images publishes the same content-addressed snapshot again."""
    before = indexed.run_json("snapshots", "list", CATALOG)
    job = indexed.run_json("reindex", CATALOG, str(indexed.folder / "catalog" / "manifest.csv"))
    assert job["result_id"] == before[0]["id"]
    assert [s["id"] for s in indexed.run_json("snapshots", "list", CATALOG)] == [s["id"] for s in before]


def test_rollback_swaps_without_a_failed_request(indexed: Deployment) -> None:
    """A new snapshot goes live and the old one comes back while queries run; none fails, each is of one snapshot."""
    smaller = indexed.folder / "smaller"
    manifest = write_shots(smaller, places=range(20), n_shots=2)
    first = indexed.run_json("snapshots", "list", CATALOG)[0]["id"]
    seen = set()
    with connect(indexed.address) as client:
        image = indexed.folder / "catalog" / "0-0.jpg"
        job = _start_reindex(indexed, str(manifest))
        while (job := _get(client, job.id)).state not in (jobs_pb2.JOB_STATE_SUCCEEDED, jobs_pb2.JOB_STATE_FAILED):
            seen.add(_search(client, image).provenance.snapshot_id)
        second = _search(client, image)
        assert (job.state, second.provenance.snapshot_id) == (jobs_pb2.JOB_STATE_SUCCEEDED, job.result_id)
        client.call(client.catalogs.Rollback, catalogs_pb2.RollbackRequest(catalog=CATALOG, snapshot_id=first))
        assert _search(client, image).provenance.snapshot_id == first
        with pytest.raises(NotFound, match="none"):
            client.call(client.catalogs.Rollback, catalogs_pb2.RollbackRequest(catalog=CATALOG, snapshot_id="none"))
    assert seen <= {first, job.result_id}


def test_queries_go_on_without_a_queue(indexed: Deployment) -> None:
    """With Redis gone, queries are answered and jobs get UNAVAILABLE with what to do."""
    settings = {**indexed.environment, "RETRIEVAL_REDIS_URL": "redis://127.0.0.1:1/0"}
    with connect(indexed.address) as client:
        address = f"127.0.0.1:{_free_port()}"
    alone = Deployment(indexed.folder, address, settings | {"RETRIEVAL_ADDRESS": address})
    with alone.running("serve"), connect(address) as client:
        assert _search(client, indexed.folder / "catalog" / "0-0.jpg").matches
        with pytest.raises(Unavailable, match="retrieval worker"):
            _get(client, "0" * 32)
        request = catalogs_pb2.StartReindexRequest(
            catalog=CATALOG, manifest_uri=str(indexed.folder / "catalog" / "manifest.csv")
        )
        with pytest.raises(Unavailable, match="retrieval worker"):
            client.call(client.catalogs.StartReindex, request)
        assert _search(client, indexed.folder / "catalog" / "0-0.jpg").matches


def test_no_process_is_left_when_the_worker_is_killed(indexed: Deployment) -> None:
    """The embedded Valkey and the worker's children end with a worker that is killed."""
    other = Deployment.in_folder(indexed.folder / "orphans", worker_processes="1")
    other.folder.mkdir(exist_ok=True)
    with other.running("worker") as worker:
        children = _await_children(worker.pid, 2)
        kill(worker)
    gone, alive = psutil.wait_procs(children, timeout=20)
    assert not alive, f"left running: {alive}, gone: {gone}"


def test_a_catalogue_score_goes_from_calibration_to_audit(indexed: Deployment) -> None:
    """Calibrated with labels, reindexed, searched and audited; a catalogue without labels is refused."""
    folder = indexed.folder
    point = indexed.run_json(
        "calibrate", "--bundle", str(folder / "bundle"), "--data", str(folder / "calibration" / "manifest.csv"),
        "--far", "0.01", "--catalog-labels", "--activate",
    )  # fmt: skip
    assert point["score_kind"] == "catalogue cosine"
    assert point["n_rounds"] > 0
    assert point["strangers"]["interval"]["low"] <= 0.01
    manifest = folder / "catalog" / "manifest.csv"
    job = indexed.run_json("reindex", CATALOG, str(manifest))
    (snapshot,) = (one for one in indexed.run_json("snapshots", "list", CATALOG) if one["live"])
    assert (snapshot["id"], snapshot["score_digest"]) == (job["result_id"], point["score_digest"])
    assert int(snapshot["labels"]["n_classes"]) == N_PLACES
    with connect(indexed.address) as client:
        reply = _search_after(client, folder / "queries" / f"0-{N_SHOTS}.jpg", snapshot["id"])
    assert reply.matches[0].label == "place 0"
    assert reply.provenance.score_kind == "catalogue cosine"
    assert [match.score for match in reply.matches] == sorted((match.score for match in reply.matches), reverse=True)
    audit = json.loads(
        indexed.run("audit", CATALOG, str(folder / "audit" / "manifest.csv"), "--json", accept=(0, 1)).stdout
    )
    assert any("stranger" in finding["limit"] for finding in audit["findings"])
    without = folder / "without.csv"
    rows = [line.split(",")[:2] for line in manifest.read_text().splitlines()]
    without.write_text("\n".join(",".join(row) for row in rows) + "\n")
    refused = indexed.run("reindex", "unlabelled", str(without), accept=(2, 3))
    assert "label" in refused.stderr


def _search_after(client: Client, image: Path, snapshot_id: str) -> search_pb2.SearchResponse:
    """A reply of this snapshot; a server looks for a new one every second."""
    deadline = time.monotonic() + 30
    while (reply := _search(client, image)).provenance.snapshot_id != snapshot_id:
        assert time.monotonic() < deadline, reply.provenance
        time.sleep(0.2)
    return reply


def _await_children(pid: int, n_expected: int) -> list[psutil.Process]:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        children = psutil.Process(pid).children(recursive=True)
        if len(children) >= n_expected:
            return children
        time.sleep(0.1)
    raise AssertionError("the worker did not start its processes")


def _start_reindex(deployment: Deployment, manifest: str) -> jobs_pb2.Job:
    """Start a reindex; the queue may still be starting."""
    request = catalogs_pb2.StartReindexRequest(catalog=CATALOG, manifest_uri=manifest)
    with connect(deployment.address) as client:
        return _eventually(lambda: client.call(client.catalogs.StartReindex, request))


def _eventually(ask: Callable[[], jobs_pb2.Job]) -> jobs_pb2.Job:
    """The answer, once the queue has started."""
    deadline = time.monotonic() + 60
    while True:
        try:
            return ask()
        except Unavailable:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)


def _await_shards(client: Client, job_id: str, n_shards: int) -> None:
    deadline = time.monotonic() + 60
    while (job := _get(client, job_id)).n_done < n_shards:
        assert job.state not in (jobs_pb2.JOB_STATE_FAILED, jobs_pb2.JOB_STATE_SUCCEEDED), job
        assert time.monotonic() < deadline, job
        time.sleep(0.02)


def _get(client: Client, job_id: str) -> jobs_pb2.Job:
    job: jobs_pb2.Job = client.call(client.jobs.GetJob, jobs_pb2.GetJobRequest(job_id=job_id))
    return job


def _search(client: Client, image: Path, *, limit: int = 100) -> search_pb2.SearchResponse:
    query = search_pb2.Query(image=image.read_bytes())
    reply: search_pb2.SearchResponse = client.call(
        client.search.Search, search_pb2.SearchRequest(catalog=CATALOG, query=query, limit=limit)
    )
    return reply


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])
