"""One real Valkey for all tests of jobs, empty at the start of each test."""

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
from retrieval.edge.jobs.records import Jobs

_QUEUE = "retrieval"


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
