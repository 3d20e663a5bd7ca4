"""A deployment that is attacked: server and worker under a supervisor, work in flight, and what must hold after it."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import redis

from retrieval.client import Client, connect
from retrieval.edge.jobs.embedded import embedded_valkey, socket_path
from retrieval.edge.jobs.records import Job, JobId, Jobs, JobState
from retrieval.errors import (
    FailedPrecondition,
    JobsUnavailable,
    RetrievalError,
    Unavailable,
    UnknownCatalog,
    UnknownJob,
)
from retrieval.v1 import audits_pb2, catalogs_pb2, jobs_pb2
from tests.bench.measuring.catalogs_under_fire import CATALOGS, Collection
from tests.bench.measuring.supervised import Supervised, left_processes, pool_processes, valkey_of
from tests.processes import COMMAND, Deployment

REDELIVERY_S = 10
_START_S = 60.0
_CALM_S = 90.0  # a job that was killed ends within this time, or states what it waits for


class Deployed:
    """Server, worker and embedded Valkey over a small store, the jobs that were acknowledged, and all violations."""

    def __init__(self, folder: Path, rng: random.Random, environment: dict[str, str]) -> None:
        self.folder, self.rng = folder, rng
        self.logs = folder.with_name(f"{folder.name}-logs")  # the disk of the folder may be full
        self.logs.mkdir()
        self.temporary = folder / "tmp"
        self.temporary.mkdir()
        tempfile.tempdir = str(self.temporary)  # the socket of the Valkey lies there for every process
        plain = Deployment.in_folder(
            folder, worker_processes="2", threads="1", redelivery_s=str(REDELIVERY_S), keep_snapshots="3"
        )
        own = {"TMPDIR": str(self.temporary), "MPLCONFIGDIR": str(folder / "matplotlib"), "OMP_NUM_THREADS": "1"}
        self.deployment = Deployment(folder, plain.address, plain.environment | own | environment)
        self.state_dir = folder / "state"
        self.collection = Collection(self.deployment, rng)
        self.violations: list[str] = []
        self.outcomes: Counter[str] = Counter()  # of jobs, calibrations and refused calls
        self.slowest_s = 0.0  # from the acknowledgement of a job to its end
        self._pending: dict[JobId, float] = {}
        self._calibrations: list[subprocess.Popen[bytes]] = []
        self._running = contextlib.ExitStack()
        self._second_user = contextlib.ExitStack()

    def __enter__(self) -> Deployed:
        environment = self.deployment.environment
        self.worker = Supervised(["worker"], environment, self.logs / "worker.log")
        self.server = Supervised(["serve"], environment, self.logs / "serve.log")
        self.await_ready()
        for catalog in CATALOGS:
            self.start_reindex(catalog)
        self.calm()
        with connect(self.deployment.address) as client:
            self.eventually(lambda: all(client.catalog_health().get(c) for c in CATALOGS), "catalogues are not served")
        return self

    def __exit__(self, *_: object) -> None:
        self._second_user.close()
        for process in (self.server, self.worker):
            if not process.exit_codes or process.process is not None:
                process.stop()

    def use_valkey(self, used: bool) -> None:
        """Keep the Valkey running while the worker is away, as one in a container of its own; or do not."""
        self._second_user.close()
        if used:
            self._second_user.enter_context(embedded_valkey(self.state_dir))

    @property
    def jobs(self) -> Jobs:
        """The records of all jobs."""
        return Jobs(f"unix://{socket_path(self.state_dir)}")

    def await_ready(self) -> None:
        """Wait until server, worker and Valkey are at work."""
        self.eventually(lambda: bool(pool_processes(self.worker)), "the worker did not start")
        self.eventually(lambda: valkey_of(self.state_dir) is not None, "the Valkey did not start")
        self.await_server()

    def await_server(self) -> None:
        """Wait until the server answers."""
        self.eventually(self._serves, "the server did not start")

    def eventually(self, holds: Callable[[], bool], otherwise: str, within_s: float = _START_S) -> bool:
        """Wait until something holds; note a violation if it does not in time."""
        deadline = time.monotonic() + within_s
        while not holds():
            if time.monotonic() > deadline:
                self.violations.append(f"{otherwise} within {within_s:.0f} s")
                return False
            time.sleep(0.05)
        return True

    def start_reindex(self, catalog: str) -> bool:
        """Start a reindex with new content; return False if it is refused."""
        request = catalogs_pb2.StartReindexRequest(
            catalog=catalog, manifest_uri=str(self.collection.new_manifest()), bundle_digest=self.collection.bundle
        )
        return self._submit(lambda client: client.call(client.catalogs.StartReindex, request))

    def start_audit(self, catalog: str) -> bool:
        """Start an audit; return False if it is refused."""
        request = audits_pb2.StartAuditRequest(catalog=catalog, manifest_uri=str(self.collection.new_labelled()))
        return self._submit(lambda client: client.call(client.audits.StartAudit, request))

    def start_calibration(self) -> bool:
        """Start a calibration that activates its threshold, unless one runs: it needs neither worker nor server."""
        if any(process.poll() is None for process in self._calibrations):
            return False
        command = [COMMAND, "calibrate", "--bundle", self.collection.bundle, "--data", self.collection.new_labelled()]
        with (self.logs / "calibrate.log").open("ab") as log:
            command += ["--far", self.rng.choice(["0.01", "0.02", "0.05"]), "--activate"]
            process = subprocess.Popen(command, env=self.deployment.environment, stdout=log, stderr=log)
        self._calibrations.append(process)
        return True

    def calm(self, *, within_s: float = _CALM_S) -> None:
        """Wait until every acknowledged job and every calibration has ended; note those that did not."""
        deadline = time.monotonic() + within_s
        while self._pending and time.monotonic() < deadline:
            self._look()
            time.sleep(0.1)
        for job_id in list(self._pending):
            self.violations.append(f"job does not end: {self.jobs.get(job_id)}")
            self._pending.pop(job_id)
        for process in self._calibrations:
            code = process.wait(_CALM_S)
            self.outcomes["calibration succeeded" if code == 0 else "calibration failed"] += 1
            if code:
                self.violations.append(f"a calibration ended with {code}: {_tail(self.folder / 'calibrate.log')}")
        self._calibrations.clear()

    def waiting(self) -> list[Job]:
        """The acknowledged jobs that have not ended."""
        self._look()
        return [self.jobs.get(job_id) for job_id in self._pending]

    def settle(self) -> None:
        """Check that no catalogue is locked, stop everything, prune, and look for what is left."""
        self.await_ready()
        self.calm()
        for catalog in CATALOGS:
            before = self.outcomes["reindex succeeded"]
            self.start_reindex(catalog)
            self.calm()
            if self.outcomes["reindex succeeded"] == before:
                self.violations.append(f"catalogue {catalog} cannot be reindexed at the end")
            live = self.collection.store.current(catalog)
            with connect(self.deployment.address) as client:
                self.eventually(lambda live=live, catalog=catalog: self._live(client, catalog) == live, "not served")
        for name, process in (("server", self.server), ("worker", self.worker)):
            if code := process.stop():
                self.violations.append(f"the {name} was stopped and ended with {code}")
        self._second_user.close()
        time.sleep(1.0)
        self.violations += [f"left process {command}" for command in left_processes(self.folder)]
        self.deployment.run("prune")
        self.violations += [f"left file {name}" for name in self._left_files()]

    def _serves(self) -> bool:
        try:
            with connect(self.deployment.address, connect_s=1) as client:
                client.check_health()
        except Unavailable:
            return False
        return True

    def _live(self, client: Client, catalog: str) -> str:
        with contextlib.suppress(RetrievalError):
            listed = client.call(client.catalogs.ListSnapshots, catalogs_pb2.ListSnapshotsRequest(catalog=catalog))
            return next((snapshot.id for snapshot in listed.snapshots if snapshot.live), "")
        return ""

    def _submit(self, start: Callable[[Client], jobs_pb2.Job]) -> bool:
        """Start a job and remember it; count a refusal of our family, note every other one."""
        try:
            with connect(self.deployment.address) as client:
                job = start(client)
        except FailedPrecondition as error:
            self.outcomes["refused: busy"] += 1
            if "is running" not in str(error):
                self.violations.append(f"start refused: {error}")
            return False
        except Unavailable:
            self.outcomes["refused: unavailable"] += 1
            return False
        except RetrievalError as error:
            self.violations.append(f"start: {type(error).__name__}: {error}")
            return False
        self._pending.setdefault(JobId(job.id), time.monotonic())
        return True

    def _look(self) -> None:
        """Take the jobs that have ended off the list; note those that are lost, or ended without their result."""
        for job_id, since in list(self._pending.items()):
            try:
                job = self.jobs.get(job_id)
            except JobsUnavailable:
                continue
            except UnknownJob:
                self.violations.append(f"the acknowledged job {job_id} is lost")
                self._pending.pop(job_id)
                continue
            if not job.state.is_final:
                continue
            self._pending.pop(job_id)
            self.slowest_s = max(self.slowest_s, time.monotonic() - since)
            cause = f": {job.error.split(':')[0]}" if job.state is JobState.FAILED else ""
            self.outcomes[f"{job.kind} {job.state}{cause}"] += 1
            if job.state is JobState.FAILED and not job.error:
                self.violations.append(f"job {job_id} failed without a cause")
            if job.kind == "audit" and job.state is JobState.SUCCEEDED and not self._has_audit(job):
                self.violations.append(f"audit {job_id} succeeded and has no report")

    def _has_audit(self, job: Job) -> bool:
        try:
            return job.result_id in self.collection.store.audits(job.catalog)
        except UnknownCatalog:
            return False

    def _left_files(self) -> Iterator[str]:
        """Files that no artefact owns: temporary ones, working files of jobs, snapshots without a manifest."""
        objects = self.collection.store.objects
        yield from (f"staging/{name}" for name in objects.names("staging"))
        for catalog in CATALOGS:
            complete = set(self.collection.store.snapshot_ids(catalog))
            for name in set(objects.names(f"catalogs/{catalog}/snapshots")) - complete:
                yield f"half a snapshot: {catalog}/{name}: {objects.names(f'catalogs/{catalog}/snapshots/{name}')}"
        cache = self.temporary / f"retrieval-{os.getuid()}"  # of remote objects, bounded
        for folder in (self.temporary, self.state_dir):
            for path in sorted(folder.rglob("*")):
                is_temporary = path.name.startswith((".", "temp-")) or folder == self.temporary
                is_cached = path.is_relative_to(cache) and not path.name.startswith(".")
                if is_temporary and not is_cached and not path.is_dir():
                    yield str(path)


def _tail(log: Path) -> str:
    return log.read_text(errors="replace")[-500:]


def clear(folder: Path) -> None:
    """Remove a folder of a deployment that has ended."""
    with contextlib.suppress(redis.RedisError):
        shutil.rmtree(folder, ignore_errors=True)
