"""One real Valkey for all tests of jobs, empty at the start of each test, and tasks over it that a test delivers."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import redis

from retrieval.edge.jobs.embedded import embedded_valkey, socket_path
from retrieval.edge.jobs.queue import submit
from retrieval.edge.jobs.records import Job, Jobs
from retrieval.edge.jobs.tasks import Tasks
from retrieval.edge.settings import load_settings
from retrieval.engine.store import Store
from retrieval.flows.reindex import ReindexRequest
from tests.pictures import write_class_folders

_QUEUE = "retrieval"
CATALOG = "shop"
N_CLASSES, N_IMAGES = 33, 4  # 132 images: two shards


@dataclass(frozen=True)
class Message:
    """A task on the queue."""

    task: str
    arguments: tuple[Any, ...]


@pytest.fixture(scope="session")
def valkey(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The state folder of a Valkey that runs."""
    folder = tmp_path_factory.mktemp("state")
    with embedded_valkey(folder):
        yield folder


@pytest.fixture
def client(valkey: Path) -> Iterator[redis.Redis]:
    """A client of the Valkey, which is empty."""
    with redis.Redis(unix_socket_path=str(socket_path(valkey))) as client:
        client.flushall()
        yield client


@pytest.fixture
def state_dir(valkey: Path, client: redis.Redis) -> Path:
    """The state folder of an empty Valkey."""
    return valkey


@pytest.fixture
def jobs(state_dir: Path) -> Jobs:
    return Jobs(f"unix://{socket_path(state_dir)}")


def waiting(client: redis.Redis) -> list[Message]:
    """Take all messages off the queue, oldest first."""
    raw = client.lrange(_QUEUE, 0, -1)
    client.delete(_QUEUE)
    found = []
    for message in map(json.loads, reversed(raw)):
        arguments, _, _ = json.loads(base64.b64decode(message["body"]))
        found.append(Message(message["headers"]["task"], tuple(arguments)))
    return found


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures for two shards; read only."""
    return write_class_folders(tmp_path_factory.mktemp("images"), n_classes=N_CLASSES, n_images=N_IMAGES)


@pytest.fixture
def tasks(calibrated: Store, state_dir: Path) -> Iterator[Tasks]:
    """A worker over a calibrated store and an empty queue; it runs what the tests deliver."""
    tasks = Tasks(load_settings(state_dir=state_dir, store_url=calibrated.url, threads=1, worker_processes=1))
    yield tasks
    tasks.parts.embedder.pool.shutdown()


@pytest.fixture
def reindexing(tasks: Tasks, images: Path) -> Job:
    """A reindex of two shards whose first message waits."""
    return submit(tasks.app, tasks.jobs, "reindex", ReindexRequest(catalog=CATALOG, manifest_uri=str(images)))


def deliver(tasks: Tasks, message: Message) -> None:
    """Run one task in this process as Celery does; retries follow at once."""
    result = tasks.app.tasks[message.task].apply(args=message.arguments)
    assert result.state in ("SUCCESS", "RETRY"), result.traceback


def work_off(tasks: Tasks, client: redis.Redis, *, times: int = 1) -> list[str]:
    """Deliver messages, each so many times, until none waits; returns the tasks in their order."""
    done = []
    while messages := waiting(client):
        for message in messages:
            done.append(message.task)
            for _ in range(times):
                deliver(tasks, message)
    return done
