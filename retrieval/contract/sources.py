"""Decides which paths and URLs may be read for somebody else. `engine/images.py` reads them. Imports nothing slow.

A job names its images itself, so without a limit it could read every file of the worker and every host that the worker
reaches.
"""

import ipaddress
import posixpath
import re
import socket
import stat
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import unquote, urlsplit

from retrieval.errors import SourceNotAllowed

ANYWHERE = "*"
_LOCAL = ("file", "local")
# Links of a chain that read only what the next link names; `reference` reads what a file says, so it is none of them.
_WRAPPERS = ("simplecache", "filecache", "blockcache", "cached", "dir", "zip", "tar", "libarchive")
# Schemes whose URLs name a host; those of object stores name a bucket.
_OF_HOSTS = ("http", "https", "ftp", "ftps", "sftp", "ssh", "smb", "webdav", "webdavs", "webhdfs", "hdfs")
# Addresses for which a gateway reaches IPv4 hosts: everywhere, or as the network has arranged.
_NAT64, _LOCAL_NAT64 = ipaddress.IPv6Network("64:ff9b::/96"), ipaddress.IPv6Network("64:ff9b:1::/48")
# What parts a chain; in an IPv6 address `::` is none.
_LINK = re.compile(r"::(?=[A-Za-z][A-Za-z0-9+.-]*(?:://|::|$)|/)")


def check_source(name: str, roots: Sequence[str]) -> None:
    """Raise SourceNotAllowed unless this path or URL may be read.

    With roots, paths and URLs, it must lie inside one of them, links followed; the root `s3://` has all buckets. With
    no root, or outside of the others with the root `*`, its host must be public or this machine: link-local addresses
    answer with the credentials of the machine, private ones with services of the network. `web.py` checks each redirect
    and the address of each connection. A local file must be a regular one or a folder, because a pipe or a device may
    never end.
    """
    *links, last = _LINK.split(name) if "://" in name else [name]
    for link in links:
        if _scheme(link, link.partition("://")[0]) not in _WRAPPERS:
            _check_one(link, roots, name)
    _check_one(last, roots, name)


def _check_one(part: str, roots: Sequence[str], name: str) -> None:
    scheme = _scheme(part, "")
    if scheme in ("", *_LOCAL):
        for path in _paths(part):
            if not is_anywhere(roots) and not any(_is_inside(path, root) for root in roots):
                raise refusal(name, f"it is outside of {', '.join(roots)}")
            _check_regular(path, name)
    elif any(is_below(part, root) for root in roots):
        return
    elif not is_anywhere(roots):
        raise refusal(name, f"it is outside of {', '.join(roots)}")
    elif scheme in _OF_HOSTS:
        _check_host(urlsplit(part).hostname or "", name)


def is_anywhere(roots: Sequence[str]) -> bool:
    """Return True if what is outside of these roots may be read too, unless its address is private or link-local."""
    return not roots or ANYWHERE in roots


def origin_of(url: str) -> str:
    """Return scheme, host and port of a URL of the web, as a root; "" for any other name."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc}/" if parts.scheme.lower() in ("http", "https") else ""


def check_address(address: str, host: str, name: str) -> None:
    """Raise SourceNotAllowed if an address of `host` is private or link-local; that of this machine is not."""
    ip: ipaddress.IPv4Address | ipaddress.IPv6Address = ipaddress.ip_address(address.partition("%")[0])
    ip = _wrapped(ip) if isinstance(ip, ipaddress.IPv6Address) else ip
    if not (ip.is_loopback or (ip.is_global and not ip.is_multicast)) or ip in _LOCAL_NAT64:
        raise refusal(name, f"{host} has the private or link-local address {ip}")


def _wrapped(ip: ipaddress.IPv6Address) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    """Return the IPv4 address that a gateway or the kernel reaches for an IPv6 address; the address itself if none."""
    if ip in _NAT64:
        return ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
    return ip.ipv4_mapped or ip.sixtofour or (ip.teredo[1] if ip.teredo else ip)


def _scheme(part: str, otherwise: str) -> str:
    found, separator, _ = part.partition("://")
    if separator:
        return found.lower()
    return "file" if part[:6].lower() == "file:/" else otherwise.lower()


def _paths(part: str) -> list[Path]:
    """Return the paths that a local name may mean: some programs percent-encode file:// URLs, others do not."""
    _, found, rest = part.partition("://")
    if not found:
        rest = part[5:] if part[:6].lower() == "file:/" else part
        return [Path(rest).expanduser() if rest.startswith("~") else Path(rest)]
    rest = rest.removeprefix("localhost") if rest.startswith("localhost/") else rest
    return [Path(rest)] if "%" not in rest else [Path(rest), Path(unquote(rest))]


def _is_inside(path: Path, root: str) -> bool:
    if _scheme(root, "") not in ("", *_LOCAL):
        return False
    try:
        resolved = path.resolve()
        return any(resolved.is_relative_to(folder.resolve()) for folder in _paths(root))
    except (OSError, ValueError, RuntimeError):  # a loop of links, or a zero byte
        return False


def is_below(url: str, root: str) -> bool:
    """Return True if a URL is a root or lies beneath it; a root without a host has all hosts, or buckets."""
    asked, allowed = urlsplit(url), urlsplit(root)
    if not allowed.netloc and root.endswith("://"):
        return asked.scheme.lower() == allowed.scheme.lower()
    if (asked.scheme.lower(), asked.netloc.lower()) != (allowed.scheme.lower(), allowed.netloc.lower()):
        return False
    path = unquote(unquote(asked.path))
    if "\\" in path or ".." in path.split("/"):
        return False
    inside, folder = (
        posixpath.normpath("/" + path.lstrip("/")),
        posixpath.normpath("/" + unquote(allowed.path).lstrip("/")),
    )
    return folder == "/" or inside == folder or inside.startswith(f"{folder}/")


def _check_regular(path: Path, name: str) -> None:
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError):
        return  # whoever reads it finds the cause
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise refusal(name, "it is a pipe, a socket or a device, and only regular files are read")


def _check_host(host: str, name: str) -> None:
    try:
        found = {str(entry[4][0]) for entry in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)}
    except (OSError, UnicodeError):
        return  # as above
    for address in found:
        check_address(address, host, name)


def refusal(name: str, reason: str) -> SourceNotAllowed:
    """Return the error for a path or URL that may not be read."""
    return SourceNotAllowed(f"{name} may not be read: {reason}; RETRIEVAL_IMAGE_ROOTS lists what may")
