"""Objects on any file system (local, S3, GCS, memory), which appear whole or not at all.

This file writes one object atomically and reads it locally; the other files of the folder decide which objects there
are. `contract/files.py` opens the file system.
"""

import contextlib
import errno
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
from retrieval.errors import (
    CorruptArtifact,
    InvalidInput,
    InvalidSettings,
    OutOfSpace,
    RetrievalError,
    Unavailable,
)

_Artifact = TypeVar("_Artifact")

CACHE_BYTES = 8 * 1024**3
_IN_USE_S = 600.0  # a copy that was used since then may be about to be opened
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_CONNECT_S, _READ_S = 3.0, 10.0  # how long a store may take to accept a connection, and to send the next bytes
_RETRIES = 2  # of s3fs, beside those of botocore; its own default, 5, makes 20 s of a store that is away
_NOT_FOUND = 404  # the status of HTTP
_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")


def checked_name(name: str, what: str) -> str:
    """Return `name` if it can be part of a key: letters, digits, - and _ only. Raises InvalidInput otherwise."""
    if not _NAME.fullmatch(name):
        raise InvalidInput(f"{what}: expected 1 to 64 letters, digits, - or _, found {name!r}")
    return name


def is_full(error: OSError) -> bool:
    """Return True if a file could not be written because the disk, the quota or the largest file size is used up."""
    return error.errno in _FULL


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
            place = Place.of(url, **_time_limits(url))
        self._fs, self._root, self._is_local = place.filesystem, place.path, place.is_local
        if hasattr(self._fs, "retries"):
            self._fs.retries = _RETRIES
        if (listings := getattr(self._fs, "dircache", None)) is not None:  # other processes write too: what is new
            self._fs.invalidate_cache()  # would seem to be missing
            listings.use_listings_cache = False
        self._cache: Path = cache or Path(tempfile.gettempdir()) / f"retrieval-{os.getuid()}"
        self._fetching = threading.Lock()

    def exists(self, key: str) -> bool:
        """Return True if the object exists."""
        return self._kind(key) == "file"

    def get(self, key: str) -> bytes | None:
        """Return the bytes of an object, or None if it does not exist."""
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
        """Write an object as `put` does, from a local file and without reading it into memory."""
        with self._staged(key) as staged:
            shutil.copyfile(source, staged)

    def delete(self, prefix: str) -> None:
        """Remove an object or a whole folder, if it exists."""
        path = self._path(prefix)
        with self._reading(prefix), contextlib.suppress(FileNotFoundError):  # another process was first
            if self._kind(prefix):
                self._fs.rm(path, recursive=True)

    def names(self, prefix: str) -> list[str]:
        """Return the names directly under a prefix, sorted, without temporary files that a killed writer left."""
        path = self._path(prefix)
        self._fs.invalidate_cache(path)
        try:
            with self._reading(prefix):
                entries = self._fs.ls(path, detail=False)
        except FileNotFoundError:
            return []
        return sorted(n for n in (e.rstrip("/").rsplit("/", 1)[-1] for e in entries) if not n.startswith("."))

    def modified(self, key: str) -> datetime:
        """Return when an object was written; the present time if it has gone or the file system does not know."""
        try:
            with self._reading(key):
                found: datetime = self._fs.modified(self._path(key))
        except (FileNotFoundError, NotImplementedError):
            return datetime.now(UTC)
        return found if found.tzinfo else found.replace(tzinfo=UTC)

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
                with self._reading(key), self._fetching_into(staging, key):
                    self._fetch(path, staging)
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
        data = self.get(key)
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

    def _fetch(self, path: str, target: Path) -> None:
        with self._known_errors(path):
            if self._fs.info(path)["type"] != "directory":
                self._fs.get_file(path, str(target))
                return
            target.mkdir()
            for entry in self._fs.ls(path, detail=True):
                if entry["type"] == "file":
                    self._fs.get_file(entry["name"], str(target / entry["name"].rsplit("/", 1)[-1]))

    def _kind(self, key: str) -> str:
        """Return `file`, `directory` or, if nothing is there, "". Raises Unavailable if the store does not answer.

        The `exists` and `isfile` of fsspec would answer False then, and whatever is stored would seem to be missing.
        """
        path = self._path(key)
        if self._is_local:
            return "file" if Path(path).is_file() else "directory" if Path(path).is_dir() else ""
        try:
            with self._reading(key):
                return str(self._fs.info(path)["type"])
        except FileNotFoundError:
            return ""

    def _cached(self, key: str) -> Path:
        # one flat name for each key: in nested folders, a fetched score would make its bundle look fetched
        return self._cache / digest_bytes(self._fs.unstrip_protocol(self._path(key)).encode())

    def _path(self, key: str) -> str:
        return f"{self._root}/{key}"

    @contextlib.contextmanager
    def _reading(self, key: str) -> Iterator[None]:
        """Raise Unavailable for every error of the file system except a missing file."""
        try:
            with self._known_errors(key):
                yield
        except FileNotFoundError as error:
            if _is_away(error.__cause__):
                raise Unavailable(f"cannot access {self.url}/{key}: {error.__cause__}") from error
            raise
        except OSError as error:
            raise Unavailable(f"cannot access {self.url}/{key}: {error}") from error

    @contextlib.contextmanager
    def _known_errors(self, key: str) -> Iterator[None]:
        """Raise Unavailable for an error of a file system's own library, such as botocore, that is no OSError."""
        try:
            yield
        except (OSError, RetrievalError):
            raise
        except Exception as error:
            named = f"{type(error).__module__}.{type(error).__name__}"
            raise Unavailable(f"cannot access {self.url}/{key}: {named}: {error}") from error

    @contextlib.contextmanager
    def _staged(self, key: str) -> Iterator[Path]:
        """Yield a temporary local file that becomes the object if the block succeeds."""
        path = self._path(key)
        folder = Path(path).parent if self._is_local else self._cache
        what = f"cannot write {self.url}/{key}"
        with failing_as(Unavailable, what), _full_disk_named(what):
            folder.mkdir(parents=True, exist_ok=True)
            staged = folder / f".{uuid.uuid4().hex}"
            try:
                yield staged
                if self._is_local:
                    _sync(staged)
                    staged.replace(path)
                    _sync(folder)
                else:
                    with self._known_errors(key):
                        self._fs.put_file(str(staged), path)
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


def _time_limits(url: str) -> dict[str, Any]:
    """Return the options that bound how long a file system waits: for a connection, and for the next bytes.

    What FSSPEC_* variables or files configure for the protocol takes precedence.
    """
    protocol = url.split("://", 1)[0] if "://" in url else "file"
    if protocol in {"s3", "s3a"}:
        import fsspec

        given = fsspec.config.conf.get(protocol, {})
        limits = {"connect_timeout": _CONNECT_S, "read_timeout": _READ_S, "retries": {"max_attempts": 1}}
        return {"config_kwargs": limits | given.get("config_kwargs", {})}
    return {}  # those of HTTP are set in contract/files.py


def _is_away(cause: BaseException | None) -> bool:
    """Return True if a "not found" hides that nothing answered: fsspec's HTTP reports every error as such."""
    if isinstance(cause, OSError):
        return not isinstance(cause, FileNotFoundError)
    return getattr(cause, "status", _NOT_FOUND) != _NOT_FOUND


def _sync(path: Path) -> None:
    """Force a file, or the entries of a folder, to the disk, so that acknowledged work survives a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
