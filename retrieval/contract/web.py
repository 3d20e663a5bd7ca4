"""Reads over HTTP what `sources.py` allows, and nothing that a server leads to beyond that.

A name is checked when it is given, but its server may redirect elsewhere, and its address may change between two
look-ups. So each redirect is checked, and the address of each connection when it is made. Slow to import: `files.py`
does so when there is a URL.
"""

import contextvars
import errno
import functools
import os
import socket
from collections.abc import Awaitable, Callable
from typing import Any
from urllib.parse import unquote, urlsplit

import aiohttp
from fsspec.implementations.http import HTTPFileSystem

from retrieval.contract.sources import check_address, is_anywhere, is_below, refusal

_CHUNK_BYTES = 64 * 1024
_BUSY = frozenset({408, 425, 429, 500, 502, 503, 504})  # statuses that a later try may not get
_MAX_PAGES = 10_000  # of a folder: a server can link its pages to ever more
_MAX_DEPTH = 64

# The host whose connection has to be checked, while a request is made; None if a root or a proxy allows any address.
_checked_host: contextvars.ContextVar[str | None] = contextvars.ContextVar("checked_host", default=None)


class Web(HTTPFileSystem):  # type: ignore[misc]  # fsspec has no types
    """The web as folders of links. A folder holds only what is beneath it, whatever its page links to."""

    async def _ls_real(self, url: str, detail: bool = True, **options: Any) -> Any:
        entries = await super()._ls_real(url, detail=True, **options)
        beneath = [entry for entry in entries if _is_beneath(entry["name"], url)]
        return beneath if detail else sorted(entry["name"] for entry in beneath)

    async def _find(self, path: str, maxdepth: int | None = None, withdirs: bool = False, **options: Any) -> Any:
        """List the files of a folder. Raises ValueError if it does not seem to end."""
        root = self._strip_protocol(path)
        pages, files, seen = [root], set(), {root.rstrip("/")}
        depth = root.count("/") + _MAX_DEPTH
        while pages:
            page = pages.pop()
            if len(seen) > _MAX_PAGES or page.count("/") > depth:
                raise ValueError(
                    f"its pages link to more than {_MAX_PAGES:,} folders, or to {_MAX_DEPTH} in each other"
                )
            try:
                entries = await self._ls(page, detail=True)
            except FileNotFoundError:
                if page == root:
                    raise
                if page.endswith("/"):  # else a link to nothing
                    pages.append(page.rstrip("/"))
                continue
            for entry in entries:
                name = entry["name"]
                if entry["type"] != "directory":
                    files.add(name)
                elif name.rstrip("/") not in seen:
                    seen.add(name.rstrip("/"))
                    pages.append(name)
        return sorted(files)


def _is_beneath(name: str, folder: str) -> bool:
    """Return True if a URL lies in a folder under one name only: `./` would be the folder itself, again and again."""
    inside = unquote(urlsplit(name).path.removeprefix(urlsplit(folder).path.rstrip("/"))).strip("/")
    return is_below(name, folder) and not {"", ".", ".."}.intersection(inside.split("/"))


@functools.cache  # fsspec keeps a file system for each value of its options
def client_for(roots: tuple[str, ...]) -> Callable[..., Awaitable[aiohttp.ClientSession]]:
    """Return the maker of sessions for a file system that reads what these roots allow, see `check_source`."""

    async def check(request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType) -> aiohttp.ClientResponse:
        url = str(request.url)
        if any(is_below(url, root) for root in roots):
            host = None
        elif is_anywhere(roots):
            host = None if request.proxy else request.url.host
        else:
            raise refusal(url, f"it is outside of {', '.join(roots)}")
        token = _checked_host.set(host)
        try:
            return await handler(request)
        finally:
            _checked_host.reset(token)

    async def client(**options: Any) -> aiohttp.ClientSession:
        # one address after another: in a race of several, a refusal would get lost
        connector = aiohttp.TCPConnector(socket_factory=_checked_socket, happy_eyeballs_delay=None)
        return aiohttp.ClientSession(connector=connector, middlewares=(check,), **options)

    return client


def _checked_socket(found: Any) -> socket.socket:
    family, kind, protocol, _, address = found
    host = _checked_host.get()
    if host is not None and family in (socket.AF_INET, socket.AF_INET6):
        check_address(str(address[0]), host, host)
    return socket.socket(family=family, type=kind, proto=protocol)


async def get(filesystem: Any, url: str, most: int | None) -> bytes:
    """Read a URL, no further than `most` bytes even if its server sends more."""
    filesystem = getattr(filesystem, "fs", filesystem)  # of a chain the last link
    session = await filesystem.set_session()
    data = bytearray()
    async with session.get(filesystem.encode_url(url), **filesystem.kwargs) as response:
        if response.status in (404, 410):
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), url)
        response.raise_for_status()
        async for chunk in response.content.iter_chunked(_CHUNK_BYTES):
            data += chunk
            if most is not None and len(data) >= most:
                return bytes(data[:most])
    return bytes(data)


def may_pass(error: Exception) -> bool:
    """Return True for an error that the next try may not meet: a busy server or a broken connection."""
    if isinstance(error, aiohttp.ClientResponseError):
        return error.status in _BUSY
    if isinstance(error, (TimeoutError, ValueError)):  # waited long already; a wrong URL
        return False
    return isinstance(error, (ConnectionError, aiohttp.ClientError))
