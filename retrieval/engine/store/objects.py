"""Files on any file system (local, S3, GCS, memory) that appear whole or not at all.

Decides how one object is written atomically and read locally; leaves which objects there are to `store.py`.
Hides fsspec.
"""

import contextlib
import os
import shutil
import tempfile
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path

import fsspec
from fsspec.implementations.local import LocalFileSystem

from retrieval.contract.canonical import digest_bytes
from retrieval.errors import CorruptArtifact, InvalidSettings, Unavailable


class Objects:
    """Objects under one URL, named by relative keys such as `bundles/ab12/contract.json`.

    Holds no mutable state besides a local cache of immutable objects, which one thread at a time fills; safe for
    threads and processes.
    """

    def __init__(self, url: str, *, cache: Path | None = None) -> None:
        self.url = url
        try:
            self._fs, self._root = fsspec.core.url_to_fs(url)
        except (ValueError, ImportError) as error:  # an unknown protocol, or one whose package is not installed
            raise InvalidSettings(f"the store {url} cannot be opened: {error}") from error
        self._is_local = isinstance(self._fs, LocalFileSystem)
        self._cache: Path = cache or Path(tempfile.gettempdir()) / f"retrieval-{os.getuid()}"
        self._fetching = threading.Lock()

    def exists(self, key: str) -> bool:
        """True where the object is there."""
        return bool(self._fs.isfile(self._path(key)))

    def get(self, key: str) -> bytes | None:
        """The object's bytes, or None where it is not there."""
        try:
            with self._reading(key):
                return bytes(self._fs.cat_file(self._path(key)))
        except FileNotFoundError:
            return None

    def put(self, key: str, data: bytes) -> None:
        """Write an object; a reader sees the old content or the new, never a part, also after a power cut."""
        with self._staged(key) as staged:
            staged.write_bytes(data)

    def put_file(self, key: str, source: Path) -> None:
        """Write an object from a local file; as `put`, without reading it into memory."""
        with self._staged(key) as staged:
            shutil.copyfile(source, staged)

    def delete(self, prefix: str) -> None:
        """Remove the object or the whole folder; nothing happens where there is none."""
        path = self._path(prefix)
        with self._reading(prefix), contextlib.suppress(FileNotFoundError):  # another process was first
            if self._fs.exists(path):
                self._fs.rm(path, recursive=True)

    def names(self, prefix: str) -> list[str]:
        """Names directly under a prefix, sorted; temporary files left by a killed writer are not among them."""
        path = self._path(prefix)
        self._fs.invalidate_cache(path)
        try:
            with self._reading(prefix):
                entries = self._fs.ls(path, detail=False)
        except FileNotFoundError:
            return []
        return sorted(n for n in (e.rstrip("/").rsplit("/", 1)[-1] for e in entries) if not n.startswith("."))

    def local(self, key: str) -> Path:
        """A local path of an immutable object or folder: itself on a local store, else a cached copy.

        Of a folder, its own files are copied, not its sub-folders: a bundle's hold all its embeddings. Raises
        CorruptArtifact where it is missing.
        """
        path = self._path(key)
        if not self._fs.exists(path):
            raise CorruptArtifact(f"{self.url}/{key} is missing from the store")
        if self._is_local:
            return Path(path)
        target = self._cached(key)
        with self._fetching:  # threads that want one model download it once; fsspec's memory files are for one reader
            if not target.exists():
                staging = target.with_name(f".{uuid.uuid4().hex}")
                staging.parent.mkdir(parents=True, exist_ok=True)
                self._fetch(path, staging)
                with contextlib.suppress(OSError):  # another process was first: its copy is the same
                    staging.replace(target)
                if staging.exists():
                    shutil.rmtree(staging) if staging.is_dir() else staging.unlink()
        return target

    def forget(self, key: str) -> bool:
        """Drop the cached copy of an object or folder; False where there is none."""
        cached = self._cached(key)
        if self._is_local or not cached.exists():
            return False
        shutil.rmtree(cached) if cached.is_dir() else cached.unlink()
        return True

    def _fetch(self, path: str, target: Path) -> None:
        if not self._fs.isdir(path):
            self._fs.get_file(path, str(target))
            return
        target.mkdir()
        for entry in self._fs.ls(path, detail=True):
            if entry["type"] == "file":
                self._fs.get_file(entry["name"], str(target / entry["name"].rsplit("/", 1)[-1]))

    def _cached(self, key: str) -> Path:
        # one flat name a key: with nested ones, fetching a score would make its bundle's folder seem fetched
        return self._cache / digest_bytes(self._fs.unstrip_protocol(self._path(key)).encode())

    def _path(self, key: str) -> str:
        return f"{self._root}/{key}"

    @contextlib.contextmanager
    def _reading(self, key: str) -> Iterator[None]:
        """Raises Unavailable for whatever the file system says but that there is nothing."""
        try:
            yield
        except FileNotFoundError:
            raise
        except OSError as error:
            raise Unavailable(f"cannot access {self.url}/{key}: {error}") from error

    @contextlib.contextmanager
    def _staged(self, key: str) -> Iterator[Path]:
        """A temporary local file that becomes the object when the block ends well."""
        path = self._path(key)
        folder = Path(path).parent if self._is_local else self._cache
        try:
            folder.mkdir(parents=True, exist_ok=True)
            staged = folder / f".{uuid.uuid4().hex}"
            try:
                yield staged
                if self._is_local:
                    _sync(staged)
                    staged.replace(path)
                    _sync(folder)
                else:
                    self._fs.put_file(str(staged), path)
            finally:
                staged.unlink(missing_ok=True)
        except OSError as error:
            raise Unavailable(f"cannot write {self.url}/{key}: {error}") from error


def _sync(path: Path) -> None:
    """Force a file or a folder's entries to the disk: acknowledged work survives a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
