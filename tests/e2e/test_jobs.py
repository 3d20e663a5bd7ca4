"""Jobs with real workers and a real Valkey: a store that is away for long, a slow task, the death of a worker."""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Callable

import psutil
import pytest
import redis

from retrieval.contract.bundle import Bundle
from retrieval.edge.jobs.embedded import is_running, socket_path
from retrieval.edge.jobs.queue import make_app, submit
from retrieval.edge.jobs.records import Job, Jobs, JobState
from retrieval.edge.settings import load_settings
from retrieval.engine.store import Store
from retrieval.flows.reindex import ReindexRequest
from tests.photos import write_shots
from tests.processes import Deployment, kill
from tests.web import Web, serving

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(240)]

AWAY_S = 20  # longer than Celery's three retries
SLOW_S = 10  # after which the queue delivers a task again


@pytest.fixture(scope="module")
def deployment(tmp_path_factory: pytest.TempPathFactory, tiny_bundle: Bundle) -> Deployment:
    """A store with a calibrated bundle, and images; no process runs."""
    folder = tmp_path_factory.mktemp("jobs")
    deployment = Deployment.in_folder(folder, worker_processes="1", threads="1", redelivery_s="10")
    write_shots(folder / "calibration", places=range(1000, 1040), n_shots=5)
    write_shots(folder / "catalog", places=range(120), n_shots=5)
    shutil.copytree(tiny_bundle.directory, folder / "bundle")
    calibration = str(folder / "calibration" / "manifest.csv")
    deployment.run("calibrate", "--bundle", str(folder / "bundle"), "--data", calibration, "--activate")
    return deployment


def start(deployment: Deployment, catalog: str, manifest: str = "") -> tuple[Jobs, Job]:
    """Start a reindex; the queue runs."""
    state = deployment.folder / "state"
    eventually(lambda: is_running(state))
    jobs = Jobs(f"unix://{socket_path(state)}")
    manifest = manifest or str(deployment.folder / "catalog" / "manifest.csv")
    request = ReindexRequest(catalog=catalog, manifest_uri=manifest, bundle_digest=store_of(deployment).only_bundle())
    job = submit(make_app(load_settings(state_dir=state)), jobs, "reindex", request)

    return jobs, job


def jobs_log(deployment: Deployment) -> str:
    return (deployment.folder / "worker.log").read_text()


def store_of(deployment: Deployment) -> Store:
    return Store((deployment.folder / "state" / "store").as_uri())


def eventually(holds: Callable[[], bool], within_s: float = 60, why: Callable[[], object] = lambda: "") -> None:
    deadline = time.monotonic() + within_s
    while not holds():
        assert time.monotonic() < deadline, why()
        time.sleep(0.1)


def test_a_job_outlives_a_store_that_is_away(deployment: Deployment) -> None:
    """It states the reason and the time of the next try, and goes on by itself when the store is back."""
    (bundle,) = (deployment.folder / "state" / "store" / "bundles").iterdir()
    embeddings, away = bundle / "embeddings", bundle / "embeddings.away"
    embeddings.mkdir(exist_ok=True)
    embeddings.rename(away)
    embeddings.write_text("not a folder")
    with deployment.running("worker"):
        jobs, job = start(deployment, "away")
        eventually(lambda: "cannot" in jobs.get(job.id).waiting_for, why=lambda: jobs.get(job.id))
        time.sleep(AWAY_S)
        assert not jobs.get(job.id).state.is_final
        assert jobs.get(job.id).next_try_at
        embeddings.unlink()
        away.rename(embeddings)
        eventually(lambda: jobs.get(job.id).state.is_final, within_s=90, why=lambda: jobs.get(job.id))
        assert jobs.get(job.id).state is JobState.SUCCEEDED
        assert jobs.get(job.id).waiting_for == ""
    assert store_of(deployment).objects.names("staging") == []


def test_a_slow_task_that_is_delivered_again_runs_once(deployment: Deployment) -> None:
    """It takes three times as long as the queue waits for it: the second delivery is dropped, and nothing died."""
    images = sorted((deployment.folder / "catalog").glob("*.jpg"))[:20]
    state = deployment.folder / "state"
    with serving(Web({f"/{image.name}": image.read_bytes() for image in images}, slow_s=1.5)) as web:
        settings = {
            "RETRIEVAL_WORKER_PROCESSES": "3",
            "RETRIEVAL_REDELIVERY_S": str(SLOW_S),
            "RETRIEVAL_IMAGE_ROOTS": f"{web.url},{deployment.folder}",
        }
        slow = Deployment(deployment.folder, deployment.address, deployment.environment | settings)
        manifest = deployment.folder / "slow.csv"
        rows = [f"{number},{web.url}/{image.name}" for number, image in enumerate(images)]
        manifest.write_text("\n".join(["id,uri", *rows]))
        with slow.running("worker"):
            jobs, job = start(slow, "slow", manifest=str(manifest))
            counts = redis.Redis(unix_socket_path=str(socket_path(state)), decode_responses=True)
            n_attempts = []
            while not jobs.get(job.id).state.is_final:
                n_attempts += counts.hvals(f"retrieval:job:{job.id}:attempts")
                time.sleep(0.5)
            counts.close()
    assert jobs_log(deployment).count("task_is_at_work_elsewhere") >= 1, "it was not delivered again"
    assert set(n_attempts) == {"1"}
    assert set(web.asked.values()) == {1}
    assert store_of(deployment).snapshot_manifest("slow", store_of(deployment).current("slow")).n_items == len(images)


@pytest.mark.parametrize("victim", [0, 1])
def test_the_death_of_one_of_two_workers_loses_nothing(deployment: Deployment, victim: int) -> None:
    """Whichever started the Valkey: it lives on, and the other worker ends the job."""
    with contextlib.ExitStack() as stack:
        first = stack.enter_context(deployment.running("worker"))
        eventually(lambda: is_running(deployment.folder / "state"))
        workers = [first, stack.enter_context(deployment.running("worker"))]
        eventually(lambda: any(f.path.endswith("valkey/users") for f in psutil.Process(workers[1].pid).open_files()))
        jobs, job = start(deployment, f"death{victim}")
        eventually(lambda: jobs.get(job.id).state is not JobState.QUEUED)
        kill(workers[victim])
        eventually(lambda: jobs.get(job.id).state.is_final, within_s=120, why=lambda: jobs.get(job.id))
        assert jobs.get(job.id).state is JobState.SUCCEEDED, jobs.get(job.id).error
    assert not is_running(deployment.folder / "state")
