"""Runs in which the disk is full, or the store is away, while jobs are at work; afterwards all is well again.

The disk is a small one in memory (tmpfs), which root can mount. The store is an S3 server here, behind a door
which can be shut (connections are refused) or jammed (they are accepted, and nothing is answered).
"""

from __future__ import annotations

import contextlib
import os
import random
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from retrieval.edge.jobs.records import JobState
from retrieval.errors import JobsUnavailable
from tests.bench.measuring.catalogs_under_fire import CATALOGS, Searching
from tests.bench.measuring.deployed import Deployed

_DISK_MB = 64
_SPAN_S = 0.6
_LONGEST_S = 8.0
_AWAY_CALM_S = 200.0  # a task may have failed several times and waits for its next try, at most 64 s


def run_disasters(folder: Path, rng: random.Random, n_runs: int, violations: list[str]) -> dict[str, Any]:
    """Half of the runs with a full disk, half with a store that is away; return what was counted."""
    found = {}
    n_full = n_runs // 2 if os.geteuid() == 0 else 0
    if n_full:
        found["disk full"] = _disk_full(folder / "full", rng, n_full, violations)
    if n_runs - n_full:
        found["store away"] = _store_away(folder / "away", rng, n_runs - n_full, violations)
    return found


def _disk_full(folder: Path, rng: random.Random, n_runs: int, violations: list[str]) -> dict[str, Any]:
    folder.mkdir()
    with _mounted(folder), Deployed(folder, rng, {}) as deployed:
        ballast = folder / "ballast"

        def fill() -> None:
            left = rng.choice([0, 4096, 20_000, 100_000])  # some writes still work
            with contextlib.suppress(OSError), ballast.open("wb") as file:
                while True:
                    file.write(b"\0" * 65536)
            with ballast.open("rb+") as file:
                file.truncate(max(0, ballast.stat().st_size - left))

        return _runs(deployed, n_runs, violations, begin=fill, end=ballast.unlink)


def _store_away(folder: Path, rng: random.Random, n_runs: int, violations: list[str]) -> dict[str, Any]:
    folder.mkdir()
    with _s3(folder) as (port, environment), Door(port) as door:
        endpoint = f"http://127.0.0.1:{door.port}"
        environment |= {"RETRIEVAL_STORE_URL": "s3://retrieval/store", "FSSPEC_S3_ENDPOINT_URL": endpoint}
        os.environ.update(environment)
        import fsspec

        fsspec.config.conf["s3"] = {"endpoint_url": endpoint}
        with Deployed(folder, rng, environment) as deployed:
            return _runs(
                deployed, n_runs, violations,
                begin=lambda: door.turn(rng.choice(["shut", "jammed"])), end=lambda: door.turn("open"),
            )  # fmt: skip


def _runs(
    deployed: Deployed, n_runs: int, violations: list[str], *, begin: Callable[[], None], end: Callable[[], object]
) -> dict[str, Any]:
    seen: Counter[str] = Counter()
    rng = deployed.rng
    with Searching(deployed.collection, deployed.deployment.address, rng.randrange(10**9)) as searching:
        for number in range(n_runs):
            deployed.await_ready()
            deployed.start_reindex(rng.choice(CATALOGS))
            if rng.random() < 0.5:
                deployed.start_audit(rng.choice(CATALOGS))
            time.sleep(rng.uniform(0, _SPAN_S))
            begin()
            until = time.monotonic() + rng.uniform(2, _LONGEST_S)
            while time.monotonic() < until:
                time.sleep(0.3)
                with contextlib.suppress(JobsUnavailable):
                    if not deployed.waiting():
                        break
            with contextlib.suppress(JobsUnavailable):
                seen.update(_states(deployed))
            end()
            deployed.calm(within_s=_AWAY_CALM_S)
            print(f"disaster {number + 1} of {n_runs}", file=sys.stderr)
    deployed.settle()
    violations += deployed.violations + searching.violations
    return {
        "runs": n_runs,
        "jobs at the end of the disaster": dict(seen),
        "outcomes": dict(sorted(deployed.outcomes.items())),
        "searches": dict(searching.outcomes),
        "slowest job, s": round(deployed.slowest_s, 1),
    }


def _states(deployed: Deployed) -> list[str]:
    """The jobs that have not ended: those that wait must state a reason and a time."""
    found = []
    for job in deployed.waiting():
        if not job.waiting_for:
            found.append("queued" if job.state is JobState.QUEUED else "at work")
        elif job.next_try_at:
            found.append("waits, with a reason and the time of its next try")
        else:
            deployed.violations.append(f"waits without a time: {job}")
    return found or ["none"]


@contextlib.contextmanager
def _mounted(folder: Path) -> Iterator[None]:
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={_DISK_MB}m", "tmpfs", str(folder)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


_MOTO = "import sys; from moto.server import main; main(['-H', '127.0.0.1', '-p', sys.argv[1]])"


@contextlib.contextmanager
def _s3(folder: Path) -> Iterator[tuple[int, dict[str, str]]]:
    """Run an S3 server with one bucket; yield its port and what its clients need in their environment."""
    port = _free_port()
    environment = {"AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "x", "AWS_DEFAULT_REGION": "us-east-1"}
    with (folder / "s3.log").open("wb") as log:
        process = subprocess.Popen([sys.executable, "-c", _MOTO, str(port)], stdout=log, stderr=log)
    try:
        import boto3

        deadline = time.monotonic() + 60
        while True:
            try:
                client = boto3.client(
                    "s3", endpoint_url=f"http://127.0.0.1:{port}", region_name="us-east-1",
                    aws_access_key_id="x", aws_secret_access_key="x",
                )  # fmt: skip
                client.create_bucket(Bucket="retrieval")
                break
            except Exception:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.2)
        yield port, environment
    finally:
        process.kill()
        process.wait()


class Door:
    """A port that passes everything on to another one while it is open. Shut, it refuses; jammed, it keeps silent."""

    def __init__(self, target: int) -> None:
        self._target = target
        self.port = _free_port()
        self._state = "open"
        self._listener: socket.socket | None = None
        self._connections: set[socket.socket] = set()

    def __enter__(self) -> Door:
        self._listen()
        return self

    def __exit__(self, *_: object) -> None:
        self.turn("shut")

    def turn(self, state: str) -> None:
        """Open, shut or jam the door; shutting it breaks all connections."""
        self._state = state
        if state == "shut":
            if self._listener is not None:
                with contextlib.suppress(OSError):
                    self._listener.shutdown(socket.SHUT_RDWR)
                self._listener.close()
                self._listener = None
            for connection in list(self._connections):
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)
        elif self._listener is None:
            self._listen()

    def _listen(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", self.port), backlog=128)
        threading.Thread(target=self._accept, args=(self._listener,), daemon=True).start()

    def _accept(self, listener: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = listener.accept()
                far = socket.create_connection(("127.0.0.1", self._target))
                self._connections |= {near, far}
                for source, sink in ((near, far), (far, near)):
                    threading.Thread(target=self._pass_on, args=(source, sink), daemon=True).start()

    def _pass_on(self, source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                while self._state == "jammed":
                    time.sleep(0.05)
                sink.sendall(data)
        for end in (source, sink):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            self._connections.discard(end)


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port
