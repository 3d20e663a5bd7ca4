"""Paths and URLs: every name means one file, every error is of the family, a busy server is asked again."""

from __future__ import annotations

import zipfile
from pathlib import Path

import fsspec
import pytest

from retrieval.contract import files
from retrieval.contract.files import Place, failing_as, local_path, read_file, suffix_of
from retrieval.contract.limits import DEFAULT_LIMITS, ImageLimits
from retrieval.contract.loopback import is_loopback
from retrieval.contract.manifest import Item, read_manifest, read_source
from retrieval.engine.images import read_bytes
from retrieval.engine.store.objects import Objects
from retrieval.errors import ImageTooLarge, InvalidImage, InvalidInput, InvalidManifest, RetrievalError
from tests.pictures import encoded, noise
from tests.training.data.conftest import PREPROCESSING, ignore
from tests.web import Web, serving
from training.data import find_duplicates, read_items

PICTURE = encoded(noise(16))


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "_PAUSES_S", (0.0, 0.0))


def test_relative_uris_of_a_table_count_from_its_url() -> None:
    table = b"id,uri,label\n1,x.png,cup\n2,sub/b c.png,cup\n3,/top.png,plate\n4,a::b.png,plate\n5,c:d.png,plate\n"
    names = ["/data/x.png", "/data/sub/b c.png", "/top.png", "/data/a::b.png", "/data/c:d.png"]
    with serving(Web({"/data/t.csv": table, **dict.fromkeys(names, PICTURE)})) as web:
        for source in (f"{web.url}/data/t.csv", f"{web.url}/data/t.csv?sig=1.x"):
            items = read_manifest(source)
            assert [item.uri for item in items] == [web.url + name for name in names]
            assert [read_bytes(item.uri, DEFAULT_LIMITS) for item in items] == [PICTURE] * 5


def test_a_table_of_urls_is_no_folder_of_links() -> None:
    with serving(Web({})) as web:
        web.files = {"/t.csv": f"id,uri\n1,{web.url}/x.png?n=1\n".encode()}
        assert read_manifest(f"{web.url}/t.csv") == [Item(id="1", uri=f"{web.url}/x.png?n=1", label="", attributes={})]


def test_a_page_of_links_is_a_folder() -> None:
    page = '<a href="?C=N">Name</a> <a href="cup/">cup</a> <a href=".x.png">x</a> <a href="note.txt">note</a>'
    web = Web({"/": page.encode(), "/cup": b'<a href="a.png">a</a>', "/cup/a.png": PICTURE, "/note.txt": b"text"})
    with serving(web):
        found = read_source(f"{web.url}/")
    assert [(item.id, item.uri, item.label) for item in found.items] == [("cup/a.png", f"{web.url}/cup/a.png", "cup")]
    assert len(found.passed_over) == 2


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_busy_server_is_asked_again(status: int) -> None:
    with serving(Web({"/x.png": PICTURE, "/t.csv": b"id,uri\n1,x.png\n"})) as web:
        web.busy = {"/x.png": (2, status), "/t.csv": (2, status)}
        (item,) = read_manifest(f"{web.url}/t.csv")
        assert read_bytes(item.uri, DEFAULT_LIMITS) == PICTURE
        assert web.asked["/x.png"] == 3


@pytest.mark.parametrize("path", ["/cut.png", "/dropped.png", "/busy.png", "/forbidden.png", "/lost.png"])
def test_a_broken_connection_is_one_failed_item(path: str) -> None:
    """In indexing and in training; what cannot pass is not asked again."""
    web = Web({"/x.png": PICTURE, "/cut.png": PICTURE, "/busy.png": PICTURE, "/forbidden.png": PICTURE})
    web.cut, web.dropped = frozenset({"/cut.png"}), frozenset({"/dropped.png"})
    web.busy = {"/busy.png": (99, 503), "/forbidden.png": (99, 403)}
    with serving(web):
        items = [Item(id=name, uri=web.url + name, label="cup", attributes={}) for name in ("/x.png", path)]
        with pytest.raises(InvalidImage, match=f"{path} cannot be read: ."):
            read_bytes(items[1].uri, DEFAULT_LIMITS)
        once = path in ("/forbidden.png", "/lost.png")
        assert web.asked[path] == 1 if once else web.asked[path] >= 3  # aiohttp has tries of its own
        (batch,) = read_items(items, PREPROCESSING, max_unreadable=0.5, progress=ignore)
        assert [failure.item.id for failure in batch.unreadable] == [path]
        report = find_duplicates({"all": items}, progress=ignore)
        assert [failure.item.id for failure in report.unreadable] == [path]


@pytest.mark.parametrize("path", ["/cut.csv", "/dropped.csv", "/busy.csv", "/lost.csv"])
def test_a_table_that_cannot_be_read_is_refused(path: str) -> None:
    """Never read in part."""
    web = Web({"/cut.csv": b"id,uri\n" + b"1,x.png\n" * 999, "/busy.csv": b""})
    web.cut, web.dropped, web.busy = frozenset({"/cut.csv"}), frozenset({"/dropped.csv"}), {"/busy.csv": (99, 503)}
    with serving(web), pytest.raises(InvalidManifest, match=f"{path} cannot be read: ."):
        read_manifest(web.url + path)


def test_no_server_at_all() -> None:
    with serving(Web({})) as web:
        pass
    with pytest.raises(InvalidImage, match=r"cannot be read: ."):
        read_bytes(f"{web.url}/x.png", DEFAULT_LIMITS)
    with pytest.raises(InvalidManifest, match=r"cannot be read: ."):
        read_manifest(f"{web.url}/t.csv")


