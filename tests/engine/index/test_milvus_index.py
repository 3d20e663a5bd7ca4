"""An index in Milvus answers as `ExactIndex` does. Runs against milvus-lite, in this process."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from retrieval.engine.index import milvus_address, milvus_index
from retrieval.engine.index.exact.file import map_arrays, write_arrays
from retrieval.engine.index.exact_index import ExactIndex
from retrieval.engine.index.index import Hits
from retrieval.engine.index.milvus_address import MilvusAddress
from retrieval.engine.index.milvus_index import MilvusIndex
from retrieval.engine.index.open import build_index, load_index, warm
from retrieval.engine.index.self_test import NAMES
from retrieval.engine.index.spec import IndexSpec
from retrieval.errors import CorruptArtifact, InvalidEmbeddings, Unavailable, ValidationFailed
from tests.engine.index.exact.galleries import KINDS, Vectors, queries_of, scores

pymilvus = pytest.importorskip("pymilvus")
pytest.importorskip("milvus_lite")

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def any_server(monkeypatch: pytest.MonkeyPatch) -> None:
    """Settings that another test has read allow none."""
    monkeypatch.setattr(milvus_address, "_servers", None)


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MilvusAddress]:
    """A Milvus of this module. Loops are compiled first: a minute of that cuts off its connection."""
    warm()
    path = tmp_path_factory.mktemp("milvus") / "lite.db"
    try:
        client = pymilvus.MilvusClient(uri=str(path))
    except Exception as error:  # noqa: BLE001  # of any library underneath: then there is nothing to test against
        pytest.skip(f"milvus-lite does not start: {error}")
    yield MilvusAddress.parse(f"{path}?name=shop")
    client.close()


def spec_of(address: MilvusAddress) -> IndexSpec:
    return IndexSpec.parse(f"milvus:{address}")


def built(vectors: Vectors, address: MilvusAddress) -> MilvusIndex:
    index = build_index(vectors, spec_of(address))
    assert isinstance(index, MilvusIndex)
    return index


def assert_same(found: list[Hits], wanted: list[Hits]) -> None:
    for hits, expected in zip(found, wanted, strict=True):
        assert hits.positions.tolist() == expected.positions.tolist()
        assert np.array_equal(hits.scores, expected.scores)


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_equals_the_exact_index(kind: str, address: MilvusAddress) -> None:
    """Any data, thresholds at scores that occur too, singles and batches, with and without a filter."""
    rng = np.random.default_rng(7)
    vectors = KINDS[kind](700, 12, rng)
    queries = queries_of(vectors, kind, 70, rng)
    exact, index = ExactIndex.build(vectors), built(vectors, address)
    occurring = np.sort(scores(vectors, queries[:2]).ravel())
    for threshold in (float(occurring[-20]), float(occurring[700]), 0.5, -np.inf, np.inf):
        assert_same(index.above(queries[:3], threshold), exact.above(queries[:3], threshold))
    assert_same(index.above(queries, 0.8), exact.above(queries, 0.8))
    for share in (0.5, 0.01, 0.0):
        allowed = rng.random(700) < share
        assert_same(index.above(queries[:9], 0.3, allowed), exact.above(queries[:9], 0.3, allowed))
    index.remove()


@pytest.mark.parametrize("kind", ["clustered", "all equal"])
@pytest.mark.parametrize("limit", [3, 64])
def test_more_matches_than_one_reply_holds(
    kind: str, limit: int, address: MilvusAddress, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pages until the list is complete, also where all scores are equal; listed rows too."""
    rng = np.random.default_rng(1)
    vectors = KINDS[kind](150, 6, rng)
    exact, index = ExactIndex.build(vectors), built(vectors, address)
    monkeypatch.setattr(milvus_index, "LIMIT", limit)
    for threshold in (-2.0, 0.6):
        assert_same(index.above(vectors[:4], threshold), exact.above(vectors[:4], threshold))
    for share in (0.9, 0.3, 0.02):
        allowed = rng.random(150) < share
        assert_same(index.above(vectors[:2], -2.0, allowed), exact.above(vectors[:2], -2.0, allowed))
    index.remove()


