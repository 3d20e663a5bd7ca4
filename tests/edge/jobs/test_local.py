"""A reindex on this machine: what starts, what ends with it, and what a failure leaves."""

from __future__ import annotations

import sys
from pathlib import Path

import psutil
import pytest

from retrieval.edge.jobs.embedded import embedded_valkey, is_running
from retrieval.edge.jobs.local import reindex_here
from retrieval.edge.jobs.records import Job, JobState
from retrieval.edge.settings import Settings, load_settings
from retrieval.engine.store import Store
from retrieval.errors import InvalidInput, RetrievalError, Unavailable
from retrieval.flows.reindex import ReindexRequest
from tests.pictures import write_class_folders

CATALOG = "shop"


@pytest.fixture
def settings(calibrated: Store, tmp_path: Path) -> Settings:
    return load_settings(state_dir=tmp_path / "state", store_url=calibrated.url, worker_processes=1, threads=1)


def request_of(manifest: Path) -> ReindexRequest:
    return ReindexRequest(catalog=CATALOG, manifest_uri=str(manifest))


def ignore(_: Job) -> None:
    pass


def children() -> list[psutil.Process]:
    return psutil.Process().children(recursive=True)


@pytest.mark.slow
def test_the_job_has_succeeded_and_nothing_runs_afterwards(
    settings: Settings, calibrated: Store, tmp_path: Path
) -> None:
    """The job names the live snapshot; worker and Valkey have ended."""
    before = children()
    seen: list[tuple[int, int]] = []
    job = reindex_here(
        settings,
        request_of(write_class_folders(tmp_path / "images", n_classes=3, n_images=2)),
        lambda job: seen.append((job.n_done, job.n_total)),
    )
    assert (job.state, job.n_done, job.n_total) == (JobState.SUCCEEDED, 1, 1)
    assert job.result_id == calibrated.current(CATALOG)
    assert calibrated.snapshot_manifest(CATALOG, calibrated.current(CATALOG)).n_items == 6
    assert seen[0] == (0, 0)
    assert seen == sorted(seen)
    assert children() == before
    assert not is_running(settings.state_dir)


@pytest.mark.slow
def test_a_job_that_fails_raises_its_own_message(settings: Settings, tmp_path: Path) -> None:
    """The worker's reason reaches the caller; worker and Valkey have ended."""
    before = children()
    (tmp_path / "empty").mkdir()
    with pytest.raises(RetrievalError, match=r"^reindex job \w{32} failed: .*expected at least one image"):
        reindex_here(settings, request_of(tmp_path / "empty"), ignore)
    assert children() == before
    assert not is_running(settings.state_dir)


def test_a_worker_that_ends_early_is_reported(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without it the caller would wait for ever; the Valkey ends all the same."""
    with embedded_valkey(settings.state_dir):
        monkeypatch.setattr(sys, "executable", "/bin/false")
        with pytest.raises(Unavailable, match="the worker ended with exit code 1"):
            reindex_here(settings, request_of(tmp_path), ignore)
    assert not is_running(settings.state_dir)


def test_a_request_that_can_never_work_starts_nothing(settings: Settings, tmp_path: Path) -> None:
    """No folder for a Valkey is made."""
    with pytest.raises(InvalidInput, match="max_failed_share: expected 0 to 1, found 2"):
        reindex_here(settings, ReindexRequest(catalog=CATALOG, manifest_uri="x", max_failed_share=2), ignore)
    assert not settings.state_dir.exists()
