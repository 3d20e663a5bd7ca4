"""The address of an index in Milvus."""

from __future__ import annotations

import pytest

from retrieval.engine.index import milvus_address
from retrieval.engine.index.milvus_address import MilvusAddress, token, use_servers
from retrieval.errors import InvalidInput
from retrieval.flows.reindex import ReindexRequest


def test_an_address_with_all_its_parts() -> None:
    address = MilvusAddress.parse("https://milvus.example:443/images?name=shop&index=IVF_FLAT&nlist=4096&nprobe=64")
    assert (address.server, address.database) == ("https://milvus.example:443", "images")
    assert (address.name, address.kind) == ("shop", "IVF_FLAT")
    assert (address.index_params, address.search_params) == ({"nlist": 4096}, {"nprobe": 64})
    assert not address.is_complete
    assert MilvusAddress.parse(str(address)) == address


def test_the_shortest_address_is_complete() -> None:
    address = MilvusAddress.parse("http://milvus:19530")
    assert (address.server, address.database, address.name) == ("http://milvus:19530", "", "retrieval")
    assert address.is_complete
    assert MilvusAddress.parse("/data/small.db").server == "/data/small.db"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "expected an address such as milvus:http"),
        ("ftp://host", "expected an address such as"),
        ("http://", "expected an address such as"),
        ("http://host:port", "expected an address such as"),
        ("http://host:99999999", "expected an address such as"),
        ("http://host:1/a/b", "expected an address such as"),
        ("host:19530", "expected an address such as"),
        ("http://host?name=two words", "expected a name"),
        ("http://host?name=", "expected a name"),
        ("http://host?index=GPU", "expected one of FLAT, IVF_FLAT, HNSW as index, found 'GPU'"),
        ("http://host?index=HNSW&M=16", "expected M=<n> and ef=<n> and efConstruction=<n> with HNSW, found M=16"),
        ("http://host?nlist=4", "expected no more options with FLAT, found nlist=4"),
        ("http://host?index=IVF_FLAT&nlist=4&nprobe=0", "nprobe=0"),
    ],
)
def test_what_is_no_address_is_refused(text: str, message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        MilvusAddress.parse(text)


def test_a_password_is_refused_and_not_repeated() -> None:
    """Snapshots record the address."""
    with pytest.raises(InvalidInput, match="set RETRIEVAL_MILVUS_TOKEN") as caught:
        MilvusAddress.parse("http://root:hunter2@host:19530")
    assert "hunter2" not in str(caught.value)


def test_the_token_is_that_of_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(milvus_address, "_servers", None)
    use_servers("", "root:secret")
    assert token() == "root:secret"
    monkeypatch.setattr(milvus_address, "_token", "")


def test_only_servers_of_the_settings_are_called(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who asks for an index names its server, and that gets the token and the vectors."""
    use_servers("http://milvus:19530/, https://other", "root:secret")
    monkeypatch.setattr(milvus_address, "_token", "")
    MilvusAddress.parse("http://milvus:19530/database?name=shop").check_allowed()
    request = ReindexRequest(catalog="shop", manifest_uri="items.csv", index_spec="milvus:http://thief:19530?name=shop")
    with pytest.raises(InvalidInput, match=r"in RETRIEVAL_MILVUS_SERVERS \(http://milvus:19530, https://other\)"):
        request.check()
    with pytest.raises(InvalidInput, match=r"found '/data/small\.db'"):
        MilvusAddress.parse("/data/small.db").check_allowed()
    monkeypatch.setattr(milvus_address, "_servers", None)
    request.check()
