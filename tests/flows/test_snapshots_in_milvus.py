"""Snapshots whose index lies in Milvus: the alias there follows what is live, and pruning removes collections.

Runs against milvus-lite, in this process.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Executor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from retrieval.engine.encoder import Encoder
from retrieval.engine.index import milvus_address
from retrieval.engine.index.milvus_index import MilvusIndex
from retrieval.engine.snapshot import SnapshotId
from retrieval.engine.store import Store
from retrieval.errors import CorruptArtifact, Unavailable
from retrieval.flows.prune import PrunePolicy, prune
from retrieval.flows.reindex import ReindexRequest, roll_back
from tests.pictures import write_class_folders
from tests.stores import Crash, crashing, reindex

pymilvus = pytest.importorskip("pymilvus")
pytest.importorskip("milvus_lite")

pytestmark = pytest.mark.slow

NOW = datetime(2026, 6, 30, tzinfo=UTC)
ALIAS = "pictures"


@pytest.fixture(autouse=True)
def any_server(monkeypatch: pytest.MonkeyPatch) -> None:
    """Settings that another test has read allow none."""
    monkeypatch.setattr(milvus_address, "_servers", None)


@pytest.fixture
def milvus(tmp_path: Path) -> Iterator[Any]:
    """A client of an empty Milvus, which lies in `lite.db`."""
    client = pymilvus.MilvusClient(uri=str(tmp_path / "lite.db"))
    yield client
    client.close()


@pytest.fixture
def spec(milvus: Any, tmp_path: Path) -> str:
    return f"milvus:{tmp_path / 'lite.db'}?name={ALIAS}"


@pytest.fixture
def made(
    calibrated: Store, tiny_encoder: Encoder, pool: Executor, tmp_path: Path, spec: str
) -> Callable[..., SnapshotId]:
    """Reindex another folder of pictures each time, a day later; the store may be one that crashes."""

    def make(number: int, *, store: Store = calibrated, index_spec: str = spec) -> SnapshotId:
        folder = tmp_path / f"images{number}"
        if not folder.exists():
            write_class_folders(folder, n_classes=6 + number, n_images=2)
        request = ReindexRequest(catalog="shop", manifest_uri=str(folder), index_spec=index_spec)
        at = (NOW - timedelta(days=6 - number)).isoformat()
        return reindex(store, tiny_encoder, pool, request, job_id=f"job{number}", created_at=at)

    return make


def collection(store: Store, snapshot: SnapshotId) -> str:
    name: str = store.snapshot_manifest("shop", snapshot).index_details["collection"]
    return name


def named(milvus: Any) -> str:
    """Return the collection that the alias names."""
    name: str = milvus.describe_alias(ALIAS)["collection_name"]
    return name


def n_found(store: Store) -> int:
    """Return how many items the live snapshot finds for a query that everything matches."""
    index = store.open_snapshot("shop", store.current("shop")).index
    (hits,) = index.above(np.ones((1, index.dimension), np.float32), -100.0)
    return len(hits.positions)


def test_reindexing_rolling_back_and_pruning(calibrated: Store, milvus: Any, made: Callable[..., SnapshotId]) -> None:
    """The alias names the collection of what is live; only those of removed snapshots are dropped."""
    snapshots = []
    for number in range(4):
        snapshots.append(made(number))
        assert named(milvus) == collection(calibrated, snapshots[-1])
        assert n_found(calibrated) == 2 * (6 + number)
    roll_back(calibrated, "shop", snapshots[2])
    assert named(milvus) == collection(calibrated, snapshots[2])
    assert n_found(calibrated) == 16
    collections = [collection(calibrated, snapshot) for snapshot in snapshots]
    assert sorted(milvus.list_collections()) == sorted(collections)

    would = prune(calibrated, PrunePolicy(keep=1), now=NOW, dry_run=True)
    assert sorted(milvus.list_collections()) == sorted(collections)
    done = prune(calibrated, PrunePolicy(keep=1), now=NOW)
    assert done.snapshots == would.snapshots == {"shop": (snapshots[0],)}
    assert sorted(milvus.list_collections()) == sorted(collections[1:])
    assert named(milvus) == collections[2]
    assert n_found(calibrated) == 16


def test_a_kill_leaves_an_alias_that_can_be_searched(
    calibrated: Store, milvus: Any, made: Callable[..., SnapshotId]
) -> None:
    """After any number of writes; the repeated job makes the alias follow, and the old collection stays."""
    first = collection(calibrated, made(0))
    for n_writes in range(100):
        try:
            made(1, store=crashing(calibrated, n_writes))
            break
        except Crash:
            live = collection(calibrated, calibrated.current("shop"))
            assert named(milvus) in {first, live}
            assert len(milvus.query(ALIAS, output_fields=["row"], limit=100)) == n_found(calibrated)
    assert n_writes > 3
    assert named(milvus) == collection(calibrated, calibrated.current("shop")) != first
    assert first in milvus.list_collections()


def test_a_kill_before_the_alias_is_moved(
    calibrated: Store,
    milvus: Any,
    made: Callable[..., SnapshotId],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The old collection keeps the alias, and nobody prunes it; the repeated job moves it."""
    first = made(0)

    def die(*arguments: object) -> bool:
        raise Crash

    with monkeypatch.context() as patch:
        patch.setattr(MilvusIndex, "publish", die)
        with pytest.raises(Crash, match="died here"):
            made(1)
    second = calibrated.current("shop")
    assert second != first
    assert named(milvus) == collection(calibrated, first)
    prune(calibrated, PrunePolicy(keep=1), now=NOW)
    assert named(milvus) in milvus.list_collections()
    assert made(1) == second
    assert named(milvus) == collection(calibrated, second)


