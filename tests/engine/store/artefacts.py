"""Artefacts that the tests of the store write: a snapshot of four items, and an audit."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from retrieval.contract.bundle import BundleDigest
from retrieval.contract.manifest import Item
from retrieval.contract.score import ScoreDigest
from retrieval.engine.index.open import build_index
from retrieval.engine.index.spec import IndexSpec
from retrieval.engine.items import ItemRows, ItemTable
from retrieval.engine.snapshot import SnapshotId, SnapshotManifest
from retrieval.engine.store import Store
from tests.stores import CREATED_AT

VECTORS = np.eye(4, 8, dtype=np.float32)
AUDIT = {"report.json": b'{"verdict": "passed"}', "report.html": b"<html>", "curves.parquet": b"PAR1"}


def manifest(snapshot: str = "s1", *, created_at: str = CREATED_AT) -> SnapshotManifest:
    return SnapshotManifest(
        id=SnapshotId(snapshot),
        catalog="shop",
        bundle_digest=BundleDigest("b"),
        score_digest=ScoreDigest("s"),
        catalog_digest="c",
        index_spec="Flat",
        dimension=8,
        n_items=4,
        n_failed=1,
        failures={"x": "damaged"},
        index_recall=1.0,
        shards=("one", "two"),
        files={},
        created_at=created_at,
    )


def items() -> ItemTable:
    rows = [Item(id=f"{n}", uri=f"{n}.png", label="cup", attributes={"maker": "north"}) for n in range(4)]
    return ItemTable.join([ItemRows.of(rows)], np.linspace(0, 3 / 8, 4, dtype=np.float32))


def put_snapshot(store: Store, snapshot: str = "s1", *, created_at: str = CREATED_AT) -> SnapshotManifest:
    return store.put_snapshot(
        manifest(snapshot, created_at=created_at), build_index(VECTORS, IndexSpec.parse("Flat")), items()
    )


def the_only(store: Store, pattern: str) -> Path:
    (path,) = Path(store.url.removeprefix("file://")).glob(pattern)
    return path
