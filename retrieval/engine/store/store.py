"""The store: all artefacts, and the pointers to the active operating points and the live snapshots.

Artefacts are immutable and content-addressed. Each has a marker file that is written last; without it the artefact does
not exist. So a kill between any two writes changes nothing that is active or live.

    bundles/<digest>/...                               marker contract.json
    bundles/<digest>/scores/<digest>/...               marker score.json
    bundles/<digest>/operating_points/<id>.json        and the pointers ACTIVE and ACTIVE-<score>
    bundles/<digest>/embeddings/<digest>.npz           embeddings of some images, reused by every snapshot
    catalogs/<name>/snapshots/<id>/...                 marker manifest.json; the pointers CURRENT, ROLLED_BACK_TO
    catalogs/<name>/audits/<id>/...                    marker report.json
    staging/<job>/...                                  working files of a running job, see `engine/staging.py`
"""

import contextlib
from pathlib import Path

from retrieval.contract.bundle import BundleDigest
from retrieval.contract.operating_point import OperatingPoint, OperatingPointId
from retrieval.engine.store.audits import Audits
from retrieval.engine.store.bundles import Bundles
from retrieval.engine.store.objects import CACHE_BYTES, Objects
from retrieval.engine.store.points import OperatingPoints, active_key, last_active_key
from retrieval.engine.store.pruning import Pruning
from retrieval.engine.store.snapshots import Snapshots
from retrieval.errors import BundleMismatch, CorruptArtifact, UnknownOperatingPoint


class Store(Bundles, OperatingPoints, Snapshots, Audits, Pruning):
    """All artefacts under one fsspec URL. It holds no state of its own; safe for threads and processes."""

    def __init__(self, url: str, *, cache: Path | None = None, cache_bytes: int = CACHE_BYTES) -> None:
        self.objects = Objects(url, cache=cache, cache_bytes=cache_bytes)
        self.url = url

    def activate(self, bundle: BundleDigest, point_id: OperatingPointId) -> OperatingPoint:
        """Make an operating point active, after verifying it and its score.

        Snapshots that were built with the score of the operating point that was active before are served with that one
        until they are replaced, see `engine/live.py`. Raises UnknownOperatingPoint, CorruptArtifact, BundleMismatch.
        """
        point = self.operating_point(bundle, point_id)
        self.score(bundle, point.score_digest)
        with contextlib.suppress(UnknownOperatingPoint, CorruptArtifact, BundleMismatch):  # then none could be served
            before = self.active_operating_point(bundle)
            if before.score_digest != point.score_digest:
                self.objects.put(last_active_key(bundle, before.score_digest), before.id.encode())
        self.objects.put(active_key(bundle), point_id.encode())
        return point
