"""Stores for tests: with a live snapshot, or on a disk that fails after so many writes."""

from __future__ import annotations

from concurrent.futures import Executor
from pathlib import Path

from retrieval.contract.limits import DEFAULT_LIMITS, ImageLimits
from retrieval.contract.operating_point import OperatingPoint
from retrieval.contract.score import Score
from retrieval.engine.embedding import ImageEmbedder
from retrieval.engine.encoder import Encoder
from retrieval.engine.snapshot import SnapshotId
from retrieval.engine.store import Store
from retrieval.engine.store.objects import Objects
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
