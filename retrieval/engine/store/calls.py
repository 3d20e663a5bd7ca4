"""Calls to a file system that may not answer: each ends within a time, and its errors are those of the store."""

import contextlib
import errno
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import Any, TypeVar

from retrieval.contract.files import failing_as
from retrieval.errors import Unavailable

_Result = TypeVar("_Result")

ANSWER_S = 15.0  # for what a store knows of an object, and for a list of names
_CONTENT_S, _BYTES_PER_S = 60.0, 1024 * 1024  # for content: a minute, and the time that a slow line takes
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_NOT_FOUND = 404  # the status of HTTP
_NO_BUCKET = "NoSuchBucket"


def transfer_s(n_bytes: int = 0) -> float:
    """Return how long so many bytes may take."""
    return _CONTENT_S + n_bytes / _BYTES_PER_S


def within(limit_s: float, function: Callable[..., _Result], *arguments: Any, **options: Any) -> _Result:
    """Return what a function returns. Raises its error, or TimeoutError if it takes longer than `limit_s` seconds.

    It runs on a thread of its own, because not every file system has time limits. A call that takes too long cannot be
    ended: its thread is left behind, and does not keep the process from ending.
    """
    outcome: Future[_Result] = Future()

    def run() -> None:
        try:
            outcome.set_result(function(*arguments, **options))
        except BaseException as error:  # noqa: BLE001  # it is raised in the thread that waits
            outcome.set_exception(error)

    threading.Thread(target=run, daemon=True, name="store-call").start()
    try:
        return outcome.result(limit_s)
    except TimeoutError:
        if outcome.done():
            raise
        raise TimeoutError(f"no answer within {limit_s:.3g} s") from None


def is_full(error: OSError) -> bool:
    """Return True if a file could not be written because the disk, the quota or the largest file size is used up."""
    return error.errno in _FULL


@contextlib.contextmanager
def answering(what: str) -> Iterator[None]:
    """Raise Unavailable for an error of a file system in the block; `what` begins its message.

    A missing file, and a disk of this machine that is full, stay what they are. If the store refuses or has no such
    bucket, the message ends with what to do.
    """
    try:
        with failing_as(Unavailable, what, but=(OSError,)):
            yield
    except OSError as error:
        if is_full(error) or (isinstance(error, FileNotFoundError) and not _is_hidden(error.__cause__)):
            raise
        hidden = isinstance(error, FileNotFoundError) and _code(error.__cause__) != _NO_BUCKET
        cause = error.__cause__ if hidden else error
        raise Unavailable(f"{what}: {str(cause) or type(cause).__name__}{_remedy(error)}") from error


def _is_hidden(cause: BaseException | None) -> bool:
    """Return True if a "not found" hides another cause: fsspec's HTTP reports every error so, and s3fs no bucket."""
    if isinstance(cause, OSError):
        return not isinstance(cause, FileNotFoundError)
    return _code(cause) == _NO_BUCKET or getattr(cause, "status", _NOT_FOUND) != _NOT_FOUND


def _remedy(error: OSError) -> str:
    if _code(error.__cause__) == _NO_BUCKET:
        return ": create the bucket, or correct RETRIEVAL_STORE_URL"
    if isinstance(error, PermissionError):
        return ": renew the credentials, or permit this process to read and write there"
    return ""


def _code(cause: BaseException | None) -> str | None:
    """Return the code in an error of botocore."""
    response = getattr(cause, "response", None)
    return response.get("Error", {}).get("Code") if isinstance(response, dict) else None