def test_redirects_are_followed_and_no_more_than_the_limit_is_read() -> None:
    with serving(Web({"/x.png": b"x" * 1_000_000})) as web:
        assert read_bytes(f"{web.url}/moved/x.png?q=1", ImageLimits(image_bytes=1_000_000)) == b"x" * 1_000_000
        with pytest.raises(ImageTooLarge, match="more than 999,999 bytes"):
            read_bytes(f"{web.url}/x.png", ImageLimits(image_bytes=999_999))


def test_loopback_is_never_sent_through_a_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    """A proxy on another machine cannot reach it; any other host goes through the proxy of the environment."""
    monkeypatch.delenv("no_proxy", raising=False)
    with serving(Web({"/x.png": PICTURE})) as web, serving(Web({"/x.png": b"from the proxy"})) as proxy:
        monkeypatch.setenv("http_proxy", proxy.url)
        port = web.url.rsplit(":", 1)[1]
        for host in ("127.0.0.1", "localhost"):
            assert read_file(f"http://{host}:{port}/x.png") == PICTURE
        assert read_file("http://pictures.invalid/x.png") == b"from the proxy"


@pytest.mark.slow
@pytest.mark.parametrize("how", ["AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "fsspec"])
@pytest.mark.parametrize("reader", ["image", "table", "store"])
def test_s3_on_loopback_is_never_sent_through_a_proxy(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, how: str, reader: str
) -> None:
    """However its endpoint is configured; any other endpoint goes through the proxy."""
    pytest.importorskip("s3fs")
    monkeypatch.delenv("no_proxy", raising=False)
    for name, value in (("ACCESS_KEY_ID", "a"), ("SECRET_ACCESS_KEY", "b"), ("DEFAULT_REGION", "us-east-1")):
        monkeypatch.setenv(f"AWS_{name}", value)
    for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")  # nothing listens there
    table = b"id,uri\n1,x.png\n"
    with serving(Web({"/bucket/x.png": PICTURE, "/bucket/t.csv": table, "/bucket/store/a": b"stored"})) as web:
        if how == "fsspec":
            monkeypatch.setitem(fsspec.config.conf, "s3", {"endpoint_url": web.url})
        else:
            monkeypatch.setenv(how, web.url)
        fsspec.get_filesystem_class("s3").clear_instance_cache()
        if reader == "image":
            assert read_bytes("s3://bucket/x.png", DEFAULT_LIMITS) == PICTURE
        elif reader == "table":
            assert read_file("s3://bucket/t.csv") == table
        else:
            assert Objects("s3://bucket/store", cache=tmp_path).get("a") == b"stored"
        assert sum(web.asked.values()) > 0
    fsspec.get_filesystem_class("s3").clear_instance_cache()


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("http://127.0.0.1:80/a", True),
        ("http://127.8.9.1/a", True),
        ("https://[::1]/a", True),
        ("http://localhost", True),
        ("http://10.0.0.1/", False),
        ("http://localhost.example.com/", False),
    ],
)
def test_loopback_names(url: str, expected: bool) -> None:
    assert is_loopback(url) == expected


@pytest.mark.parametrize(
    ("name", "suffix"),
    [
        ("http://host/t.CSV?sig=a.b", ".csv"),
        ("https://host/a%2Epng#x", ".png"),
        ("s3://bucket/what?.png", ".png"),
        ("/tmp/a.b/c", ""),
    ],
)
def test_suffixes(name: str, suffix: str) -> None:
    assert suffix_of(name) == suffix


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("file:///no/a%20b", "/no/a b"),
        ("file://localhost/no/b%C3%BCcher", "/no/bücher"),
        ("file:/no/a", "/no/a"),
        ("FILE:///no/a", "/no/a"),
        ("/no/a%20b", "/no/a%20b"),
        ("/no/a::b", "/no/a::b"),
        ("memory://a", None),
        ("zip://a::/no/b.zip", None),
    ],
)
def test_local_paths(name: str, path: str | None) -> None:
    assert local_path(name) == (path and Path(path))


def test_any_name_in_an_archive_and_in_memory(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a b.zip", "w") as archive:
        archive.writestr("x::y.png", PICTURE)
    for url in (f"file://{tmp_path}/a b.zip", f"file://{tmp_path}/a%20b.zip", f"{tmp_path}/a b.zip"):
        assert read_bytes(f"zip://x::y.png::{url}", DEFAULT_LIMITS) == PICTURE
    fsspec.filesystem("memory").pipe_file("/some/x y.png", PICTURE)
    (item,) = read_manifest("memory://some")
    assert (item.uri, read_bytes(item.uri, DEFAULT_LIMITS)) == ("memory:///some/x y.png", PICTURE)


@pytest.mark.parametrize("protocol", ["zip", "tar", "reference"])
def test_errors_of_every_library_are_of_the_family(tmp_path: Path, protocol: str) -> None:
    (tmp_path / "broken").write_bytes(b"no archive")
    url = f"{protocol}://a.png::file://{tmp_path}/broken"
    with pytest.raises(InvalidImage, match=r"broken cannot be read: ."):
        read_bytes(url, DEFAULT_LIMITS)
    with pytest.raises(InvalidManifest, match=r"broken cannot be read: ."):
        read_manifest(url)


def test_an_error_of_the_family_keeps_its_class() -> None:
    with pytest.raises(RetrievalError, match=r"^too large$") as caught, failing_as(InvalidInput, "this"):
        raise ImageTooLarge("too large")
    assert type(caught.value) is ImageTooLarge
    with pytest.raises(InvalidInput, match=r"^this: TimeoutError$"), failing_as(InvalidInput, "this"):
        raise TimeoutError


def test_a_place_finds_itself_again(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"1")
    for name in (str(tmp_path / "a"), f"file://{tmp_path}/a", "memory://x/y"):
        assert Place.of(Place.of(name).url) == Place.of(name)
