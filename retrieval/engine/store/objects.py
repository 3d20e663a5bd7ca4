"""Objects on any file system (local, S3, GCS, memory), which appear whole or not at all.

This file writes one object atomically and reads it locally; the other files of the folder decide which objects there
are. `contract/files.py` opens the file system.
"""

import contextlib
import os
import re
import shutil
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

from retrieval.contract.canonical import digest_bytes
from retrieval.contract.files import Place, failing_as
from retrieval.engine.store.calls import ANSWER_S, answering, is_full, transfer_s, within
from retrieval.errors import (
    CorruptArtifact,
    InvalidInput,
    InvalidSettings,
    OutOfSpace,
    Unavailable,
)

_Artifact = TypeVar("_Artifact")

CACHE_BYTES = 8 * 1024**3
_IN_USE_S = 600.0  # a copy that was used since then may be about to be opened
_TEMPORARY = re.compile(r"\.[0-9a-f]{32}")  # names of `_staged`
_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")


def checked_name(name: str, what: str) -> str:
    """Return `name` if it can be part of a key: letters, digits, - and _ only. Raises InvalidInput otherwise."""
    if not _NAME.fullmatch(name):
        raise InvalidInput(f"{what}: expected 1 to 64 letters, digits, - or _, found {name!r}")
    return name


