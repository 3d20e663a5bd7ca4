"""Artefacts that the tests of the store write: a snapshot of four items, and an audit."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from retrieval.contract.bundle import BundleDigest
from retrieval.contract.manifest import Item
from retrieval.contract.score import GalleryClasses, ScoreDigest
from retrieval.engine.index.open import build_index
from retrieval.engine.index.spec import IndexSpec
from retrieval.engine.items import ItemRows, ItemTable
from retrieval.engine.snapshot import LabelSummary, SnapshotId, SnapshotManifest
from retrieval.engine.store import Store
from tests.stores import CREATED_AT

VECTORS = np.eye(4, 8, dtype=np.float32)
OFFSETS = np.array([0, 0.5, 0.25, -1], np.float32)
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


def items(offsets: NDArray[np.float32] | None = None) -> ItemTable:
    rows = [Item(id=f"{n}", uri=f"{n}.png", label="cup", attributes={"maker": "north"}) for n in range(4)]
    return ItemTable.join([ItemRows.of(rows)], np.linspace(0, 3 / 8, 4, dtype=np.float32), offsets)


def put_snapshot(store: Store, snapshot: str = "s1", *, created_at: str = CREATED_AT) -> SnapshotManifest:
    return store.put_snapshot(
        manifest(snapshot, created_at=created_at), build_index(VECTORS, IndexSpec.parse("Flat")), items()
    )


def put_labelled_snapshot(store: Store) -> SnapshotManifest:
    """A snapshot whose score uses the labels."""
    labels = LabelSummary(n_classes=1, n_unlabelled=0, n_far=1, far_items=("2",))
    classes = GalleryClasses(("cup",), np.array([4]), VECTORS.mean(axis=0, keepdims=True))
    index = build_index(VECTORS, IndexSpec.parse("Flat"))
    return store.put_snapshot(replace(manifest("s2"), labels=labels), index, items(OFFSETS), classes)


def the_only(store: Store, pattern: str) -> Path:
    (path,) = Path(store.url.removeprefix("file://")).glob(pattern)
    return path
