"""Reads the files and folders that paths and URLs name, in the same way in training and in serving.

Decides what a name means, what is tried again and which error each library's error becomes. `manifest.py` decides which
files are images. Local files need no library; fsspec, which is slow to import, reads everything else.
"""

import contextlib
import errno
import os
import re
import stat
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar
from urllib.parse import unquote, urljoin, urlsplit

from retrieval.contract.folders import Walk, sort_names, walk_local
from retrieval.contract.loopback import reach_directly
from retrieval.contract.sources import ANYWHERE, origin_of
from retrieval.contract.time_limits import S3, WEB, time_limits
from retrieval.errors import ImageTooLarge, InvalidImage, RetrievalError

_Result = TypeVar("_Result")

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://|file:/", re.IGNORECASE)
# fsspec reads every `::` as a link of a chain. Only after these file systems is it one, elsewhere it is part of a name.
_ARCHIVES = frozenset({"zip", "tar", "libarchive", "reference"})
_WRAPPERS = _ARCHIVES | {"simplecache", "filecache", "blockcache", "cached", "dir"}
_LINK = re.compile(r"::(?=[A-Za-z0-9+.-]+://|/|(?:simplecache|filecache|blockcache|cached|dir)::)")

_PAUSES_S = (0.2, 1.0)  # before the second and the third try


