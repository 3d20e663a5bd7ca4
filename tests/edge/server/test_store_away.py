"""A server whose store does not answer when it starts: it is alive, not serving, and gives the reason."""

from __future__ import annotations

import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import Executor
from pathlib import Path
from typing import Any

import fsspec
import grpc
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from grpc_health.v1 import health_pb2, health_pb2_grpc
from structlog.testing import capture_logs

from retrieval.client import connect
from retrieval.contract.bundle import Bundle
from retrieval.contract.operating_point import OperatingPoint
from retrieval.contract.score import Score
from retrieval.edge.cli import main
from retrieval.edge.server.serve import serve
from retrieval.edge.settings import Settings, load_settings
from retrieval.engine.encoder import Encoder
from retrieval.engine.store import Store
from retrieval.errors import InvalidSettings, Unavailable
from retrieval.flows.reindex import ReindexRequest
from retrieval.v1 import search_pb2
from tests.edge.conftest import Serving
from tests.pictures import write_class_folders
from tests.stores import activate, reindex

Status = health_pb2.HealthCheckResponse
Command = Callable[..., tuple[int, str, str]]


class LeavingFileSystem(MemoryFileSystem):  # type: ignore[misc]  # fsspec has no types
    """A file system without time limits that refuses, or answers nothing, while the test wants it."""

    protocol = "leaving"
    store: dict[str, Any] = {}  # noqa: RUF012  # as fsspec wants it
    pseudo_dirs = [""]  # noqa: RUF012
    refuses = False
    gate = threading.Event()

    def _answer(self) -> None:
        if LeavingFileSystem.refuses:
            raise RuntimeError("Could not connect to the endpoint URL")
        LeavingFileSystem.gate.wait()

    def info(self, path: str, **options: Any) -> Any:
        self._answer()
        return super().info(path, **options)

    def ls(self, path: str, **options: Any) -> Any:
        self._answer()
        return super().ls(path, **options)

    def cat_file(self, path: str, **options: Any) -> Any:
        self._answer()
        return super().cat_file(path, **options)


@pytest.fixture
def settings(
    tiny_bundle: Bundle, tiny_encoder: Encoder, cosine_point: OperatingPoint, pool: Executor, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Settings]:  # fmt: skip
    """Settings of a server over the catalogues cups and hats, in a store that answers at first."""
    fsspec.register_implementation("leaving", LeavingFileSystem, clobber=True)
    LeavingFileSystem.refuses = False
    LeavingFileSystem.gate.set()
    monkeypatch.setattr("retrieval.engine.store.objects.ANSWER_S", 0.5)
    found = load_settings(
        state_dir=tmp_path / "state",
        store_url=f"leaving://{uuid.uuid4().hex}",
        address="127.0.0.1:0",
        refresh_s=0.1,
        store_timeout_s=1,
        threads=1,
    )
    store = Store(found.store)
    store.add_bundle(tiny_bundle.directory)
    activate(store, cosine_point, Score())
    for number, catalog in enumerate(("cups", "hats")):
        folder = write_class_folders(tmp_path / catalog, n_classes=2, n_images=2, first_class=10 * number)
        reindex(store, tiny_encoder, pool, ReindexRequest(catalog=catalog, manifest_uri=str(folder)))
    yield found
    LeavingFileSystem.refuses = False
    LeavingFileSystem.gate.set()