def test_another_publication_at_the_same_time(
    calibrated: Store, milvus: Any, made: Callable[..., SnapshotId], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever moves the alias last finds what the other one made live."""
    first, second = made(0), made(1)
    publish = MilvusIndex.publish
    others = [lambda: calibrated.objects.put("catalogs/shop/CURRENT", second.encode())]

    def slowly(index: MilvusIndex) -> None:
        for other in others[:1]:
            others.remove(other)
            other()
        publish(index)

    monkeypatch.setattr(MilvusIndex, "publish", slowly)
    calibrated.publish("shop", first)
    assert calibrated.current("shop") == second
    assert named(milvus) == collection(calibrated, second)


def test_a_catalogue_that_leaves_milvus(calibrated: Store, milvus: Any, made: Callable[..., SnapshotId]) -> None:
    """The alias goes with the last collection."""
    made(0)
    for number in (1, 2, 3):
        made(number, index_spec="Flat")
    prune(calibrated, PrunePolicy(keep=1), now=NOW)
    assert milvus.list_collections() == []
    assert milvus.list_aliases()["aliases"] == []


def test_a_milvus_that_is_away_keeps_the_snapshot(
    calibrated: Store, milvus: Any, made: Callable[..., SnapshotId], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its collection would be forgotten otherwise; the next prune removes both."""
    snapshots = [made(number) for number in range(3)]

    def away(index: MilvusIndex) -> None:
        raise Unavailable("Milvus is away")

    with monkeypatch.context() as patch:
        patch.setattr(MilvusIndex, "remove", away)
        with pytest.raises(Unavailable, match="Milvus is away"):
            prune(calibrated, PrunePolicy(keep=1), now=NOW)
    assert set(calibrated.snapshot_ids("shop")) == set(snapshots)
    gone = collection(calibrated, snapshots[0])
    prune(calibrated, PrunePolicy(keep=1), now=NOW)
    assert set(calibrated.snapshot_ids("shop")) == set(snapshots[1:])
    assert gone not in milvus.list_collections()


def test_a_collection_that_was_dropped_is_built_again(
    calibrated: Store, milvus: Any, made: Callable[..., SnapshotId]
) -> None:
    """Both pointers are in the snapshot then, and both are removed with it."""
    first = made(0)
    milvus.drop_alias(ALIAS)
    milvus.drop_collection(collection(calibrated, first))
    with pytest.raises(CorruptArtifact, match="Milvus has no collection"):
        calibrated.open_snapshot("shop", first)
    assert made(0) == first
    assert named(milvus) == collection(calibrated, first)
    assert n_found(calibrated) == 12
    for number in (1, 2):
        made(number)
    prune(calibrated, PrunePolicy(keep=1), now=NOW)
    assert len(milvus.list_collections()) == 2
