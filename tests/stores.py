"""Stores for tests: with a live snapshot, or on a disk that fails after so many writes."""

from __future__ import annotations

from concurrent.futures import Executor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from retrieval.contract.bundle import Bundle
from retrieval.contract.canonical import digest_array
from retrieval.contract.class_terms import ClassTerms
from retrieval.contract.limits import DEFAULT_LIMITS, ImageLimits
from retrieval.contract.operating_point import OperatingPoint
from retrieval.contract.score import Score
from retrieval.engine.embedding import ImageEmbedder
from retrieval.engine.encoder import Encoder
from retrieval.engine.index.open import build_index
from retrieval.engine.index.spec import IndexSpec
from retrieval.engine.items import ItemRows, ItemTable
from retrieval.engine.labelled_embeddings import LabelledEmbeddings
from retrieval.engine.snapshot import SnapshotId, SnapshotManifest, snapshot_id
from retrieval.engine.store import Store
from retrieval.engine.store.objects import Objects
from retrieval.flows.calibrate import CalibrationTarget, calibrate
from retrieval.flows.reindex import (
    ReindexRequest,
    build_and_publish,
    clear_staging,
    embed_planned_shard,
    missing_shards,
    plan,
)

CREATED_AT = "2026-01-01T00:00:00+00:00"


class Crash(Exception):
    """The process died here."""

    def __init__(self) -> None:
        super().__init__("the process died here")


class CrashingObjects(Objects):
    """Objects of a process that dies at its change number `n_writes` + 1."""

    def __init__(self, url: str, n_writes: int) -> None:
        super().__init__(url)
        self.n_left = n_writes

    def put(self, key: str, data: bytes) -> None:
        self._count()
        super().put(key, data)

    def put_file(self, key: str, source: Path) -> None:
        self._count()
        super().put_file(key, source)

    def delete(self, prefix: str) -> None:
        """Removing a folder is no single act: the process dies when its first file is gone."""
        if self.n_left == 0:
            for name in self.names(prefix)[:1]:
                super().delete(f"{prefix}/{name}")
        self._count()
        super().delete(prefix)

    def _count(self) -> None:
        if self.n_left == 0:
            raise Crash
        self.n_left -= 1


def crashing(store: Store, n_writes: int) -> Store:
    """The same store as a process sees it that dies after `n_writes` writes."""
    doomed = Store(store.url)
    doomed.objects = CrashingObjects(store.url, n_writes)
    return doomed


def activate(store: Store, point: OperatingPoint, score: Score) -> None:
    """Store an operating point with its score and make it the active one."""
    store.put_score(point.bundle_digest, score)
    store.put_operating_point(point)
    store.activate(point.bundle_digest, point.id)


def with_labels(point: OperatingPoint, base: Score) -> tuple[OperatingPoint, Score]:
    """The catalogue score over another score, and an operating point that uses it."""
    score = replace(base, classes=ClassTerms(pull=0.7))
    return replace(point, score_digest=score.digest, score_kind=score.kind), score


def without_labels(folder: Path) -> Path:
    """A table of the pictures in the folder, without a label."""
    paths = sorted(folder.rglob("*.png"))
    table = folder.with_name(f"{folder.name} without labels.csv")
    table.write_text("id,uri,label\n" + "".join(f"{number},{path},\n" for number, path in enumerate(paths)))
    return table


def embedder_of(encoder: Encoder, pool: Executor, limits: ImageLimits = DEFAULT_LIMITS) -> ImageEmbedder:
    """The parts that embed images, with one encoder for every bundle."""
    return ImageEmbedder(encoder_of=lambda digest: encoder, limits=limits, pool=pool)


def reindex(
    store: Store,
    encoder: Encoder,
    pool: Executor,
    request: ReindexRequest,
    *,
    job_id: str = "job",
    created_at: str = CREATED_AT,
) -> SnapshotId:
    """All steps of a reindex one after another, as a worker runs them."""
    planned = plan(store, job_id, request)
    for number in missing_shards(store, job_id, planned):
        embed_planned_shard(store, job_id, planned, number, embedder=embedder_of(encoder, pool))
    snapshot = build_and_publish(store, job_id, planned, created_at=created_at)
    clear_staging(store, job_id)
    return snapshot


def publish_vectors(
    store: Store, bundle: Bundle, vectors: NDArray[np.float32], *, threshold: float, catalog: str = "shop"
) -> SnapshotId:
    """Publish a whole snapshot, with its item table, of vectors [n, d] that stand for embeddings of the bundle."""
    store.add_bundle(bundle.directory)
    activate(store, _point_of(bundle, threshold), Score())
    spec = IndexSpec()
    index = build_index(vectors, spec, threshold=threshold)
    n = len(vectors)
    columns = {
        "id": [f"item-{number}" for number in range(n)],
        "uri": [f"file:///images/{number}.jpg" for number in range(n)],
        "label": [f"class {number // 5}" for number in range(n)],
        "attributes": ['{"maker": "north"}'] * n,
    }
    items = ItemTable.join([ItemRows(pa.table(columns))], np.zeros(n, np.float32))
    content = digest_array(vectors)
    manifest = SnapshotManifest(
        id=snapshot_id(
            bundle=bundle.digest, score=Score().digest, catalog_digest=content, index_spec=spec, threshold=threshold
        ),
        catalog=catalog,
        bundle_digest=bundle.digest,
        score_digest=Score().digest,
        catalog_digest=content,
        index_spec=str(spec),
        dimension=index.dimension,
        n_items=n,
        n_failed=0,
        failures={},
        index_recall=1.0,
        shards=(),
        files={},
        created_at=CREATED_AT,
        index_details=index.details(),
    )
    store.put_snapshot(manifest, index, items)
    store.publish(catalog, manifest.id)
    return manifest.id


def _point_of(bundle: Bundle, threshold: float) -> OperatingPoint:
    """An operating point with this threshold; its evidence is of made-up embeddings."""
    rng = np.random.default_rng(0)
    rows = np.repeat(rng.normal(size=(40, 32)), 5, axis=0) + 0.3 * rng.normal(size=(200, 32))
    data = LabelledEmbeddings(
        embeddings=(rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32),
        labels=[f"class {number // 5}" for number in range(len(rows))],
        data_digest="made up",
    )
    target = CalibrationTarget()
    point = calibrate(data, bundle=bundle.digest, scores=[Score()], target=target, rng=rng, created_at=CREATED_AT)
    return replace(point, choice=replace(point.choice, threshold=threshold))