def test_more_matches_than_milvus_returns(address: MilvusAddress) -> None:
    """The limit of a call is 16,384; filters on both sides of it."""
    vectors = KINDS["all equal"](20_000, 4, np.random.default_rng(0))
    index, exact = built(vectors, address), ExactIndex.build(vectors)
    assert_same(index.above(vectors[:1], 0.9), exact.above(vectors[:1], 0.9))
    for allowed in (np.arange(20_000) % 10 > 0, np.arange(20_000) % 10 == 0):
        assert_same(index.above(vectors[:1], 0.9, allowed), exact.above(vectors[:1], 0.9, allowed))
    index.remove()


def test_a_saved_index_is_opened(address: MilvusAddress, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file holds the self-test and a pointer: no other vector, and no secret."""
    vectors = KINDS["clustered"](300, 16, np.random.default_rng(2))
    monkeypatch.setattr(milvus_address, "_token", "secret")
    index = built(vectors, address)
    index.save(tmp_path / "index")
    description, arrays = map_arrays(tmp_path / "index")
    assert set(arrays) == set(NAMES)
    assert arrays["test_queries"].shape == (100, 16)
    assert "secret" not in json.dumps(description)
    opened = load_index(tmp_path / "index", spec_of(address), dimension=16, n_items=300)
    assert_same(opened.above(vectors[:5], 0.4), index.above(vectors[:5], 0.4))
    assert (opened.n_items, opened.dimension) == (300, 16)
    assert opened.details() == index.details()
    assert json.loads(json.dumps(index.details()))["complete"] is True
    index.remove()


def test_publishing_swaps_the_alias(address: MilvusAddress) -> None:
    """The first collection stays, so that its snapshot can be live again."""
    first, second = (built(KINDS["clustered"](50, 8, np.random.default_rng(seed)), address) for seed in (0, 1))
    client = pymilvus.MilvusClient(uri=address.server)
    for index in (first, second, first):
        index.publish()
        assert client.describe_alias("shop")["collection_name"] == index.details()["collection"]
    assert len(second.above(np.eye(8, dtype=np.float32)[:1], -2.0)[0].positions) == 50
    client.drop_alias("shop")
    first.remove()
    second.remove()


def changed(pointer: Path, **values: Any) -> Path:
    """Write a pointer with other values."""
    description, arrays = map_arrays(pointer)
    write_arrays(pointer.with_name("other"), description | values, arrays)
    return pointer.with_name("other")


def test_a_pointer_that_does_not_fit_is_refused(address: MilvusAddress, tmp_path: Path) -> None:
    index = built(KINDS["clustered"](60, 8, np.random.default_rng(3)), address)
    index.save(tmp_path / "index")

    def load(path: Path, *, dimension: int = 8, n_items: int = 60) -> MilvusIndex:
        return MilvusIndex.load(path, spec_of(address), dimension=dimension, n_items=n_items)

    path = tmp_path / "index"
    for wrong in ({"dimension": 9}, {"n_items": 61}):
        with pytest.raises(CorruptArtifact, match="expected dimension and number of items"):
            load(path, **wrong)
    with pytest.raises(CorruptArtifact, match="cannot be read"):
        load(tmp_path / "missing")
    with pytest.raises(CorruptArtifact, match=r"expected format and address .* found .*http://elsewhere"):
        load(changed(path, uri="http://elsewhere:19530"))
    with pytest.raises(CorruptArtifact, match="Milvus has no collection shop_gone"):
        load(changed(path, collection="shop_gone"))
    with pytest.raises(CorruptArtifact, match=r"expected columns and vectors \(\[8\], 61\), Milvus has \(\[8\], 60\)"):
        load(changed(path, n_items=61), n_items=61)
    with pytest.raises(CorruptArtifact, match="Milvus holds other vectors than were stored"):
        load(changed(path, sample="0" * 32))
    content = path.read_bytes()
    for cut in range(0, len(content), 97):
        (tmp_path / "cut").write_bytes(content[:cut])
        with pytest.raises(CorruptArtifact, match=str(tmp_path / "cut")):
            load(tmp_path / "cut")
        flipped = bytearray(content)
        flipped[cut] ^= 1 << cut % 8
        (tmp_path / "cut").write_bytes(flipped)
        with pytest.raises(CorruptArtifact, match=str(tmp_path / "cut")):
            load(tmp_path / "cut")
    index.remove()
    index.remove()


def test_a_milvus_that_answers_otherwise_is_not_opened(address: MilvusAddress, tmp_path: Path) -> None:
    """The vectors are those that were stored, and the pointer is whole, but the answers are others."""
    index = built(KINDS["clustered"](300, 8, np.random.default_rng(3)), address)
    assert index.self_test is not None
    assert len(index.self_test.queries) == 100
    wrong = index.self_test.scores.copy()
    wrong[::9] = np.nextafter(wrong[::9], np.float32(2))
    index.self_test = replace(index.self_test, scores=wrong)
    index.save(tmp_path / "index")
    with pytest.raises(CorruptArtifact, match="fails its self-test: 100 queries"):
        load_index(tmp_path / "index", spec_of(address), dimension=8, n_items=300)
    index.remove()


def test_vectors_that_changed_in_milvus_are_noticed(address: MilvusAddress, tmp_path: Path) -> None:
    index = built(KINDS["clustered"](60, 8, np.random.default_rng(4)), address)
    index.save(tmp_path / "index")
    client = pymilvus.MilvusClient(uri=address.server)
    client.upsert(index.details()["collection"], [{"row": 5, "vector": [0.5] * 8}])
    with pytest.raises(CorruptArtifact, match="Milvus holds other vectors"):
        MilvusIndex.load(tmp_path / "index", spec_of(address), dimension=8, n_items=60)
    index.remove()


def test_what_milvus_lost_is_not_published(address: MilvusAddress, monkeypatch: pytest.MonkeyPatch) -> None:
    """A collection that is not whole is dropped."""
    client = pymilvus.MilvusClient(uri=address.server)
    before = sorted(client.list_collections())
    insert = pymilvus.MilvusClient.insert
    monkeypatch.setattr(
        pymilvus.MilvusClient, "insert", lambda self, name, rows, **kw: insert(self, name, rows[1:], **kw)
    )
    with pytest.raises(ValidationFailed, match=r"expected columns and vectors \(\[8\], 60\), Milvus has \(\[8\], 59\)"):
        built(KINDS["clustered"](60, 8, np.random.default_rng(5)), address)
    assert sorted(client.list_collections()) == before


def test_errors_of_milvus_are_unavailable(address: MilvusAddress, monkeypatch: pytest.MonkeyPatch) -> None:
    index = built(KINDS["clustered"](60, 8, np.random.default_rng(6)), address)
    index.remove()
    with pytest.raises(Unavailable, match="did not answer as expected"):
        index.above(np.eye(8, dtype=np.float32), 0.5)
    monkeypatch.setattr(milvus_index, "_TIMEOUT_S", 1.0)
    with pytest.raises(Unavailable, match=r"Milvus at http://127\.0\.0\.1:1 did not answer"):
        built(np.eye(8, dtype=np.float32), MilvusAddress.parse("http://127.0.0.1:1"))


@pytest.mark.parametrize("kind", ["IVF_FLAT&nlist=16&nprobe=4", "HNSW&M=8&efConstruction=64&ef=16"])
def test_approximate_indexes_promise_nothing(kind: str, address: MilvusAddress) -> None:
    """What they find is scored exactly."""
    vectors = KINDS["clustered"](2000, 16, np.random.default_rng(8))
    own = MilvusAddress.parse(f"{address.uri}?name=shop&index={kind}")
    index = built(vectors, own)
    assert index.details()["complete"] is False
    assert "matches can be missing" in index.details()["cannot_promise"]
    (found,) = index.above(vectors[:1], 0.5)
    (wanted,) = ExactIndex.build(vectors).above(vectors[:1], 0.5)
    assert set(zip(found.positions.tolist(), found.scores.tolist(), strict=True)) <= set(
        zip(wanted.positions.tolist(), wanted.scores.tolist(), strict=True)
    )
    assert 0 in found.positions
    index.remove()


def test_bad_queries_are_refused(address: MilvusAddress) -> None:
    index = built(np.eye(8, dtype=np.float32), address)
    with pytest.raises(InvalidEmbeddings, match=r"expected float32 vectors \[n, 8\]"):
        index.above(np.zeros((2, 7), np.float32), 0.5)
    with pytest.raises(InvalidEmbeddings, match="expected a threshold, found NaN"):
        index.above(np.zeros((2, 8), np.float32), float("nan"))
    index.remove()


def test_an_error_of_grpc_itself_is_unavailable(address: MilvusAddress) -> None:
    """pymilvus passes a call that took too long on as it is."""
    with pytest.raises(Unavailable, match="did not answer as expected"), milvus_index._calls(address):
        raise grpc.RpcError("deadline exceeded")
