"""Commands that bring what they need: an embedded reindex, a scheduled audit, a demonstration that is interrupted."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from retrieval.contract.bundle import Bundle
from retrieval.edge.jobs.embedded import embedded_valkey, socket_path
from retrieval.edge.jobs.records import Jobs, JobState
from retrieval.engine.store import Store
from retrieval.flows.reindex import ReindexRequest
from tests.photos import write_shots
from tests.processes import Deployment

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(300)]

CATALOG = "places"


@pytest.fixture(scope="module")
def embedded(tmp_path_factory: pytest.TempPathFactory, tiny_bundle: Bundle) -> Deployment:
    """A catalogue that `reindex --embedded` made, with one unreadable image; no process runs."""
    folder = tmp_path_factory.mktemp("alone")
    deployment = Deployment.in_folder(folder, worker_processes="1")
    write_shots(folder / "calibration", places=range(1000, 1040), n_shots=5)
    manifest = write_shots(folder / "catalog", places=range(60), n_shots=2)
    (folder / "catalog" / "7-1.jpg").write_bytes(b"no picture")
    shutil.copytree(tiny_bundle.directory, folder / "bundle")
    calibration = str(folder / "calibration" / "manifest.csv")
    deployment.run("calibrate", "--bundle", str(folder / "bundle"), "--data", calibration, "--activate")
    job = deployment.run_json("reindex", CATALOG, str(manifest), "--embedded")
    assert job["state"] == "succeeded"
    return deployment


def test_embedded_reindex_needs_no_server_and_leaves_no_process(embedded: Deployment) -> None:
    """One command indexes; the unreadable image is named and counted; Valkey and worker are gone afterwards."""
    store = Store((embedded.folder / "state" / "store").as_uri())
    manifest = store.snapshot_manifest(CATALOG, store.current(CATALOG))
    assert (manifest.n_items, manifest.n_failed) == (119, 1)
    assert "7-1" in manifest.failures
    assert _processes_of(embedded.folder) == []


def test_scheduled_audit_runs(embedded: Deployment) -> None:
    """`beat` starts an audit on its schedule, the worker does it, the report is stored."""
    settings = {
        "RETRIEVAL_AUDIT_EVERY_H": "0.0005",
        "RETRIEVAL_AUDIT_CATALOG": CATALOG,
        "RETRIEVAL_AUDIT_MANIFEST": str(embedded.folder / "calibration" / "manifest.csv"),
    }
    scheduled = Deployment(embedded.folder, embedded.address, embedded.environment | settings)
    store = Store((embedded.folder / "state" / "store").as_uri())
    deadline = time.monotonic() + 60
    with scheduled.running("worker"), scheduled.running("beat"):
        while not store.audits(CATALOG):
            assert time.monotonic() < deadline, (embedded.folder / "worker.log").read_text()
            time.sleep(0.2)
    report = store.audit(CATALOG, store.audits(CATALOG)[0])
    assert report["n_images"] == 200


def test_lost_queue_is_found_again(embedded: Deployment) -> None:
    """A worker whose Redis restarts takes up what was accepted and never sent, or sent and lost."""
    state = embedded.folder / "queue"
    queue = Jobs(f"unix://{socket_path(state)}")
    settings = {"RETRIEVAL_REDIS_URL": f"unix://{socket_path(state)}"}
    outside = Deployment(embedded.folder, embedded.address, embedded.environment | settings)
    request = ReindexRequest(
        catalog="lost",
        manifest_uri=str(embedded.folder / "catalog" / "manifest.csv"),
        bundle_digest=Store((embedded.folder / "state" / "store").as_uri()).only_bundle(),
    )
    with contextlib.ExitStack() as worker:
        with embedded_valkey(state):
            process = worker.enter_context(outside.running("worker"))
            _await(lambda: bool(psutil.Process(process.pid).children()), "the worker did not start")
            job = queue.start("reindex", "lost", request)  # the sender was killed here
        with embedded_valkey(state):
            _await(lambda: queue.get(job.id).state.is_final, (embedded.folder / "worker.log").read_text())
            assert queue.get(job.id).state is JobState.SUCCEEDED
            worker.close()


def test_wrong_settings_and_unusable_folders_are_one_line(embedded: Deployment) -> None:
    """An error is one line with no trace: exit code 2 if a setting must change, 3 if something else must."""
    occupied = embedded.folder / "occupied"
    occupied.touch()
    bundle = str(embedded.folder / "bundle")
    for code, *arguments in (
        (2, "serve", "--store", str(occupied)),
        (2, "serve", "--store", "nowhere://x"),
        (2, "serve", "--store", "gs://bucket/store"),  # its library is not installed
        (3, "worker", "--state-dir", str(occupied)),
        (2, "calibrate", "--bundle", bundle, "--data", str(occupied), "--store", "nowhere://x"),
    ):
        done = embedded.run(*arguments, accept=(code,))
        assert "error: " in done.stderr
        assert "Traceback" not in done.stderr


DEMONSTRATION = """
import signal, sys, time
from pathlib import Path
from retrieval.edge.cli.demo import Demo
from retrieval.edge.settings import load_settings

