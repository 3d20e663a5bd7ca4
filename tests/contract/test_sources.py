"""A job reads what it may and nothing else."""

from __future__ import annotations

import os
import socket
import threading
from pathlib import Path

import pytest

from retrieval.contract.limits import ImageLimits
from retrieval.contract.sources import check_source
from retrieval.engine.images import read_bytes
from retrieval.errors import SourceNotAllowed


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    """A folder `images` with a picture, and a secret beside it with links and names that lead there."""
    (tmp_path / "images" / "50%41").mkdir(parents=True)
    (tmp_path / "images" / "a.png").write_bytes(b"picture")
    (tmp_path / "images" / "50%41" / "a.png").write_bytes(b"picture")
    (tmp_path / "images-2").mkdir()
    (tmp_path / "images-2" / "a.png").write_bytes(b"secret")
    (tmp_path / "secret").write_bytes(b"secret")
    (tmp_path / "images" / "link.png").symlink_to(tmp_path / "secret")
    (tmp_path / "images" / "inside.png").symlink_to(tmp_path / "images" / "a.png")
    return tmp_path


@pytest.mark.parametrize("name", ["a.png", "50%41/a.png", "inside.png", "nothing.png", "../images/a.png"])
@pytest.mark.parametrize("form", ["{}", "file://{}", "FILE://{}", "file://localhost{}", "file:{}", "local://{}"])
def test_files_inside_a_root_may_be_read(folders: Path, name: str, form: str) -> None:
    uri = form.format(folders / "images" / name)
    for root in (folders / "images", f"file://{folders}/images/"):
        check_source(uri, ["http://elsewhere/", str(root)])
    check_source(uri, [])


@pytest.mark.parametrize(
    "name", ["../secret", "link.png", "../images-2/a.png", "..", "%2e%2e/secret", "x/../../secret", "../nothing"]
)
@pytest.mark.parametrize("form", ["file://{}", "file://localhost{}", "simplecache::file://{}", "zip://a::file://{}"])
def test_nothing_outside_of_the_roots_may_be_read(folders: Path, name: str, form: str) -> None:
    with pytest.raises(SourceNotAllowed, match=r"outside of .*images; RETRIEVAL_IMAGE_ROOTS lists"):
        check_source(form.format(f"{folders}/images/{name}"), [f"{folders}/images"])


@pytest.mark.parametrize(
    "uri",
    [
        "/etc/passwd",
        "~/.netrc",
        "relative.png",
        "http://images.example/a.png",
        "s3://bucket/a.png",
        "memory://images/a.png",
        "file:///etc/passwd::simplecache",
        "reference://a::file:///images/refs.json",
        "github://user:repo@main/a.png",
        "zip://a.png::https://images.example/a.zip",
    ],
)
def test_only_what_a_root_names_may_be_read(uri: str) -> None:
    with pytest.raises(SourceNotAllowed, match="outside of /images"):
        check_source(uri, ["/images"])


@pytest.mark.parametrize(
    "uri",
    [
        "https://images.example/shop/a.png",
        "https://images.example/shop/a.png?size=1&next=../b",
        "HTTPS://IMAGES.EXAMPLE/shop/sub/%C3%BC.png",
        "simplecache::https://images.example/shop/a.png",
        "zip://a.png::https://images.example/shop/a.zip",
        "s3://bucket/a.png",
    ],
)
def test_urls_below_a_root_may_be_read(uri: str) -> None:
    check_source(uri, ["https://images.example/shop", "s3://bucket"])


@pytest.mark.parametrize(
    "uri",
    [
        "https://images.example/shopping/a.png",
        "https://images.example/shop/../secret",
        "https://images.example/shop/%2e%2e/secret",
        "https://images.example/shop/%252e%252e/secret",
        "https://images.example/shop/..\\secret",
        "https://images.example:8443/shop/a.png",
        "https://images.example@evil.example/shop/a.png",
        "https://images.example.evil.example/shop/a.png",
        "http://images.example/shop/a.png",
        "s3://bucket-2/a.png",
        "s3://bucket/../bucket-2/a.png",
    ],
)
def test_urls_beside_a_root_may_not_be_read(uri: str) -> None:
    with pytest.raises(SourceNotAllowed, match="outside of"):
        check_source(uri, ["https://images.example/shop", "s3://bucket"])


@pytest.mark.parametrize(
    "host",
    [
        "169.254.169.254",
        "2852039166",
        "0xa9.0xfe.0xa9.0xfe",
        "[fe80::1]",
        "[::ffff:169.254.169.254]",
        "[64:ff9b::a9fe:a9fe]",
        "[64:ff9b::10.0.0.1]",
        "[64:ff9b:1::a00:1]",
        "[2002:a9fe:a9fe::1]",
        "10.0.0.1",
        "192.168.1.1:8080",
        "172.16.0.1",
        "user@10.0.0.1",
        "100.64.0.1",
        "0.0.0.0",
        "224.0.0.1",
        "[fd00::1]",
    ],
)
@pytest.mark.parametrize("form", ["http://{}/a.png", "simplecache::https://{}/a", "zip://a.png::http://{}/a.zip"])
def test_private_and_link_local_addresses_may_not_be_read(host: str, form: str) -> None:
    """Services of the network, and of the machine's provider, answer there."""
    with pytest.raises(SourceNotAllowed, match="private or link-local address"):
        check_source(form.format(host), [])


def test_names_of_private_addresses_may_not_be_read(monkeypatch: pytest.MonkeyPatch) -> None:
    entry = (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("169.254.169.254", 0))
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: [entry])
    with pytest.raises(SourceNotAllowed, match=r"metadata.example has the private or link-local address 169"):
        check_source("http://metadata.example/latest", [])


def test_loopback_public_and_named_hosts_may_be_read() -> None:
    for uri in ("http://127.0.0.1:8000/a.png", "http://localhost/a.png", "http://[::1]/a", "http://8.8.8.8/a.png"):
        check_source(uri, [])
    check_source("http://10.0.0.1/shop/a.png", ["http://10.0.0.1/"])
    check_source("s3://10.0.0.1/a.png", [])  # the name of a bucket


def test_pipes_and_devices_do_not_hang_a_reader(tmp_path: Path) -> None:
    """They may never end; regular files only, links followed."""
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "link.png").symlink_to(tmp_path / "pipe.png")
    done = threading.Event()

    def read() -> None:
        for uri in (str(tmp_path / "pipe.png"), f"file://{tmp_path}/link.png", "/dev/zero", "file:///dev/stdin"):
            try:
                check_source(uri, [])
            except SourceNotAllowed:
                continue
            assert uri == "file:///dev/stdin"  # a regular file in some runs
        with pytest.raises(SourceNotAllowed, match="only regular files are read"):
            read_bytes(str(tmp_path / "pipe.png"), ImageLimits())
        done.set()

    threading.Thread(target=read, daemon=True).start()
    assert done.wait(10)


def test_images_are_read_inside_the_roots_only(folders: Path) -> None:
    limits = ImageLimits(roots=(str(folders / "images"),))
    assert read_bytes(str(folders / "images" / "a.png"), limits) == b"picture"
    with pytest.raises(SourceNotAllowed, match="may not be read"):
        read_bytes(str(folders / "secret"), limits)
