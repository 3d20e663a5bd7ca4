"""Objects appear whole or not at all, on any file system."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import threading
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from retrieval.engine.store.objects import Objects
from retrieval.errors import CorruptArtifact, OutOfSpace, Unavailable

# Writes an object and dies where its temporary file is complete but not yet renamed.
KILLED_WRITER = """
import os, signal, sys
import retrieval.engine.store.objects as objects
objects._sync = lambda path: os.kill(os.getpid(), signal.SIGKILL)
objects.Objects(sys.argv[1]).put("folder/pointer", b"new")
"""


@pytest.fixture(params=["file", "memory"])
def objects(request: pytest.FixtureRequest, tmp_path: Path) -> Objects:
    """An empty store of objects: on the local disk, or on a remote file system as fsspec sees one."""
    root = tmp_path / "root" if request.param == "file" else Path(f"/{uuid.uuid4().hex}")
    return Objects(f"{request.param}://{root}", cache=tmp_path / "cache")


def test_put_and_get(objects: Objects) -> None:
    assert objects.get("a/b.bin") is None
    assert not objects.exists("a/b.bin")
    objects.put("a/b.bin", b"one")
    objects.put("a/b.bin", b"two")
    assert objects.get("a/b.bin") == b"two"
    assert objects.exists("a/b.bin")
    assert not objects.exists("a"), "a folder is no object"


def test_put_file(objects: Objects, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(b"content")
    objects.put_file("a/copy", source)
    assert objects.get("a/copy") == b"content"
    assert source.read_bytes() == b"content"


def test_names(objects: Objects) -> None:
    """Direct children, files and folders, sorted; also what was written after the last look."""
    assert objects.names("a") == []
    objects.put("a/2", b"")
    objects.put("a/1/deep", b"")
    assert objects.names("a") == ["1", "2"]
    objects.put("a/3", b"")
    assert objects.names("a") == ["1", "2", "3"]


def test_delete(objects: Objects) -> None:
    objects.put("a/1/deep", b"")
    objects.put("a/2", b"")
    objects.delete("a/1")
    objects.delete("a/1")
    assert objects.names("a") == ["2"]
    objects.delete("a/2")
    assert objects.get("a/2") is None


def test_local_gives_readable_files(objects: Objects) -> None:
    """An object, and a folder's own files; the folders inside it are not fetched."""
    objects.put("bundle/model", b"m")
    objects.put("bundle/contract", b"c")
    objects.put("bundle/embeddings/many", b"e")
    assert objects.local("bundle/model").read_bytes() == b"m"
    folder = objects.local("bundle")
    assert {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()} == {
        "model": b"m",
        "contract": b"c",
    }
    with pytest.raises(CorruptArtifact, match="nothing is missing from the store"):
        objects.local("nothing")


def test_remote_objects_are_fetched_once(tmp_path: Path) -> None:
    """The cached copy serves again, sub-folders stay where they are, and many threads may ask at once."""
    objects = Objects(f"memory://{uuid.uuid4().hex}", cache=tmp_path)
    objects.put("bundle/model", b"m")
    objects.put("bundle/embeddings/many", b"e")
    with ThreadPoolExecutor(8) as pool:
        folders = set(pool.map(lambda _: objects.local("bundle"), range(32)))
    (folder,) = folders
    assert [path.name for path in folder.iterdir()] == ["model"]
    assert list(tmp_path.rglob(".*")) == [], "no half-fetched copy is left"
    objects.put("bundle/model", b"changed")
    assert objects.local("bundle") == folder
    assert (folder / "model").read_bytes() == b"m", "what is cached is immutable by contract"


def test_a_writer_killed_before_the_rename_changes_nothing(tmp_path: Path) -> None:
    """The old content stays, and nobody sees the temporary file."""
    url = f"file://{tmp_path}"
    objects = Objects(url)
    objects.put("folder/pointer", b"old")
    child = subprocess.run([sys.executable, "-c", KILLED_WRITER, url], check=False)
    assert child.returncode == -9
    assert objects.get("folder/pointer") == b"old"
    assert objects.names("folder") == ["pointer"]
    assert len(list((tmp_path / "folder").iterdir())) == 2, "the killed writer left a temporary file"
    objects.put("folder/pointer", b"new")
    assert objects.get("folder/pointer") == b"new"


def test_readers_never_see_a_part(tmp_path: Path) -> None:
    """While writers race, every read is the whole content of one of them."""
    objects = Objects(f"file://{tmp_path}")
    contents = [bytes([number]) * 200_000 for number in range(3)]
    objects.put("pointer", contents[0])
    finished = threading.Event()

    def write(content: bytes) -> None:
        for _ in range(15):
            objects.put("pointer", content)

    def read() -> int:
        n_reads = 0
        while not finished.is_set():
            assert objects.get("pointer") in contents
            n_reads += 1
        return n_reads

    with ThreadPoolExecutor(4) as pool:
        reader = pool.submit(read)
        for writer in [pool.submit(write, content) for content in contents]:
            writer.result()
        finished.set()
        assert reader.result() > 0
    assert [path.name for path in tmp_path.iterdir()] == ["pointer"]


