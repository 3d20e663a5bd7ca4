"""The connection to Redis: its URL, its client, and its errors as those of our family.

`records.py` and `attempts.py` decide what is stored. Only this file and `embedded.py` import the Redis client.
"""

import contextlib
import re
from collections.abc import Iterator
from urllib.parse import urlsplit

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from retrieval.edge.jobs.embedded import socket_path
from retrieval.edge.settings import Settings
from retrieval.errors import InvalidSettings, JobsUnavailable

QUEUE_AWAY = (
    "the job queue cannot be reached; queries are not affected. Start `retrieval worker`, which brings an embedded "
    "one, or set RETRIEVAL_REDIS_URL to a running Redis"
)
# It never quotes the URL: of a URL that cannot be parsed, nobody knows which part is the password.
URL_UNUSABLE = (
    "RETRIEVAL_REDIS_URL: expected redis://[user:password@]host[:port][/number], rediss://... or unix:///path. In a "
    "password write %40 for @, %3A for :, %2F for /, %23 for #, %3F for ?, %5B for [ and %25 for %"
)
_TIMEOUT_S = 5.0


def redis_url(settings: Settings) -> str:
    """Return the URL of the configured Redis, or of the embedded one if none is configured."""
    return settings.redis_url.get_secret_value() or f"unix://{socket_path(settings.state_dir)}"


def redis_client(url: str, *, timeout_s: float = _TIMEOUT_S) -> "redis.Redis":
    """Return a client that does not connect yet. Raises InvalidSettings, without the URL, if it is unusable."""
    if not _is_usable(url):
        raise InvalidSettings(URL_UNUSABLE)
    try:
        client = redis.Redis.from_url(
            url,
            decode_responses=True,
            socket_timeout=timeout_s,
            socket_connect_timeout=timeout_s,
            retry=Retry(NoBackoff(), 1),  # for a stale connection; more would keep callers waiting
        )
        client.connection_pool.make_connection()  # checks the options of the URL; it does not connect
    except (ValueError, TypeError, redis.RedisError):
        raise InvalidSettings(URL_UNUSABLE) from None  # the cause may hold a part of the password
    return client


def answers(url: str) -> bool:
    """Return True if a Redis answers at once."""
    client = redis_client(url, timeout_s=1.0)
    try:
        return bool(client.ping())
    except redis.RedisError:
        return False
    finally:
        client.close()


def _is_usable(url: str) -> bool:
    """Return False for a URL that clients read differently, for instance because its password holds a `/`."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        return False
    if "@" in parts.path + parts.query or parts.fragment:  # the password ends where a client sees no end of it
        return False
    if parts.scheme == "unix":
        return parts.path not in ("", "/")
    path_is_number = parts.path in ("", "/") or re.fullmatch(r"/\d{1,9}", parts.path) is not None
    return parts.scheme in ("redis", "rediss") and bool(parts.hostname) and port != 0 and path_is_number


def check(client: "redis.Redis") -> None:
    """Raise InvalidSettings if a Redis answers but refuses this client; one that does not answer may start later."""
    try:
        client.ping()
    except redis.exceptions.BusyLoadingError:
        return
    except (redis.exceptions.AuthenticationError, redis.exceptions.ResponseError) as error:
        raise InvalidSettings(f"RETRIEVAL_REDIS_URL: the server refuses it: {error}") from error
    except redis.RedisError:
        return


@contextlib.contextmanager
def reachable() -> Iterator[None]:
    """Raise JobsUnavailable for every error of Redis in the block."""
    try:
        yield
    except redis.RedisError as error:
        raise unavailable(error) from error


def unavailable(error: BaseException) -> JobsUnavailable:
    """Return the error of our family for one of Redis: it cannot be reached, or it answers and refuses."""
    if isinstance(error, redis.exceptions.ResponseError):  # its disk or its memory is full, for instance
        return JobsUnavailable(f"the job queue refuses to work; queries are not affected. Its reason: {error}")
    return JobsUnavailable(QUEUE_AWAY)
