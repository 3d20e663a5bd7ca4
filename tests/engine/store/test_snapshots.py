"""One snapshot of a catalogue is live; a damaged one is refused."""

from __future__ import annotations

import uuid
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from retrieval.contract.canonical import json_bytes
from retrieval.contract.manifest import Item
from retrieval.engine.class_table import load_classes
from retrieval.engine.snapshot import Snapshot, SnapshotId
from retrieval.engine.store import Store
from retrieval.errors import (
    CorruptArtifact,
    UnknownCatalog,
    UnknownSnapshot,
)
from tests.engine.store.artefacts import (
    OFFSETS,
    VECTORS,
    manifest,
    put_labelled_snapshot,
    put_snapshot,
    the_only,
)


def test_a_damaged_cached_copy_is_fetched_again(tmp_path: Path) -> None:
    """Somebody cleans the temporary folder: the store is asked again before it is called corrupt."""
    store = Store(f"memory://{uuid.uuid4().hex}", cache=tmp_path)
    complete = put_snapshot(store)
    store.open_snapshot("shop", complete.id)
    for path in tmp_path.rglob("*.parquet"):
        path.unlink()
    assert len(store.open_snapshot("shop", complete.id).items) == 4
    store.objects.put(f"catalogs/shop/snapshots/s1/{next(iter(complete.files))}", b"damaged in the store")
    with pytest.raises(CorruptArtifact, match="checksum"):
        Store(store.url, cache=tmp_path / "another machine").open_snapshot("shop", complete.id)


def test_publish_and_roll_back(store: Store) -> None:
    """One pointer names the live snapshot; earlier snapshots stay and can be live again."""
    first = put_snapshot(store, "s1")
    second = put_snapshot(store, "s2", created_at="2027-01-01T00:00:00+00:00")
    with pytest.raises(UnknownCatalog, match="no live snapshot"):
        store.current("shop")
    assert store.catalogs() == []
    store.publish("shop", first.id)
    store.publish("shop", second.id)
    assert store.current("shop") == "s2"
    assert store.snapshots("shop").readable == [second, first], "newest first"
    assert store.catalogs() == ["shop"]
    store.publish("shop", first.id)
    assert store.current("shop") == "s1"


def test_snapshot_round_trip(store: Store) -> None:
    complete = put_snapshot(store)
    assert len(complete.files) == 2
    assert replace(complete, files={}) == manifest()
    snapshot = store.open_snapshot("shop", complete.id)
    assert snapshot.manifest == complete
    assert_found(snapshot, VECTORS[2], ["2"])
    np.testing.assert_array_equal(snapshot.items.densities, np.arange(4) / 8)


def test_a_snapshot_whose_score_uses_labels(store: Store) -> None:
    """It keeps the offsets of its items, its classes, and which labels look wrong."""
    complete = put_labelled_snapshot(store)
    assert len(complete.files) == 3
    snapshot = store.open_snapshot("shop", complete.id)
    assert snapshot.manifest == complete
    assert snapshot.manifest.labels is not None
    assert snapshot.manifest.labels.far_items == ("2",)
    assert snapshot.items.offsets is not None
    np.testing.assert_array_equal(snapshot.items.offsets, OFFSETS)
    classes = load_classes(the_only(store, "catalogs/shop/snapshots/s2/*classes.parquet"))
    assert (classes.names, classes.sizes.tolist()) == (("cup",), [4])
    np.testing.assert_array_equal(classes.means, VECTORS.mean(axis=0, keepdims=True))


def test_earlier_versions_read_snapshots_without_labels_only(store: Store) -> None:
    """They refuse fields that they do not know, so that they never serve vectors that they misunderstand."""
    plain, labelled = put_snapshot(store), put_labelled_snapshot(store)
    assert "labels" not in plain.to_json()
    assert labelled.to_json()["labels"] == {"n_classes": 1, "n_unlabelled": 0, "n_far": 1, "far_items": ("2",)}
    assert plain.labels is None


def test_a_snapshot_without_its_classes_is_refused(store: Store) -> None:
    complete = put_labelled_snapshot(store)
    files = {name: checksum for name, checksum in complete.files.items() if not name.endswith("classes.parquet")}
    damaged = json_bytes(replace(complete, files=files).to_json())
    store.objects.put("catalogs/shop/snapshots/s2/manifest.json", damaged)
    with pytest.raises(CorruptArtifact, match=r"its manifest names no classes\.parquet"):
        store.open_snapshot("shop", complete.id)


def assert_found(snapshot: Snapshot, query: NDArray[np.float32], expected: list[str]) -> None:
    (hits,) = snapshot.index.above(query[None], 0.5)
    found = snapshot.items.take(hits.positions)
    assert [item.id for item in found] == expected
    assert found[0] == Item(id="2", uri="2.png", label="cup", attributes={"maker": "north"})


def test_unknown_snapshots(store: Store) -> None:
    with pytest.raises(UnknownCatalog, match="'shop' has no snapshot"):
        store.snapshots("shop")
    put_snapshot(store)
    store.publish("shop", SnapshotId("s1"))
    for act in (store.publish, store.open_snapshot, store.snapshot_manifest):
        with pytest.raises(UnknownSnapshot, match="catalogue shop has no snapshot s9"):
            act("shop", SnapshotId("s9"))
    assert store.current("shop") == "s1"


@pytest.mark.parametrize("kind", ["index.bin", "items.parquet", "classes.parquet"])
@pytest.mark.parametrize("damage", ["truncate", "change", "remove"])
def test_a_damaged_snapshot_is_refused(kind: str, damage: str, store: Store) -> None:
    complete = put_labelled_snapshot(store)
    path = the_only(store, f"catalogs/shop/snapshots/s2/*{kind}")
    content = path.read_bytes()
    if damage == "remove":
        path.unlink()
    else:
        path.write_bytes(content[:-1] if damage == "truncate" else content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(CorruptArtifact, match=rf"snapshot s2: .*{kind}"):
        store.open_snapshot("shop", complete.id)


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b'{"format": 2}', b'{"format": 1}'])
def test_a_damaged_snapshot_manifest_is_refused(data: bytes, store: Store) -> None:
    put_snapshot(store)
    store.objects.put("catalogs/shop/snapshots/s1/manifest.json", data)
    with pytest.raises(CorruptArtifact, match=r"manifest\.json"):
        store.snapshot_manifest("shop", SnapshotId("s1"))
