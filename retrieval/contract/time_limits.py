"""How long a file system of fsspec may take. The options that limit it are written here and nowhere else.

What FSSPEC_* variables or files configure for a protocol takes precedence. File systems without such options are
limited by `engine/store/calls.py` when they hold a store.
"""

from typing import Any

from retrieval.contract.loopback import is_loopback

WEB = ("http", "https")
S3 = ("s3", "s3a")

_CONNECT_S, _SILENCE_S, _WHOLE_S = 10, 30, 120  # HTTP: to connect, between two pieces of an answer, for all of it
_S3_CONNECT_S, _S3_SILENCE_S = 3.0, 10.0


def time_limits(url: str) -> dict[str, Any]:
    """Return the options that limit how long the file system of a URL waits; {} if it has none that are known."""
    protocol = url.partition("://")[0].lower()
    if protocol in WEB:
        return _web(url)
    return _s3(protocol) if protocol in S3 else {}


def _web(url: str) -> dict[str, Any]:
    import aiohttp

    timeout = aiohttp.ClientTimeout(total=_WHOLE_S, sock_connect=_CONNECT_S, sock_read=_SILENCE_S)
    # trust_env: use the proxies of the environment
    return {"client_kwargs": {"timeout": timeout, "trust_env": not is_loopback(url)}}


def _s3(protocol: str) -> dict[str, Any]:
    import fsspec

    given = fsspec.config.conf.get(protocol, {}).get("config_kwargs", {})
    # one more try of botocore; s3fs itself tries again as often as `engine/store/calls.py` lets it
    limits = {"connect_timeout": _S3_CONNECT_S, "read_timeout": _S3_SILENCE_S, "retries": {"max_attempts": 1}}
    return {"config_kwargs": limits | given}