@contextlib.contextmanager
def failing_as(
    error_class: type[RetrievalError], what: str, *, but: tuple[type[Exception], ...] = ()
) -> Iterator[None]:
    """Raise `error_class` for every error of a file system in the block except `but`; `what` begins its message.

    Each file system raises errors of its own library (aiohttp, botocore, zipfile), which have no common class.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, (RetrievalError, *but)):
            raise
        raise error_class(f"{what}: {str(error) or type(error).__name__}") from error


def is_absolute(name: str) -> bool:
    """Return True for a URL, a chain of file systems or an absolute path; False for a path relative to something."""
    return name.startswith("/") or _URL.match(name) is not None or _is_chain(name)


def local_path(name: str) -> Path | None:
    """Return the path that a path or file:// URL names; None for any other URL.

    Some programs percent-encode file:// URLs and others do not: the file that exists is meant, and if neither does, the
    decoded name. In a path, % is a letter like any other.
    """
    if _is_chain(name):
        return None
    protocol, found, rest = name.partition("://")
    if found and protocol.lower() in ("file", "local"):
        literal = rest.removeprefix("localhost") if rest.startswith("localhost/") else rest
    elif name[:6].lower() == "file:/":
        literal = name[5:]
    elif _URL.match(name):
        return None
    else:
        path = Path(name)
        return path.expanduser() if name.startswith("~/") and not path.exists() else path
    if "%" in literal and not os.path.lexists(literal):
        return Path(unquote(literal, errors="surrogateescape"))
    return Path(literal)


def suffix_of(name: str) -> str:
    """Return the lower-case suffix of a path or URL; a query string does not hide it."""
    if name.partition("://")[0].lower() in WEB:
        name = unquote(urlsplit(name).path)
    return PurePosixPath(name).suffix.lower()


def read_file(name: str, most: int | None = None, *, roots: Sequence[str] | None = None) -> bytes:
    """Return the bytes of a file, or its first `most`. A remote read that failed for the moment is tried three times.

    roots: see `Place.of`.

    Raises OSError and the errors of the library that reads: see `failing_as`. Only a regular file is read, because a
    pipe or a device may never end.
    """
    path = local_path(name)
    return _read_regular(path, most) if path is not None else Place.of(name, roots=roots).read_file(most)


def read_image(name: str, most: int, *, roots: Sequence[str] | None = None) -> bytes:
    """Return the bytes of an image. Raises InvalidImage if nothing can be read, ImageTooLarge if there are over `most`.

    roots: see `Place.of`.

    Training, indexing and queries read with it.
    """
    with failing_as(InvalidImage, f"{name} cannot be read"):
        data = read_file(name, most + 1, roots=roots)
    if len(data) > most:
        raise ImageTooLarge(f"{name} has more than {most:,} bytes, the limit")
    return data


@dataclass(frozen=True, slots=True)
class Place:
    """A file or folder on a file system of fsspec. Its methods raise the errors of the library that reads."""

    filesystem: Any
    path: str
    _archive: tuple[str, str] | None = field(default=None, repr=False)  # protocol and the URL of the archive

    @classmethod
    def of(cls, name: str, *, roots: Sequence[str] | None = None) -> "Place":
        """Return the place that a path or URL names. Raises ValueError, ImportError if its protocol is unusable.

        roots: where a server of the web may lead, see `check_source`; None: to its own host and to public ones.
        """
        import fsspec

        if (path := local_path(name)) is not None:
            return cls(fsspec.filesystem("file"), str(path.absolute()))
        if _is_chain(name):
            first, rest = _LINK.split(name, 1) if _LINK.search(name) else (name, "")
            if (target := local_path(rest)) is not None:
                rest = f"file://{target.absolute()}"
            protocol, found, member = first.partition("://")
            if protocol in _ARCHIVES and found:
                filesystem, _ = fsspec.core.url_to_fs(f"{protocol}://::{rest}", **_chain_options(rest, roots))
                return cls(filesystem, member.strip("/"), (protocol, rest))
            return cls(*fsspec.core.url_to_fs(f"{first}::{rest}", **_chain_options(rest, roots)))
        protocol = name.partition("://")[0].lower()
        if protocol in WEB:
            from retrieval.contract.web import Web

            return cls(Web(**_web_options(name, roots)), name)
        kind = fsspec.get_filesystem_class(protocol)
        filesystem = kind(**{**kind._get_kwargs_from_urls(name), **time_limits(name)})
        if protocol in S3:
            reach_directly(filesystem)
        return cls(filesystem, kind._strip_protocol(name))

    @property
    def is_web(self) -> bool:
        """Whether it is read by HTTP, which has no folders, only pages with links."""
        return self.path.partition("://")[0].lower() in WEB

    @property
    def is_local(self) -> bool:
        """Whether it is on a disk of this machine."""
        return self.filesystem.protocol in ("file", ("file", "local"))

    def is_folder(self) -> bool:
        """Return True if it is a folder."""
        return bool(_retried(lambda: self.filesystem.isdir(self.path)))

    def is_file(self) -> bool:
        """Return True if it is a file."""
        if self.is_web:
            return bool(_retried(lambda: self.filesystem.exists(self.path, strict=True)))
        return bool(_retried(lambda: self.filesystem.isfile(self.path)))

    def inside(self, relative: str) -> "Place":
        """Return the place of a path inside this folder."""
        joined = f"{self.path.rstrip('/')}/{relative}" if self.path else relative
        return Place(self.filesystem, joined, self._archive)

    def beside(self, relative: str) -> str:
        """Return the URL of a path that is relative to the folder of this file."""
        if self.is_web:
            return urljoin(self.path, relative if relative.startswith("/") else f"./{relative}")
        parent = PurePosixPath(self.path).parent
        return Place(self.filesystem, str(parent / relative), self._archive).url

    @property
    def url(self) -> str:
        """The name by which every process finds it again."""
        if self._archive is not None:
            protocol, rest = self._archive
            return f"{protocol}://{self.path}::{rest}"
        return f"file://{self.path}" if self.is_local else str(self.filesystem.unstrip_protocol(self.path))

    def read_file(self, most: int | None = None) -> bytes:
        """Return the bytes of the file, or its first `most`, with a few tries."""
        if self.is_local:
            return _read_regular(Path(self.path), most)
        return _retried(lambda: self._read_once(most))

    def _read_once(self, most: int | None) -> bytes:
        if self.is_web:
            import fsspec

            from retrieval.contract.web import get

            data: bytes = fsspec.asyn.sync(self.filesystem.loop, get, self.filesystem, self.path, most)
            return data
        with self.filesystem.open(self.path, "rb") as file:
            return bytes(file.read() if most is None else file.read(most))

    def walk(self) -> Walk:
        """List the files of a folder and of its sub-folders. Links to folders are followed, each folder once."""
        return walk_local(self.path) if self.is_local else self._walk_remote()

    def _walk_remote(self) -> Walk:
        prefix = f"{self.path.rstrip('/')}/" if self.path else ""
        names = _retried(lambda: sorted(self.filesystem.find(self.path)))
        inside = [name.removeprefix(prefix) for name in names]
        # not an object that stands for a folder; an index page links to itself, sorted in other ways
        return sort_names([name for name in inside if name.strip("/") and not (self.is_web and urlsplit(name).query)])


def _is_chain(name: str) -> bool:
    first, found, _ = name.partition("::")
    return bool(found) and first.partition("://")[0] in _WRAPPERS


def _read_regular(path: Path, most: int | None) -> bytes:
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # opening a pipe would wait for its writer
    with open(descriptor, "rb") as file:  # noqa: PTH123  # a descriptor has no path
        mode = os.fstat(descriptor).st_mode
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        if not stat.S_ISREG(mode):
            raise OSError(errno.EINVAL, "expected a regular file, found a pipe, socket or device", str(path))
        return file.read() if most is None else file.read(most)


def _chain_options(rest: str, roots: Sequence[str] | None) -> dict[str, Any]:
    """Return the options of the last link of a chain, if it is read over the web."""
    last = rest.rpartition("::")[2]
    protocol = last.partition("://")[0].lower()
    return {protocol: _web_options(last, roots)} if protocol in WEB else {}


def _web_options(url: str, roots: Sequence[str] | None) -> dict[str, Any]:
    from retrieval.contract.web import client_for

    allowed = (ANYWHERE, origin_of(url)) if roots is None else tuple(roots)
    return {**time_limits(url), "get_client": client_for(allowed)}


def _retried(read: Callable[[], _Result]) -> _Result:
    for pause in _PAUSES_S:
        try:
            return read()
        except Exception as error:
            from retrieval.contract.web import may_pass

            if not may_pass(error):
                raise
        time.sleep(pause)
    return read()
