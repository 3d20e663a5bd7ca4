"""Calls to a file system: they end in time, and whatever a library raises ends in our family with the object's name."""

from __future__ import annotations

import errno
import tarfile
import threading
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from botocore import exceptions as boto
from multidict import CIMultiDict, CIMultiDictProxy
from s3fs.errors import translate_boto_error
from yarl import URL

from retrieval.engine.store import calls
from retrieval.engine.store.calls import answering, transfer_s, within
from retrieval.engine.store.objects import Objects
from retrieval.errors import RetrievalError, Unavailable
from tests.s3 import S3, running_s3, variables


def of_s3(code: str) -> BaseException:
    """What s3fs raises for an answer of S3 with this code."""
    error: BaseException = translate_boto_error(
        boto.ClientError({"Error": {"Code": code, "Message": f"S3 said {code}"}}, "GetObject")
    )
    return error


def http_status(status: int) -> FileNotFoundError:
    """What fsspec's HTTP raises for every status, a missing file or not."""
    error = FileNotFoundError("http://host/key")
    asked = aiohttp.RequestInfo(URL("http://host/key"), "GET", CIMultiDictProxy(CIMultiDict()), URL("http://host/key"))
    error.__cause__ = aiohttp.ClientResponseError(asked, (), status=status, message="no")
    return error


ERRORS: dict[str, BaseException] = {
    "botocore: no connection": boto.EndpointConnectionError(endpoint_url="http://s3"),
    "botocore: silence": boto.ReadTimeoutError(endpoint_url="http://s3"),
    "botocore: no credentials": boto.NoCredentialsError(),
    "botocore: a wrong parameter": boto.ParamValidationError(report="wrong"),
    "s3fs: 403": of_s3("403"),
    "s3fs: expired": of_s3("ExpiredToken"),
    "s3fs: a wrong signature": of_s3("SignatureDoesNotMatch"),
    "s3fs: no bucket": of_s3("NoSuchBucket"),
    "s3fs: slow down": of_s3("SlowDown"),
    "s3fs: unknown": of_s3("Strange"),
    "aiohttp: no connection": aiohttp.ClientConnectionError("gone"),
    "aiohttp: payload": aiohttp.ClientPayloadError("cut"),
    "http: 500": http_status(500),
    "zip": zipfile.BadZipFile("no zip"),
    "tar": tarfile.ReadError("no tar"),
    "zlib": zlib.error("damaged"),
    "reference": KeyError("no/x"),
    "a defect": RuntimeError(""),
}


@pytest.mark.parametrize("name", ERRORS)
def test_every_error_of_a_library_is_unavailable_and_names_the_object(name: str) -> None:
    with pytest.raises(Unavailable, match=r"^cannot access s3://b/key: .+"), answering("cannot access s3://b/key"):
        raise ERRORS[name]


@pytest.mark.parametrize("code", ["403", "AccessDenied", "ExpiredToken", "InvalidAccessKeyId"])
def test_a_refusal_names_the_remedy(code: str) -> None:
    expected = rf"^cannot access s3://b/key: S3 said {code}: renew the credentials, or permit this process to read"
    with pytest.raises(Unavailable, match=expected), answering("cannot access s3://b/key"):
        raise of_s3(code)


def test_what_is_missing_and_a_full_disk_stay_what_they_are() -> None:
    for error in (FileNotFoundError("key"), of_s3("NoSuchKey"), http_status(404), OSError(errno.ENOSPC, "full")):
        with pytest.raises(type(error)), answering("cannot access s3://b/key"):
            raise error
    with pytest.raises(RetrievalError, match=r"^as it is$"), answering("cannot access s3://b/key"):
        raise RetrievalError("as it is")


def test_a_call_that_does_not_end_is_left_behind() -> None:
    gate = threading.Event()
    started = time.monotonic()
    with pytest.raises(TimeoutError, match=r"^no answer within 0\.1 s$"):
        within(0.1, gate.wait)
    assert time.monotonic() - started < 2
    assert all(thread.daemon for thread in threading.enumerate() if thread.name == "store-call")
    gate.set()
    assert within(5, int, "ff", base=16) == 255
    with pytest.raises(ValueError, match="invalid literal"):
        within(5, int, "x")
    with pytest.raises(TimeoutError, match="its own"):
        within(5, _fail, TimeoutError("its own"))
    assert transfer_s(1024**3) > 1000 > transfer_s(0)


def _fail(error: BaseException) -> None:
    raise error


class Hanging:
    """A file system without time limits that never answers, as GCS and Azure do when packets are lost."""

    def __init__(self) -> None:
        self.gate = threading.Event()

    def __getattr__(self, name: str) -> Callable[..., Any]:
        return lambda *_, **__: self.gate.wait()


@pytest.mark.parametrize(
    "act",
    [
        lambda objects: objects.exists("a"),
        lambda objects: objects.get("a"),
        lambda objects: objects.put("a", b"1"),
        lambda objects: objects.names("a"),
        lambda objects: objects.local("a"),
        lambda objects: objects.delete("a"),
        lambda objects: objects.modified("a"),
    ],
)
def test_a_file_system_without_limits_gets_them(
    act: Callable[[Objects], object], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("retrieval.engine.store.objects.ANSWER_S", 0.1)
    monkeypatch.setattr(calls, "_CONTENT_S", 0.1)
    objects = Objects("memory://hanging", cache=tmp_path)
    objects._fs = Hanging()
    try:
        with pytest.raises(Unavailable, match=r"^cannot (access|write) memory://hanging/a: no answer within 0\.1 s$"):
            act(objects)
    finally:
        objects._fs.gate.set()


@pytest.fixture(scope="module")
def s3() -> Iterator[S3]:
    with running_s3() as server, variables(server.environment):
        yield server


@pytest.mark.slow
def test_a_bucket_that_does_not_exist_is_no_empty_store(s3: S3, tmp_path: Path) -> None:
    """Otherwise a mistyped URL looks like a store in which nothing is yet."""
    objects = Objects("s3://no-such-bucket/store", cache=tmp_path)
    expected = (
        r"s3://no-such-bucket/store/a: The specified bucket does not exist: create the bucket, or correct RETRIEVAL_STO"
    )
    for act in (objects.exists, objects.get, objects.names, objects.local, lambda key: objects.put(key, b"")):
        with pytest.raises(Unavailable, match=expected):
            act("a")


@pytest.mark.slow
def test_what_another_process_wrote_on_s3_is_found(s3: S3, tmp_path: Path) -> None:
    """Although this process has listed the folder before: s3fs would remember the list."""
    s3.make_bucket("two")
    mine, other = Objects("s3://two/store", cache=tmp_path / "a"), Objects("s3://two/store", cache=tmp_path / "b")
    mine.put("points/one.json", b"1")
    assert mine.names("points") == ["one.json"]
    import fsspec

    fsspec.filesystem("s3", skip_instance_cache=True).pipe_file("two/store/points/two.json", b"2")
    assert mine.exists("points/two.json")
    assert mine.get("points/two.json") == other.get("points/two.json") == b"2"
    assert mine.names("points") == ["one.json", "two.json"]
