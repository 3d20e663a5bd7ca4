"""A real server on a free port, in this process, over a small indexed store; no Redis at hand."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path

import pytest

from retrieval.client import Client, connect
from retrieval.contract.bundle import Bundle
from retrieval.contract.operating_point import OperatingPoint
from retrieval.contract.score import Score
from retrieval.edge.server.serve import running_server
from retrieval.edge.settings import Settings, load_settings
from retrieval.engine.encoder import Encoder
from retrieval.engine.store import Store
from retrieval.flows import reindex
from tests.conftest import CREATED_AT
from tests.photos import write_shots
from tests.stores import embedder_of

CATALOG = "places"


@dataclass(frozen=True)
class Running:
    """A server that runs while the tests do."""

    folder: Path
    settings: Settings
    store: Store
    client: Client
    address: str


@pytest.fixture(scope="package")
def running(
    tmp_path_factory: pytest.TempPathFactory,
    tiny_bundle: Bundle,
    tiny_encoder: Encoder,
    cosine_point: OperatingPoint,
    pool: Executor,
) -> Iterator[Running]:
    """A server over a catalogue of 20 places with 4 shots each; nothing listens where it looks for a queue."""
    folder = tmp_path_factory.mktemp("server")
    settings = load_settings(
        state_dir=folder / "state", address="127.0.0.1:0", image_bytes=200_000, image_pixels=1_000_000, refresh_s=0.1
    )
    store = Store(settings.store)
    store.add_bundle(tiny_bundle.directory)
    store.put_score(tiny_bundle.digest, Score())
    store.put_operating_point(cosine_point)
    store.activate(tiny_bundle.digest, cosine_point.id)
    manifest = write_shots(folder / "images", places=range(20), n_shots=4)
    index(store, str(manifest), tiny_encoder, settings, pool)
    with Serving(settings) as port, connect(f"127.0.0.1:{port}") as client:
        yield Running(folder, settings, store, client, f"127.0.0.1:{port}")


def index(store: Store, manifest: str, encoder: Encoder, settings: Settings, pool: Executor) -> str:
    """Every step of a reindex, one after another."""
    request = reindex.ReindexRequest(catalog=CATALOG, manifest_uri=manifest)
    planned = reindex.plan(store, "job", request)
    for number in range(planned.n_shards):
        reindex.embed_planned_shard(store, "job", planned, number, embedder=embedder_of(encoder, pool, settings.limits))
    snapshot = reindex.build_and_publish(store, "job", planned, created_at=CREATED_AT)
    reindex.clear_staging(store, "job")
    return snapshot


class Serving:
    """The server on a thread with an event loop of its own; the port it got."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._loop = asyncio.new_event_loop()
        self._stop = asyncio.Event()
        self._started = threading.Event()
        self._port = 0
        self._thread = threading.Thread(target=self._loop.run_until_complete, args=(self._run(),))

    def __enter__(self) -> int:
        self._thread.start()
        assert self._started.wait(30), "the server did not start"
        return self._port

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()
        self._loop.close()

    async def _run(self) -> None:
        async with running_server(self._settings) as self._port:
            self._started.set()
            await self._stop.wait()