def test_a_failed_write_leaves_nothing(objects: Objects, tmp_path: Path) -> None:
    """A source that cannot be read is reported, and no object appears."""
    with pytest.raises(Unavailable, match=r"cannot write .*a/copy"):
        objects.put_file("a/copy", tmp_path / "no such file")
    assert objects.names("a") == []


def test_a_store_that_cannot_be_written_is_unavailable(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(Unavailable, match="cannot write"):
        Objects(f"file://{tmp_path}/file/below").put("key", b"")


# pointers and folders that are opened


@pytest.mark.parametrize("data", [b"", b"../other", b"two words", b"\xff\xfe", b"x" * 65])
def test_a_pointer_holds_one_name(objects: Objects, data: bytes) -> None:
    """Written by hand with a line end it still counts; anything else is damage."""
    assert objects.pointer("a/CURRENT") is None
    objects.put("a/CURRENT", b"s-1_A\n")
    assert objects.pointer("a/CURRENT") == "s-1_A"
    objects.put("a/CURRENT", data)
    with pytest.raises(CorruptArtifact, match=r"a/CURRENT: expected one id, found .*: publish or activate again"):
        objects.pointer("a/CURRENT")


def test_an_artefact_that_is_damaged_in_the_cache_is_fetched_once_more(tmp_path: Path) -> None:
    """Damaged in the store too, it is reported; on a local store there is nothing to fetch."""

    def text(folder: Path) -> str:
        content = (folder / "file").read_text()
        if content != "good":
            raise CorruptArtifact(f"found {content}")
        return content

    objects = Objects(f"memory://{uuid.uuid4().hex}", cache=tmp_path / "cache")
    objects.put("a/file", b"good")
    assert objects.opened("a", text) == "good"
    (objects.local("a") / "file").write_text("bad")
    assert objects.opened("a", text) == "good"
    objects.put("a/file", b"worse")
    (objects.local("a") / "file").write_text("bad")
    with pytest.raises(CorruptArtifact, match="found worse"):
        objects.opened("a", text)
    local = Objects(f"file://{tmp_path}/local")
    local.put("a/file", b"bad")
    with pytest.raises(CorruptArtifact, match="found bad"):
        local.opened("a", text)


@pytest.mark.parametrize("name", ["my store", "bücher", "a::b", "100%", "a%20b"])
def test_a_store_lies_in_the_folder_that_its_name_says(tmp_path: Path, name: str) -> None:
    """Whether its URL is percent-encoded or not."""
    Objects((tmp_path / name).as_uri()).put("folder/object", b"1")
    assert (tmp_path / name / "folder" / "object").read_bytes() == b"1"
    for url in (str(tmp_path / name), f"file://{tmp_path}/{name}", (tmp_path / name).as_uri()):
        assert Objects(url).get("folder/object") == b"1"
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_errors_of_every_library_make_the_store_unavailable(tmp_path: Path) -> None:
    """Botocore's and aiohttp's are no OSError."""

    class AwayError(Exception):
        pass

    class Away:
        def __getattr__(self, name: str) -> object:
            def fail(*_: object, **__: object) -> None:
                raise AwayError("away")

            return fail if name != "invalidate_cache" else lambda *_: None

    objects = Objects("memory://away", cache=tmp_path)
    objects._fs = Away()
    for call in (
        lambda: objects.get("a"),
        lambda: objects.exists("a"),
        lambda: objects.put("a", b""),
        lambda: objects.delete("a"),
        lambda: objects.names("a"),
        lambda: objects.local("a"),
    ):
        with pytest.raises(Unavailable, match=r"memory://away/a: .*away"):
            call()


def test_copies_of_a_remote_store_are_bounded(tmp_path: Path) -> None:
    """What was not used for the longest time goes first; a copy in use stays, what a killed writer left goes."""
    cache = tmp_path / "cache"
    objects = Objects(f"memory:///{uuid.uuid4().hex}", cache=cache, cache_bytes=25_000)
    for name in "abcd":
        objects.put(f"{name}/file", bytes(10_000))
    paths = {}
    for age, name in ((3000, "a"), (4000, "b"), (2000, "c")):
        paths[name] = objects.local(name)
        os.utime(paths[name], (time.time() - age,) * 2)
    (cache / ".left").write_bytes(b"x")
    os.utime(cache / ".left", (time.time() - 9000,) * 2)
    objects.local("b")  # it is in use now
    objects.local("d")
    assert [name for name in "abc" if paths[name].exists()] == ["b"]
    assert not (cache / ".left").exists()
    assert len((objects.local("a") / "file").read_bytes()) == 10_000


def test_a_full_disk_is_named(objects: Objects, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is no store that is away for a moment: another try meets it again."""
    objects.put("a", b"old")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OutOfSpace, match=r"^disk full: cannot write .*/a: .*No space left on device"):
        objects.put("a", b"new")
    assert objects.get("a") == b"old"
