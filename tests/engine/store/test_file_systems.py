"""Errors of every file system end in our family, and a store that does not answer is not an empty one."""

from __future__ import annotations

import json
import tarfile
import uuid
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from retrieval.engine.store import Store
from retrieval.engine.store.objects import Objects
from retrieval.errors import CorruptArtifact, InvalidSettings, Unavailable


class ServiceError(Exception):
    """As botocore's: an error of a library, and no OSError."""


class AwayFileSystem(MemoryFileSystem):  # type: ignore[misc]  # fsspec has no types
    """A file system that does not answer while `away` is set."""

    protocol = "away"
    store: dict[str, Any] = {}  # noqa: RUF012  # as fsspec wants it
    pseudo_dirs = [""]  # noqa: RUF012
    away = False

    def _answer(self) -> None:
        if AwayFileSystem.away:
            raise ServiceError("Could not connect to the endpoint URL")

    def info(self, path: str, **options: Any) -> Any:
        self._answer()
        return super().info(path, **options)

    def ls(self, path: str, **options: Any) -> Any:
        self._answer()
        return super().ls(path, **options)

    def cat_file(self, path: str, **options: Any) -> Any:
        self._answer()
        return super().cat_file(path, **options)

    def put_file(self, source: str, path: str, **options: Any) -> Any:
        self._answer()
        return super().put_file(source, path, **options)


@pytest.fixture
def objects(tmp_path: Path) -> Iterator[Objects]:
    fsspec.register_implementation("away", AwayFileSystem, clobber=True)
    AwayFileSystem.away = False
    found = Objects(f"away://{uuid.uuid4().hex}", cache=tmp_path / "cache")
    found.put("folder/object", b"content")
    AwayFileSystem.away = True
    yield found
    AwayFileSystem.away = False


@pytest.mark.parametrize(
    "act",
    [
        lambda objects: objects.exists("folder/object"),
        lambda objects: objects.get("folder/object"),
        lambda objects: objects.put("folder/object", b"other"),
        lambda objects: objects.names("folder"),
        lambda objects: objects.local("folder"),
        lambda objects: objects.delete("folder"),
        lambda objects: objects.pointer("folder/object"),
    ],
)
def test_an_error_of_a_library_is_unavailable(act: Callable[[Objects], object], objects: Objects) -> None:
    """Not an internal error, and not "there is no such object"; afterwards everything is there."""
    with pytest.raises(Unavailable, match=r"cannot (access|write) away://.*Could not connect"):
        act(objects)
    AwayFileSystem.away = False
    assert objects.get("folder/object") == b"content"


def test_a_bundle_is_not_called_unknown_while_the_store_is_away(objects: Objects) -> None:
    store = Store(objects.url)
    with pytest.raises(Unavailable, match="cannot access"):
        store.bundle("abc")  # type: ignore[arg-type]  # a digest


@pytest.mark.parametrize(
    ("name", "content"), [("store.zip", b"no archive"), ("store.tar", b"no archive" * 99), ("refs.json", b"{")]
)
def test_an_archive_that_is_none_is_a_wrong_setting(name: str, content: bytes, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    protocol = {"store.zip": "zip", "store.tar": "tar", "refs.json": "reference"}[name]
    with pytest.raises(InvalidSettings, match=f"the store {protocol}::.* cannot be opened"):
        Objects(f"{protocol}::file://{path}")


@pytest.mark.parametrize("protocol", ["zip", "tar", "reference"])
def test_an_archive_is_read_and_cannot_be_written(protocol: str, tmp_path: Path) -> None:
    """What is in it is found, what is not is missing, and writing is refused in our family."""
    source, path = tmp_path / "object", tmp_path / "archive"
    source.write_bytes(b"content")
    if protocol == "zip":
        with zipfile.ZipFile(path, "w") as archive:
            archive.write(source, "folder/object")
    elif protocol == "tar":
        with tarfile.open(path, "w") as archive:
            archive.add(source, "folder/object")
    else:
        path.write_text(
            json.dumps({"version": 1, "refs": {"folder/object": "content", "folder/gone": ["/no/x", 0, 5]}})
        )
    objects = Objects(f"{protocol}::file://{path}", cache=tmp_path / "cache")
    assert objects.get("folder/missing") is None
    assert not objects.exists("folder/missing")
    with pytest.raises(CorruptArtifact, match="is missing from the store"):
        objects.local("missing")
    if protocol != "reference":
        with pytest.raises(Unavailable, match=r"cannot (access|write)"):
            objects.put("folder/new", b"new")


def test_a_refused_connection_is_unavailable(tmp_path: Path) -> None:
    objects = Objects("http://127.0.0.1:9/store", cache=tmp_path)
    for act in (objects.exists, objects.get, objects.names, objects.local):
        with pytest.raises(Unavailable, match="cannot access"):
            act("object")