signal.signal(signal.SIGINT, signal.default_int_handler)  # a test run in the background inherits that it is ignored
demo = Demo(Path(sys.argv[1]), load_settings())
with demo.background("worker", "", "retrieval", "worker"), demo.background("serve", "", "retrieval", "serve"):
    time.sleep(120)
"""


@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGKILL])
def test_interrupted_demonstration_leaves_no_process(embedded: Deployment, ending: signal.Signals) -> None:
    """Ctrl-C, or a kill, ends the worker, its Valkey and the server that the demonstration started."""
    command = [sys.executable, "-c", DEMONSTRATION, str(embedded.folder)]
    with subprocess.Popen(
        command, env=embedded.environment, start_new_session=True, stderr=subprocess.DEVNULL
    ) as demonstration:
        started = psutil.Process(demonstration.pid)

        def runs(name: str) -> bool:
            return any(name in " ".join(child.cmdline()) for child in started.children(recursive=True))

        _await(lambda: runs("valkey-server") and runs("retrieval serve"), "worker and server did not start")
        children = started.children(recursive=True)
        os.killpg(demonstration.pid, ending)
        assert demonstration.wait(60) != 0
        _await(lambda: not any(child.is_running() for child in children), f"left: {children}")


def test_beat_with_nothing_scheduled_says_so(embedded: Deployment) -> None:
    """A scheduler without a schedule is a mistake, not a silent process."""
    done = embedded.run("beat", accept=(2,))
    assert "RETRIEVAL_AUDIT_EVERY_H" in done.stderr


def test_wrong_usage_and_unmet_needs_have_their_exit_codes(embedded: Deployment) -> None:
    """2 for what the caller must change, 3 for what is missing; one line, no trace."""
    assert embedded.run("no-such-command", accept=(2,)).stderr
    wrong = embedded.run("reindex", CATALOG, "file:///images/table.csv", "--index", "HNSW", "--embedded", accept=(2,))
    assert "expected Exact, Exact,fp16, Flat" in wrong.stderr
    missing = embedded.run("snapshots", "list", CATALOG, accept=(3,))
    assert "retrieval serve" in missing.stderr
    empty = embedded.folder / "empty"
    empty.mkdir()
    nothing = embedded.run("reindex", CATALOG, str(empty), "--embedded", accept=(3,))
    assert "expected at least one image" in nothing.stderr
    for done in (wrong, missing, nothing):
        assert "Traceback" not in done.stderr


@pytest.mark.parametrize("command", ["serve", "worker"])
def test_missing_gpu_stops_the_start(embedded: Deployment, command: str) -> None:
    """Where a GPU was asked for and is missing, nothing starts, instead of a service many times slower."""
    asking = Deployment(embedded.folder, embedded.address, embedded.environment | {"RETRIEVAL_DEVICE": "cuda"})
    assert "RETRIEVAL_DEVICE=cpu" in asking.run(command, accept=(3,)).stderr


def _await(holds: Callable[[], bool], why: str) -> None:
    deadline = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < deadline, why
        time.sleep(0.1)


def _processes_of(folder: Path) -> list[psutil.Process]:
    """Processes started in this deployment that still run."""
    return [
        process
        for process in psutil.process_iter(["cmdline"])
        if any(str(folder) in argument for argument in process.info["cmdline"] or ())
    ]
