"""Over HTTP nothing is read but what is allowed, wherever a server leads."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from dataclasses import dataclass, replace

import pytest

from retrieval.contract.files import Place, read_file
from retrieval.contract.limits import DEFAULT_LIMITS
from retrieval.contract.manifest import read_source
from retrieval.engine.images import read_bytes
from retrieval.errors import InvalidImage, InvalidManifest, SourceNotAllowed
from tests.pictures import class_picture, encoded
from tests.web import Web, serving

PICTURE = encoded(class_picture(0, 0))


@dataclass
class Two:
    """A server with pictures, and another one with a secret."""

    shop: Web
    other: Web


@pytest.fixture
def two() -> Iterator[Two]:
    files = {
        "/shop/a.png": PICTURE,
        "/secret.png": PICTURE,
    }
    with serving(Web(files)) as shop, serving(Web({"/secret.png": PICTURE})) as other:
        yield Two(shop, other)


def only(*roots: str) -> object:
    return replace(DEFAULT_LIMITS, roots=roots)


def test_a_redirect_out_of_the_roots_is_refused(two: Two) -> None:
    """To another host, or to another folder of the same one; not even asked."""
    shop = two.shop
    for target in (f"{two.other.url}/secret.png", "/secret.png"):
        shop.moved["/shop/a"] = target
        with pytest.raises(SourceNotAllowed, match=r"secret.png may not be read: it is outside of .*/shop"):
            read_bytes(f"{shop.url}/shop/a", only(f"{shop.url}/shop"))
    assert not two.other.asked
    assert not shop.asked["/secret.png"]
    shop.moved["/shop/a"] = "/shop/a.png"
    assert read_bytes(f"{shop.url}/shop/a", only(f"{shop.url}/shop")) == PICTURE


@pytest.mark.parametrize("target", ["http://169.254.169.254/latest", "http://10.0.0.1/a", "http://[fe80::1]/a"])
@pytest.mark.parametrize("form", ["{}/shop/a", "simplecache::{}/shop/a"])
def test_a_redirect_to_a_private_address_is_refused(two: Two, target: str, form: str) -> None:
    """Also without roots, and for a command whose user trusts the first host."""
    two.shop.moved["/shop/a"] = target
    for limits in (DEFAULT_LIMITS, only("*", two.shop.url)):
        with pytest.raises(SourceNotAllowed, match="private or link-local address"):
            read_bytes(form.format(two.shop.url), limits)
    with pytest.raises(SourceNotAllowed, match="private or link-local address"):
        read_file(form.format(two.shop.url))


@pytest.mark.parametrize("target", ["file:///etc/passwd", "ftp://127.0.0.1/a", "http://2852039166/a"])
def test_a_redirect_out_of_the_web_is_refused(two: Two, target: str) -> None:
    two.shop.moved["/shop/a"] = target
    with pytest.raises(InvalidImage, match="cannot be read"):
        read_bytes(f"{two.shop.url}/shop/a", DEFAULT_LIMITS)


def test_a_name_that_changes_its_address_is_refused(two: Two, monkeypatch: pytest.MonkeyPatch) -> None:
    """The address that is connected to counts, not the one that was looked up before."""
    look_up, addresses = socket.getaddrinfo, ["8.8.8.8"]

    def changing(host: object, *options: object, **more: object) -> object:
        if host != "changing.example":
            return look_up(host, *options, **more)  # type: ignore[arg-type]
        address = addresses.pop() if addresses else "169.254.169.254"
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, 80))]

    monkeypatch.setattr(socket, "getaddrinfo", changing)
    with pytest.raises(SourceNotAllowed, match=r"changing.example has the private or link-local address 169\.254"):
        read_bytes("http://changing.example/a.png", DEFAULT_LIMITS)
    assert not addresses


def test_the_host_that_a_user_names_may_be_private(two: Two, monkeypatch: pytest.MonkeyPatch) -> None:
    """Here 127.0.0.1 stands for a private address."""
    import retrieval.contract.web as web

    def refuse(address: str, host: str, name: str) -> None:
        raise SourceNotAllowed(f"{host} is private")

    monkeypatch.setattr(web, "check_address", refuse)
    with pytest.raises(SourceNotAllowed, match="is private"):
        read_file(f"{two.shop.url}/shop/a.png", roots=())
    assert read_file(f"{two.shop.url}/shop/a.png") == PICTURE
    two.shop.moved["/shop/b"] = f"{two.other.url}/secret.png"
    with pytest.raises(SourceNotAllowed, match="is private"):
        read_file(f"{two.shop.url}/shop/b")


def page(*links: str) -> bytes:
    return "".join(f'<a href="{link}">x</a>' for link in links).encode()


def test_a_folder_holds_only_what_is_beneath_it(two: Two) -> None:
    """Whatever its page links to: the pages above are not even asked."""
    files = dict(two.shop.files)
    files["/shop/"] = page(
        "a.png", "cup/", "../", "../../", "../secret.png", "%2e%2e/secret.png", "/secret.png", "cup/../../secret.png",
        f"{two.other.url}/secret.png", "//127.0.0.1/secret.png", "..%2fsecret.png", "./../up/",
    )  # fmt: skip
    files["/shop/cup/"] = page("b.png", "../../up/", "./")
    files["/up/"] = files["/"] = page("secret.png")
    files["/shop/cup/b.png"] = PICTURE
    two.shop.files = files
    for roots in (None, (f"{two.shop.url}/shop",)):
        found = read_source(f"{two.shop.url}/shop/", roots)
        assert {item.uri for item in found.items} <= {
            f"{two.shop.url}/shop/{name}" for name in ("a.png", "cup/b.png")
        }  # fmt: skip
        assert {item.id for item in found.items} >= {"a.png", "cup/b.png"}
    assert not two.other.asked
    assert not {path for path in two.shop.asked if not path.startswith("/shop/")}


def test_a_folder_without_end_is_refused(two: Two) -> None:
    """Each page links to one below it, or to very many."""
    with serving(Web({}, endless=page("deeper/"))) as web, pytest.raises(InvalidManifest, match="64 in each other"):
        read_source(f"{web.url}/shop/")
    wide = Web({}, endless=page(*(f"{n}/" for n in range(200))))
    with serving(wide) as web, pytest.raises(InvalidManifest, match="more than 10,000 folders"):
        read_source(f"{web.url}/shop/")


def test_a_folder_on_the_web_is_listed_once(two: Two) -> None:
    two.shop.files = {**two.shop.files, "/shop/": page("a.png", "./", "a.png")}
    assert Place.of(f"{two.shop.url}/shop/").walk().files == ["a.png"]