@pytest.fixture
def retrieval(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """Run a command; stdout without the log of the server, which runs in this process."""

    def run(*arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
        monkeypatch.setattr(sys, "argv", ["retrieval", *map(str, arguments)])
        with pytest.raises(SystemExit, match=r"^\d+$") as left:
            main()
        captured = capsys.readouterr()
        lines = [line for line in captured.out.splitlines(keepends=True) if "[" not in line]
        return int(str(left.value.code)), "".join(lines), captured.err

    return run


def leave(how: str) -> None:
    LeavingFileSystem.refuses = how == "refuses"
    if how == "hangs":
        LeavingFileSystem.gate.clear()


def come_back() -> None:
    LeavingFileSystem.refuses = False
    LeavingFileSystem.gate.set()


def health_of(port: int, service: str) -> Any:
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        return health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(service=service)).status


@pytest.mark.slow
@pytest.mark.parametrize("how", ["refuses", "hangs"])
@pytest.mark.parametrize("named", ["", "cups,hats"])
def test_a_start_without_the_store(how: str, named: str, settings: Settings, retrieval: Command) -> None:
    """It starts in time; health and searches give the reason; it serves when the store is back, without a restart."""
    settings = settings.model_copy(update={"catalogs": named})
    leave(how)
    reason = "Could not connect" if how == "refuses" else "no answer within 0.5 s"
    started = time.monotonic()
    with Serving(settings) as port:
        assert time.monotonic() - started < 4
        assert [health_of(port, service) for service in ("liveness", "", "retrieval.v1.SearchService")] == [
            Status.SERVING,
            Status.NOT_SERVING,
            Status.NOT_SERVING,
        ]
        address = ("--address", f"127.0.0.1:{port}")
        code, out, err = retrieval("health", *address)
        assert (code, out) == (3, "")
        assert "error: the server answers, but does not serve: " in err
        assert reason in err
        assert retrieval("health", "--ready", *address)[0] == 3
        assert retrieval("health", "--alive", *address)[:2] == (0, "alive\n")
        query = search_pb2.Query(embedding=search_pb2.Embedding(values=[1.0]))
        with connect(f"127.0.0.1:{port}") as client, pytest.raises(Unavailable, match=reason):
            client.call(client.search.Search, search_pb2.SearchRequest(catalog="cups", query=query))
        come_back()
        deadline = time.monotonic() + 30
        while retrieval("health", *address)[:2] != (0, "serving\ncups: serving\nhats: serving\n"):
            assert time.monotonic() < deadline
            time.sleep(0.1)
        assert health_of(port, "") == Status.SERVING
        assert health_of(port, "retrieval.v1.SearchService/cups") == Status.SERVING


@pytest.mark.slow
def test_the_store_is_asked_less_and_less_often(settings: Settings) -> None:
    """The pauses grow; they are short again when it is back."""
    leave("refuses")
    with capture_logs() as logs, Serving(settings):
        time.sleep(3)
        failed = [log for log in logs if log["event"] == "refresh_failed"]
    assert 3 <= len(failed) <= 7, "without back-off there are 30"
    assert all("Could not connect" in log["reason"] and log["exc_info"] is None for log in failed)


@pytest.mark.slow
def test_a_store_that_leaves_a_running_server(settings: Settings, retrieval: Command) -> None:
    """What is live goes on; the server stays ready."""
    with Serving(settings) as port:
        leave("hangs")
        time.sleep(1.5)
        assert retrieval("health", "--address", f"127.0.0.1:{port}")[0] == 0


@pytest.mark.parametrize("url", ["nowhere://x", "gs://bucket/store", "s3://", "http:///", "file"])
def test_a_store_that_can_never_be_read_stops_the_start(url: str, tmp_path: Path) -> None:
    """An unknown scheme, a missing library, no bucket or host, a file in place of a folder."""
    if url == "file":
        (tmp_path / "file").touch()
        url = str(tmp_path / "file")
    started = time.monotonic()
    with pytest.raises(InvalidSettings, match=r"the store .* cannot be opened: "):
        serve(load_settings(state_dir=tmp_path / "state", address="127.0.0.1:0", store_url=url))
    assert time.monotonic() - started < 5


def test_one_broken_catalogue_does_not_make_the_server_unready(settings: Settings, retrieval: Command) -> None:
    """The check of a container is --ready; the strict one is for people and alarms."""
    store = Store(settings.store)
    key = f"catalogs/hats/snapshots/{store.current('hats')}/manifest.json"
    good = store.objects.get(key)
    assert good is not None
    store.objects.put(key, b"{}")
    with Serving(settings) as port:
        address = ("--address", f"127.0.0.1:{port}")
        assert [retrieval("health", *option, *address)[0] for option in ((), ("--ready",), ("--alive",))] == [3, 0, 0]
        assert retrieval("health", "--ready", "--alive", *address)[0] == 2
        assert "cups: serving\nhats: NOT serving: " in retrieval("health", "--ready", *address)[1]
    store.objects.put(f"catalogs/cups/snapshots/{store.current('cups')}/manifest.json", b"{}")
    with Serving(settings) as port:
        assert retrieval("health", "--ready", "--address", f"127.0.0.1:{port}")[0] == 3
