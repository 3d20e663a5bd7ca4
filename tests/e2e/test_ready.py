"""What to wait for after a start, as the documentation says it."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tests.processes import Deployment

pytestmark = [pytest.mark.slow, pytest.mark.e2e]


def await_line(log: Path, event: str) -> None:
    deadline = time.monotonic() + 60
    while event not in log.read_text():
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.1)


def test_a_worker_and_a_server_log_that_they_are_ready(tmp_path: Path) -> None:
    """After these lines a job can be started at once: here the list of jobs is read from the queue."""
    deployment = Deployment.in_folder(tmp_path)
    with deployment.running("worker"), deployment.running("serve"):
        await_line(tmp_path / "worker.log", "worker_ready")
        await_line(tmp_path / "serve.log", "server_started")
        assert deployment.run_json("jobs", "list") == []
        assert deployment.run_json("catalogs", "list") == []
