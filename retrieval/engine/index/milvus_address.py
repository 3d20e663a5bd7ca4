"""The address of an index in Milvus, as `milvus:<address>` declares it, and the token for it.

http://milvus:19530/database?name=shop&index=FLAT
https://host:443?name=shop&index=IVF_FLAT&nlist=4096&nprobe=64
/data/small.db                                              (milvus-lite, a file of this machine)
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from retrieval.errors import InvalidInput

# What each kind of index of Milvus is built with, and searched with. FLAT compares all vectors.
KINDS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "FLAT": ((), ()),
    "IVF_FLAT": (("nlist",), ("nprobe",)),
    "HNSW": (("M", "efConstruction"), ("ef",)),
}

_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,63}")
_NUMBER = re.compile(r"[1-9]\d{0,6}")
_DATABASE = re.compile(r"/?[A-Za-z0-9_]*")
_EXAMPLE = "milvus:http://host:19530?name=shop"

_token = ""
_servers: tuple[str, ...] | None = None


def use_servers(servers: str, token: str) -> None:
    """Set the servers, separated by commas, that this process calls, and the token for them; before the first call.

    Without it, any server is called, and without a token. A request names the server, so one that anybody names must
    not get the token and the vectors.
    """
    global _token, _servers  # noqa: PLW0603  # values of the process, set once from its settings
    _servers = tuple(server.strip().rstrip("/") for server in servers.split(",") if server.strip())
    _token = token


def token() -> str:
    """Return the token of this process, "" if there is none."""
    return _token


@dataclass(frozen=True, slots=True, kw_only=True)
class MilvusAddress:
    """Where an index is, and how Milvus searches it. `name`: the alias that the published collection has there."""

    uri: str
    name: str = "retrieval"
    kind: str = "FLAT"
    parameters: dict[str, int] = field(default_factory=dict)

    @classmethod
    def parse(cls, text: str) -> MilvusAddress:
        """Return the address that follows `milvus:`. Raises InvalidInput; a message never holds a password."""
        uri, _, query = text.partition("?")
        _check_uri(uri)
        options = dict(parse_qsl(query, keep_blank_values=True))
        name, kind = options.pop("name", "retrieval"), options.pop("index", "FLAT")
        if not _NAME.fullmatch(name):
            raise InvalidInput(f"index milvus: expected a name of letters, digits and _ such as shop, found {name!r}")
        if kind not in KINDS:
            raise InvalidInput(f"index milvus: expected one of {', '.join(KINDS)} as index, found {kind!r}")
        wanted = {name for names in KINDS[kind] for name in names}
        if set(options) != wanted or not all(_NUMBER.fullmatch(value) for value in options.values()):
            expected = " and ".join(f"{name}=<n>" for name in sorted(wanted)) or "no more options"
            found = "&".join(f"{name}={value}" for name, value in options.items()) or "none"
            raise InvalidInput(f"index milvus: expected {expected} with {kind}, found {found}")
        return cls(uri=uri, name=name, kind=kind, parameters={name: int(value) for name, value in options.items()})

    def check_allowed(self) -> None:
        """Raise InvalidInput if the settings of this process do not name the server."""
        if _servers is not None and self.server not in _servers:
            raise InvalidInput(
                f"index milvus: expected one of the servers in RETRIEVAL_MILVUS_SERVERS "
                f"({', '.join(_servers) or 'none'}), found {self.server!r}: add it there for servers and workers"
            )

    @property
    def is_complete(self) -> bool:
        """True if Milvus compares a query with every vector."""
        return self.kind == "FLAT"

    @property
    def server(self) -> str:
        """What pymilvus connects to: the URL without the database, or the file."""
        return self.uri.removesuffix(urlsplit(self.uri).path) if "://" in self.uri else self.uri

    @property
    def database(self) -> str:
        """The database of the server, "" for its default."""
        return urlsplit(self.uri).path.strip("/") if "://" in self.uri else ""

    @property
    def index_params(self) -> dict[str, Any]:
        """What Milvus builds its index with."""
        return {name: self.parameters[name] for name in KINDS[self.kind][0]}

    @property
    def search_params(self) -> dict[str, Any]:
        """What Milvus searches its index with."""
        return {name: self.parameters[name] for name in KINDS[self.kind][1]}

    def __str__(self) -> str:
        options = {"name": self.name, "index": self.kind, **self.parameters}
        return self.uri + "?" + "&".join(f"{name}={value}" for name, value in options.items())


def _check_uri(uri: str) -> None:
    """Raise InvalidInput unless Milvus can be there and nothing in it is secret."""
    if "@" in uri:
        raise InvalidInput(
            "index milvus: expected an address without user and password, because snapshots record it: set "
            "RETRIEVAL_MILVUS_TOKEN to user:password"
        )
    try:
        parts = urlsplit(uri)
        at_server = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:
        at_server, parts = False, urlsplit("")
    if not (at_server and _DATABASE.fullmatch(parts.path)) and not (uri.endswith(".db") and "://" not in uri):
        raise InvalidInput(f"index milvus: expected an address such as {_EXAMPLE}, found {uri!r}")
