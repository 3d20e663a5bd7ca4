"""The address of an index in Milvus."""

from __future__ import annotations

import pytest

from retrieval.engine.index.milvus_address import MilvusAddress, token, use_token
from retrieval.errors import InvalidInput


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


def test_the_token_is_that_of_the_process() -> None:
    use_token("root:secret")
    assert token() == "root:secret"
    use_token("")
