"""The job service over a real connection, with and without a queue."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import Executor
from pathlib import Path
from typing import Any

import fsspec
import pytest
import redis
from fsspec.implementations.memory import MemoryFileSystem

from retrieval.client import Client, connect
from retrieval.edge.jobs.connection import redis_url
from retrieval.edge.jobs.embedded import embedded_valkey, socket_path
from retrieval.edge.jobs.records import Jobs
from retrieval.edge.settings import load_settings
from retrieval.engine.encoder import Encoder
from retrieval.engine.store import Store
from retrieval.errors import InvalidInput, NotFound, Unavailable
from retrieval.v1 import audits_pb2, catalogs_pb2, jobs_pb2, search_pb2
from tests import pictures
from tests.edge.conftest import CATALOG, Running, Serving, index
from tests.edge.server.calls import search
from tests.photos import shot, write_shots


def test_jobs_without_a_queue_are_unavailable(running: Running) -> None:
    """Without Redis, the errors of jobs name what to start, and queries are answered."""
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


@pytest.fixture
def served(calibrated: Store, tmp_path: Path) -> Iterator[tuple[Client, Jobs]]:
    """A server with a queue, over a store with nothing indexed; it looks at the pointers only when asked to."""
    state_dir = tmp_path / "state"
    settings = load_settings(
        state_dir=state_dir, store_url=calibrated.url, address="127.0.0.1:0", refresh_s=3600, threads=1
    )
    with (
        embedded_valkey(state_dir),
        Serving(settings) as port,
        connect(f"127.0.0.1:{port}") as client,
    ):
        yield client, Jobs(redis_url(settings))


def get(client: Client, job_id: str) -> jobs_pb2.Job:
    job: jobs_pb2.Job = client.call(client.jobs.GetJob, jobs_pb2.GetJobRequest(job_id=job_id))
    return job


def test_a_reindex_that_is_reported_as_succeeded_can_be_searched_at_once(
    served: tuple[Client, Jobs], calibrated: Store, tiny_encoder: Encoder, pool: Executor, tmp_path: Path
) -> None:
    """The server that reports the end of the job looks for the snapshot before it answers."""
    client, jobs = served
    manifest = str(write_shots(tmp_path / "images", places=range(3), n_shots=2))
    request = catalogs_pb2.StartReindexRequest(catalog=CATALOG, manifest_uri=manifest)
    job = client.call(client.catalogs.StartReindex, request)
    assert client.call(client.catalogs.StartReindex, request) == job
    assert job.state == jobs_pb2.JOB_STATE_QUEUED
    snapshot = index(calibrated, manifest, tiny_encoder, load_settings(), pool)
    query = search_pb2.Query(image=pictures.encoded(shot(1, 0)))
    asked = search_pb2.SearchRequest(catalog=CATALOG, query=query)
    assert get(client, job.id).state == jobs_pb2.JOB_STATE_QUEUED
    with pytest.raises((NotFound, Unavailable), match=CATALOG):
        client.call(client.search.Search, asked)
    jobs.succeed(job.id, snapshot)
    assert get(client, job.id).result_id == snapshot
    assert client.call(client.search.Search, asked).provenance.snapshot_id == snapshot


def test_jobs_are_reported_until_they_end(served: tuple[Client, Jobs]) -> None:
    """A failed job is an answer with the reason in it, not an error; an unknown one is NOT_FOUND."""
    client, jobs = served
    job = jobs.start("reindex", CATALOG, {})
    jobs.mark_running(job.id, n_total=4)
    jobs.mark_done(job.id, 2)
    seen = get(client, job.id)
    assert (seen.state, seen.n_done, seen.n_total) == (jobs_pb2.JOB_STATE_RUNNING, 1, 4)
    jobs.fail(job.id, "expected at least one image")
    failed = get(client, job.id)
    assert (failed.state, failed.error) == (jobs_pb2.JOB_STATE_FAILED, "expected at least one image")
    with pytest.raises(NotFound, match="finished jobs are kept for 30 days"):
        get(client, "0" * 32)


def test_jobs_are_listed_newest_first(served: tuple[Client, Jobs]) -> None:
    """Those that run and those that ended, of one catalogue or of all, at most as many as asked for."""
    client, jobs = served
    for number in range(3):
        job = jobs.start("reindex", f"catalog{number}", {})
        jobs.mark_running(job.id, n_total=4)
        jobs.mark_done(job.id, 1)
        if number == 1:
            jobs.fail(job.id, "a reason")
        time.sleep(0.002)  # times are in milliseconds

    def listed(**options: Any) -> list[str]:
        reply = client.call(client.jobs.ListJobs, jobs_pb2.ListJobsRequest(**options))
        return [job.catalog for job in reply.jobs]

    assert listed() == ["catalog2", "catalog1", "catalog0"]
    assert listed(limit=2) == ["catalog2", "catalog1"]
    assert listed(catalog="catalog1") == ["catalog1"]
    assert listed(catalog="nowhere") == []
    with pytest.raises(InvalidInput, match="limit: expected 1 to 1000"):
        listed(limit=0)


def test_listing_jobs_does_not_read_every_key(served: tuple[Client, Jobs], tmp_path: Path) -> None:
    """The work depends on how many are asked for, not on how many there are."""
    client, jobs = served
    for number in range(300):
        jobs.succeed(jobs.start("reindex", f"catalog{number}", {}).id, "snapshot")
    with redis.Redis(unix_socket_path=str(socket_path(tmp_path / "state"))) as counting:
        counting.config_resetstat()
        reply = client.call(client.jobs.ListJobs, jobs_pb2.ListJobsRequest(limit=2))
        found = client.call(client.jobs.GetJob, jobs_pb2.GetJobRequest(job_id=reply.jobs[0].id[:12]))
        calls = {name: stats["calls"] for name, stats in counting.info("commandstats").items()}
    assert [job.catalog for job in reply.jobs] == ["catalog299", "catalog298"]
    assert found.id == reply.jobs[0].id
    assert "cmdstat_scan" not in calls
    assert sum(calls.values()) < 30


class HangingFileSystem(MemoryFileSystem):  # type: ignore[misc]  # fsspec has no types
    """A file system that answers only while its gate is open."""

    protocol = "hanging"
    store: dict[str, Any] = {}  # noqa: RUF012  # as fsspec wants it
    pseudo_dirs = [""]  # noqa: RUF012
    gate = threading.Event()

    def ls(self, path: str, **options: Any) -> Any:
        assert self.gate.wait(60)
        return super().ls(path, **options)

    def cat_file(self, path: str, **options: Any) -> Any:
        assert self.gate.wait(60)
        return super().cat_file(path, **options)


@pytest.mark.slow
def test_a_store_that_hangs_does_not_keep_jobs_from_being_read(tmp_path: Path) -> None:
    """Twice as many calls wait for the store as it has threads; jobs, also finished ones, are reported all the same."""
    fsspec.register_implementation("hanging", HangingFileSystem, clobber=True)
    HangingFileSystem.gate.set()
    settings = load_settings(
        state_dir=tmp_path / "state", store_url="hanging://store", address="127.0.0.1:0", refresh_s=3600, threads=1
    )
    with embedded_valkey(settings.state_dir), Serving(settings) as port, connect(f"127.0.0.1:{port}") as client:
        jobs = Jobs(redis_url(settings))
        running = jobs.start("reindex", "shop", {"manifest_uri": "a"})
        done = jobs.start("reindex", "hats", {"manifest_uri": "a"})
        jobs.succeed(done.id, "snapshot")
        HangingFileSystem.gate.clear()
        try:
            request = catalogs_pb2.ListSnapshotsRequest(catalog="shop")
            waiting = [client.catalogs.ListSnapshots.future(request, timeout=60) for _ in range(40)]
            time.sleep(0.5)
            started = time.monotonic()
            assert get(client, running.id).id == running.id
            assert time.monotonic() - started < 2
            assert get(client, done.id).state == jobs_pb2.JOB_STATE_SUCCEEDED
            assert time.monotonic() - started < 12, "it waits some seconds for the new snapshot"
        finally:
            HangingFileSystem.gate.set()
        codes = {call.code().name for call in waiting}
    assert codes == {"NOT_FOUND"}