class Objects:
    """Objects under one URL, named by relative keys such as `bundles/ab12/contract.json`.

    The only mutable state is a local cache of immutable objects, which one thread at a time fills; safe for threads
    and processes.
    """

    def __init__(self, url: str, *, cache: Path | None = None, cache_bytes: int = CACHE_BYTES) -> None:
        """Open a store; local copies of remote objects take at most about `cache_bytes`."""
        self.url = url
        self._cache_bytes = cache_bytes
        with failing_as(InvalidSettings, f"the store {url} cannot be opened"):
            place = Place.of(url)
            _check_place(url, place)
        self._fs, self._root, self._is_local = place.filesystem, place.path, place.is_local
        if hasattr(self._fs, "retries"):
            self._fs.retries = 1  # of s3fs, beside those of botocore: a store that is away would take four times longer
        if (listings := getattr(self._fs, "dircache", None)) is not None:  # other processes write too: what is new
            self._fs.invalidate_cache()  # would seem to be missing
            listings.use_listings_cache = False
        self._cache: Path = cache or Path(tempfile.gettempdir()) / f"retrieval-{os.getuid()}"
        self._fetching = threading.Lock()

    def exists(self, key: str) -> bool:
        """Return True if the object exists."""
        return self._kind(key) == "file"

    def get(self, key: str, *, limit_s: float | None = None) -> bytes | None:
        """Return the bytes of an object, or None if it does not exist. A remote store gets `limit_s` seconds."""
        try:
            return bytes(self._ask(key, limit_s or transfer_s(), "cat_file"))
        except FileNotFoundError:
            return None

    def put(self, key: str, data: bytes) -> None:
        """Write an object; a reader sees the old content or the new, never a part, also after a power cut."""
        with self._staged(key) as staged:
            staged.write_bytes(data)

    def put_file(self, key: str, source: Path) -> None:
        """Write an object as `put` does, from a local file and without reading it into memory."""
        with self._staged(key) as staged:
            shutil.copyfile(source, staged)

    def delete(self, prefix: str) -> None:
        """Remove an object or a whole folder, if it exists."""
        with contextlib.suppress(FileNotFoundError):  # another process was first
            if self._kind(prefix):
                self._ask(prefix, transfer_s(), "rm", recursive=True)

    def names(self, prefix: str) -> list[str]:
        """Return the names directly under a prefix, sorted, without temporary files that a killed writer left."""
        try:
            entries = self._ask(prefix, ANSWER_S, "ls", detail=False)
        except FileNotFoundError:
            return []
        return sorted(n for n in (e.rstrip("/").rsplit("/", 1)[-1] for e in entries) if not n.startswith("."))

    def artefacts(self, prefix: str, suffix: str = "") -> list[str]:
        """Return the names with a suffix, directly under a prefix, that can be those of artefacts: no `Thumbs.db`."""
        return [
            name for name in self.names(prefix) if name.endswith(suffix) and _NAME.fullmatch(name.removesuffix(suffix))
        ]

    def modified(self, key: str) -> datetime:
        """Return when an object was written; the present time if it has gone or the file system does not know."""
        try:
            found: datetime = self._ask(key, ANSWER_S, "modified")
        except (FileNotFoundError, NotImplementedError):
            return datetime.now(UTC)
        return found if found.tzinfo else found.replace(tzinfo=UTC)

    def last_written(self, prefix: str) -> datetime:
        """Return when a file directly under a prefix was last written; the present time if there is none."""
        return max((self.modified(f"{prefix}/{name}") for name in self.names(prefix)), default=datetime.now(UTC))

    def left_over(self, before: datetime) -> list[str]:
        """Return the keys of temporary files that a killed writer left before this time; only a local store has any."""
        if not self._is_local:
            return []
        root = Path(self._root)
        found = (path for path in root.rglob(".*") if _TEMPORARY.fullmatch(path.name) and path.is_file())
        keys = (str(path.relative_to(root)) for path in found)
        return sorted(key for key in keys if self.modified(key) < before)

    def local(self, key: str) -> Path:
        """Return a local path of an immutable object or folder: itself on a local store, else a cached copy.

        A copied folder has its own files but not its sub-folders, because those of a bundle hold all its embeddings.
        Raises CorruptArtifact if it is missing.
        """
        path = self._path(key)
        if not self._kind(key):
            raise CorruptArtifact(f"{self.url}/{key} is missing from the store")
        if self._is_local:
            return Path(path)
        target = self._cached(key)
        with contextlib.suppress(OSError):
            os.utime(target)  # the copies that were not used for the longest time go first
        with self._fetching:  # one download for all threads; fsspec's memory files allow one reader
            if not target.exists():
                staging = target.with_name(f".{uuid.uuid4().hex}")
                staging.parent.mkdir(parents=True, exist_ok=True)
                with self._fetching_into(staging, key):
                    self._fetch(key, staging)
                with contextlib.suppress(OSError):  # another process was first: its copy is the same
                    staging.replace(target)
                if staging.exists():
                    shutil.rmtree(staging) if staging.is_dir() else staging.unlink()
                self._bound_cache()
        return target

    def _bound_cache(self) -> None:
        """Remove the copies that were not used for the longest time, until the rest fits, and what kills left."""
        entries = []
        for path in self._cache.iterdir():
            with contextlib.suppress(OSError):  # another process removed it
                files = [path, *path.iterdir()] if path.is_dir() else [path]
                entries.append((path.stat().st_mtime, sum(file.stat().st_size for file in files), path))
        total = sum(size for _, size, _ in entries)
        for used_at, size, path in sorted(entries):
            is_left_over = path.name.startswith(".")
            if time.time() - used_at < _IN_USE_S or (total <= self._cache_bytes and not is_left_over):
                continue
            shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)
            total -= size

    def forget(self, key: str) -> bool:
        """Remove the cached copy of an object or folder; return False if there is none."""
        cached = self._cached(key)
        if self._is_local or not cached.exists():
            return False
        shutil.rmtree(cached) if cached.is_dir() else cached.unlink()
        return True

    def opened(self, key: str, open_artifact: Callable[[Path], _Artifact]) -> _Artifact:
        """Open the artefact in a folder; fetch a damaged cached copy once more before reporting CorruptArtifact."""
        try:
            return open_artifact(self.local(key))
        except CorruptArtifact:
            if not self.forget(key):
                raise
            return open_artifact(self.local(key))

    def pointer(self, key: str) -> str | None:
        """Return the name in a pointer, None if there is no pointer. Raises CorruptArtifact if it holds no name."""
        data = self.get(key, limit_s=ANSWER_S)
        if data is None:
            return None
        name = data.decode(errors="replace").strip()
        if not _NAME.fullmatch(name):
            raise CorruptArtifact(f"{self.url}/{key}: expected one id, found {data[:80]!r}: publish or activate again")
        return name

    @contextlib.contextmanager
    def _fetching_into(self, staging: Path, key: str) -> Iterator[None]:
        """Remove what was fetched if the block fails, and raise OutOfSpace or Unavailable for its OSError."""
        try:
            yield
        except BaseException as error:
            shutil.rmtree(staging, ignore_errors=True)
            staging.unlink(missing_ok=True)
            if not isinstance(error, OSError):
                raise
            if is_full(error):
                raise OutOfSpace(f"disk full: cannot fetch {self.url}/{key} into {staging.parent}: {error}") from error
            raise Unavailable(f"cannot fetch {self.url}/{key}: {error}") from error

    def _fetch(self, key: str, target: Path) -> None:
        found = self._ask(key, ANSWER_S, "info")
        if found["type"] != "directory":
            self._ask(key, transfer_s(found.get("size") or 0), "get_file", str(target))
            return
        target.mkdir()
        for entry in self._ask(key, ANSWER_S, "ls", detail=True):
            if entry["type"] == "file":
                name = entry["name"].rsplit("/", 1)[-1]
                self._ask(f"{key}/{name}", transfer_s(entry.get("size") or 0), "get_file", str(target / name))

    def _kind(self, key: str) -> str:
        """Return `file`, `directory` or, if nothing is there, "". Raises Unavailable if the store does not answer.

        The `exists` and `isfile` of fsspec would answer False then, and whatever is stored would seem to be missing.
        """
        path = self._path(key)
        if self._is_local:
            return "file" if Path(path).is_file() else "directory" if Path(path).is_dir() else ""
        try:
            return str(self._ask(key, ANSWER_S, "info")["type"])
        except FileNotFoundError:
            return ""

    def _cached(self, key: str) -> Path:
        # one flat name for each key: in nested folders, a fetched score would make its bundle look fetched
        return self._cache / digest_bytes(self._fs.unstrip_protocol(self._path(key)).encode())

    def _path(self, key: str) -> str:
        return f"{self._root}/{key}"

    def _ask(self, key: str, limit_s: float, method: str, *arguments: Any, **options: Any) -> Any:
        """Call a method of the file system for an object or folder; a remote one gets `limit_s` seconds.

        Raises Unavailable, and FileNotFoundError if the object is missing.
        """
        call = getattr(self._fs, method)
        with answering(f"cannot access {self.url}/{key}"):
            if self._is_local:
                return call(self._path(key), *arguments, **options)
            return within(limit_s, call, self._path(key), *arguments, **options)

    @contextlib.contextmanager
    def _staged(self, key: str) -> Iterator[Path]:
        """Yield a temporary local file that becomes the object if the block succeeds."""
        path = self._path(key)
        folder = Path(path).parent if self._is_local else self._cache
        what = f"cannot write {self.url}/{key}"
        with failing_as(Unavailable, what), answering(what), _full_disk_named(what):
            folder.mkdir(parents=True, exist_ok=True)
            staged = folder / f".{uuid.uuid4().hex}"
            try:
                yield staged
                if self._is_local:
                    _sync(staged)
                    staged.replace(path)
                    _sync(folder)
                else:
                    within(transfer_s(staged.stat().st_size), self._fs.put_file, str(staged), path)
            finally:
                staged.unlink(missing_ok=True)


@contextlib.contextmanager
def _full_disk_named(what: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if is_full(error):
            raise OutOfSpace(f"disk full: {what}: {error}") from error
        raise


def _check_place(url: str, place: Place) -> None:
    """Raise OSError or ValueError if nothing can ever be stored there: a file, or a URL without bucket or host."""
    if place.is_local and Path(place.path).is_file():
        raise NotADirectoryError(f"expected a folder, found a file: {place.path}")
    if not place.is_local and not url.partition(":")[2].strip("/"):
        raise ValueError("expected a bucket, host or path after the scheme")


def _sync(path: Path) -> None:
    """Force a file, or the entries of a folder, to the disk, so that acknowledged work survives a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
