"""Which bundle, snapshot, operating point and score belong together. The check is written here and nowhere else.

The live snapshot names its bundle and its score. The active operating point of the bundle must use the same score. If
one with another score was activated, the catalogue needs a reindex. Until then the pair that belonged together answers
queries, also after a restart: the snapshot with the operating point that was active before.
"""

import contextlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from retrieval.contract.bundle import Bundle
from retrieval.contract.operating_point import OperatingPoint, OperatingPointId
from retrieval.contract.score import Score
from retrieval.engine.batcher import Batcher
from retrieval.engine.snapshot import Snapshot, SnapshotId, SnapshotManifest
from retrieval.engine.store import Store
from retrieval.errors import (
    BundleMismatch,
    CorruptArtifact,
    DeviceUnavailable,
    InvalidInput,
    NotFound,
    UnknownOperatingPoint,
)

ImageBatcher = Batcher[NDArray[np.float32], NDArray[np.float32]]  # from prepared pixels [3, h, w] to embeddings [d]


@dataclass(frozen=True, slots=True, kw_only=True)
class MatchingParts:
    """The manifest of a snapshot, with the bundle, the active operating point and the score that belong to it."""

    manifest: SnapshotManifest
    bundle: Bundle
    point: OperatingPoint
    score: Score


@dataclass(frozen=True, slots=True, eq=False)
class Live:
    """The parts that answer the queries of one catalogue; replaced as a whole, never changed."""

    batcher: ImageBatcher
    bundle: Bundle
    snapshot: Snapshot
    point: OperatingPoint
    point_id: OperatingPointId  # of `point`; computing it digests the whole operating point
    score: Score

    @property
    def key(self) -> tuple[SnapshotId, OperatingPointId]:
        """The values of the two pointers when this went live."""
        return self.snapshot.manifest.id, self.point_id


def matching_parts(store: Store, catalog: str, snapshot_id: SnapshotId) -> MatchingParts:
    """Return the verified parts that belong to a snapshot. The index and the items are not opened.

    Raises UnknownSnapshot, UnknownBundle, UnknownOperatingPoint, CorruptArtifact, and BundleMismatch if the active
    operating point uses another score than the snapshot.
    """
    manifest = store.snapshot_manifest(catalog, snapshot_id)
    bundle = store.bundle(manifest.bundle_digest)
    return _checked_parts(store, manifest, bundle, store.active_operating_point(bundle.digest))


def last_matching_parts(store: Store, catalog: str, snapshot_id: SnapshotId) -> MatchingParts:
    """Return the verified parts that belonged to a snapshot before another score was activated.

    Raises as `matching_parts` does; UnknownOperatingPoint also if nothing recorded such an operating point.
    """
    manifest = store.snapshot_manifest(catalog, snapshot_id)
    bundle = store.bundle(manifest.bundle_digest)
    point_id = store.last_active_id(bundle.digest, manifest.score_digest) or manifest.operating_point_id
    if not point_id:
        raise UnknownOperatingPoint(f"no operating point with the score of snapshot {snapshot_id} is known")
    return _checked_parts(store, manifest, bundle, store.operating_point(bundle.digest, point_id))


def needs_reindex(store: Store, point: OperatingPoint) -> tuple[str, ...]:
    """Return the catalogues of the operating point's bundle whose live snapshot was built with another score.

    While the operating point is active, they wait for a reindex. A catalogue that cannot be read is not among them.
    """
    catalogs = []
    for catalog in store.catalogs():
        with contextlib.suppress(CorruptArtifact, NotFound, InvalidInput):
            manifest = store.snapshot_manifest(catalog, store.current(catalog))
            if manifest.bundle_digest == point.bundle_digest and manifest.score_digest != point.score_digest:
                catalogs.append(catalog)
    return tuple(sorted(catalogs))


def _checked_parts(store: Store, manifest: SnapshotManifest, bundle: Bundle, point: OperatingPoint) -> MatchingParts:
    catalog, snapshot_id = manifest.catalog, manifest.id
    if point.score_digest != manifest.score_digest:
        raise BundleMismatch(
            f"catalogue {catalog!r}: snapshot {snapshot_id} was built with score {manifest.score_digest}, the active "
            f"operating point {point.id} uses {point.score_digest}: reindex the catalogue, or activate an operating "
            "point with that score first"
        )
    score = store.score(bundle.digest, point.score_digest)
    if manifest.dimension != score.dimension(bundle.dimension):
        raise BundleMismatch(
            f"catalogue {catalog!r}: snapshot {snapshot_id} has vectors of dimension {manifest.dimension}, bundle "
            f"{bundle.digest} with its {score.kind} score makes {score.dimension(bundle.dimension)}"
        )
    return MatchingParts(manifest=manifest, bundle=bundle, point=point, score=score)


def live_parts(store: Store, catalog: str) -> MatchingParts:
    """Return what belongs to the live snapshot of a catalogue. Raises UnknownCatalog, and as `matching_parts` does."""
    return matching_parts(store, catalog, store.current(catalog))


@dataclass(frozen=True, slots=True)
class Opener:
    """Opens snapshots with everything that belongs to them.

    batcher_for: the opened model of a bundle. device: where exact indexes search.
    """

    store: Store
    batcher_for: Callable[[Bundle], ImageBatcher]
    device: str = "cpu"

    def live(self, catalog: str, snapshot_id: SnapshotId) -> Live:
        """Open a snapshot with what belongs to it. Raises as `matching_parts` does, and DeviceUnavailable."""
        return self._opened(matching_parts(self.store, catalog, snapshot_id))

    def last_live(self, catalog: str, snapshot_id: SnapshotId) -> Live:
        """Open a snapshot with what belonged to it before another score was activated, see `last_matching_parts`."""
        return self._opened(last_matching_parts(self.store, catalog, snapshot_id))

    def _opened(self, parts: MatchingParts) -> Live:
        manifest = parts.manifest
        try:
            snapshot = self.store.open_snapshot(manifest.catalog, manifest.id, device=self.device)
        except DeviceUnavailable as error:
            raise DeviceUnavailable(
                f"catalogue {manifest.catalog!r}: snapshot {manifest.id} cannot be searched on the GPU, which needs "
                f"room for it beside the live one: {error}; a server with RETRIEVAL_DEVICE=cpu needs no GPU"
            ) from error
        return Live(self.batcher_for(parts.bundle), parts.bundle, snapshot, parts.point, parts.point.id, parts.score)
