"""The store: where every artefact lies, and the two pointers that decide what is live.

Decides layout, publishing, activating, rolling back and pruning; leaves atomic writing to `objects.py` and formats to
the artefacts. Artefacts are immutable and content-addressed; each is there once its marker file, written last, is
there. A kill between any two writes leaves what was live before live.

    bundles/<digest>/...                               marker contract.json
    bundles/<digest>/scores/<digest>/...               marker score.json
    bundles/<digest>/operating_points/<id>.json        and the pointer ACTIVE
    bundles/<digest>/embeddings/<digest>.npz           embeddings of some images, reused by every snapshot
    catalogs/<name>/snapshots/<id>/...                 marker manifest.json, and the pointer CURRENT
    catalogs/<name>/audits/<id>/...                    marker report.json
    staging/<job>/...                                  a running job's plan and progress
"""

import io
import json
import re
import tempfile
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from retrieval.contract.bundle import CONTRACT, Bundle, BundleDigest, open_bundle
from retrieval.contract.canonical import digest_file, json_bytes
from retrieval.contract.operating_point import OperatingPoint, OperatingPointId
from retrieval.contract.score import SCORE, Score, ScoreDigest, open_score
from retrieval.engine.index.faiss_index import Index
from retrieval.engine.items import ItemTable
from retrieval.engine.snapshot import INDEX, ITEMS, MANIFEST, Snapshot, SnapshotId, SnapshotManifest, open_snapshot
from retrieval.engine.store.objects import Objects
from retrieval.errors import (
    BundleMismatch,
    CorruptArtifact,
    InvalidInput,
    UnknownBundle,
    UnknownCatalog,
    UnknownJob,
    UnknownOperatingPoint,
    UnknownSnapshot,
)

_Artifact = TypeVar("_Artifact")

_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
ACTIVE, CURRENT, REPORT = "ACTIVE", "CURRENT", "report.json"


class Store:
    """Artefacts under one fsspec URL. Holds no state of its own; safe for threads and processes."""

    def __init__(self, url: str, *, cache: Path | None = None) -> None:
        self.objects = Objects(url, cache=cache)
        self.url = url

    # bundles

    def add_bundle(self, directory: Path) -> Bundle:
        """Verify the bundle in a local directory and copy it into the store; nothing happens where it is there."""
        bundle = open_bundle(directory)
        prefix = _bundle_prefix(bundle.digest)
        if not self.objects.exists(f"{prefix}/{CONTRACT}"):
            for name in sorted(bundle.files, key=lambda name: name == CONTRACT):  # the marker last
                self.objects.put_file(f"{prefix}/{name}", directory / name)
        return self.bundle(bundle.digest)

    def bundle(self, digest: BundleDigest) -> Bundle:
        """The bundle, verified. Raises UnknownBundle, CorruptArtifact."""
        prefix = _bundle_prefix(digest)
        if not self.objects.exists(f"{prefix}/{CONTRACT}"):
            raise UnknownBundle(f"bundle {digest} is not in the store {self.url}: add it with `retrieval calibrate`")
        bundle = self._verified(prefix, open_bundle)
        if bundle.digest != digest:
            raise CorruptArtifact(f"bundle {digest}: its contract has digest {bundle.digest}")
        return bundle

    def bundles(self) -> list[BundleDigest]:
        """Digests of all bundles."""
        names = self.objects.names("bundles")
        return [BundleDigest(name) for name in names if self.objects.exists(f"bundles/{name}/{CONTRACT}")]

    def only_bundle(self) -> BundleDigest:
        """The only bundle's digest. Raises UnknownBundle where there is none, InvalidInput where there are several."""
        digests = self.bundles()
        if not digests:
            raise UnknownBundle(f"the store {self.url} holds no bundle: add one with `retrieval calibrate`")
        if len(digests) > 1:
            raise InvalidInput(f"the store holds {len(digests)} bundles, name one of them: {', '.join(digests)}")
        return digests[0]

    # scores and embeddings

    def put_score(self, bundle: BundleDigest, score: Score) -> ScoreDigest:
        """Store a score beside its bundle."""
        prefix = f"{_bundle_prefix(bundle)}/scores/{score.digest}"
        for name, data in sorted(score.files().items(), key=lambda file: file[0] == SCORE):
            self.objects.put(f"{prefix}/{name}", data)
        return score.digest

    def score(self, bundle: BundleDigest, digest: ScoreDigest) -> Score:
        """A stored score, verified. Raises CorruptArtifact where it is missing or damaged."""
        return self._verified(f"{_bundle_prefix(bundle)}/scores/{digest}", lambda folder: open_score(folder, digest))

    def put_embeddings(self, bundle: BundleDigest, digest: str, embeddings: NDArray[np.float32]) -> str:
        """Store embeddings [n, d] float32 under the digest of what they were made from; returns their key."""
        buffer = io.BytesIO()
        np.savez(buffer, embeddings=embeddings)
        key = embeddings_key(bundle, digest)
        self.objects.put(key, buffer.getvalue())
        return key

    def embeddings(self, key: str) -> NDArray[np.float32]:
        """Stored embeddings [n, d] float32. Raises CorruptArtifact where they are missing or damaged."""
        data = self.objects.get(key)
        if data is None:
            raise CorruptArtifact(f"{self.url}/{key} is missing from the store: reindex the catalogue")
        try:
            with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
                embeddings: NDArray[np.float32] = arrays["embeddings"]
                return embeddings
        except (ValueError, KeyError, EOFError, OSError, zipfile.BadZipFile) as error:
            raise CorruptArtifact(f"{self.url}/{key} cannot be read: {error}") from error

    # operating points

    def put_operating_point(self, point: OperatingPoint) -> None:
        """Store an operating point; it is not active yet."""
        self.objects.put(_point_key(point.bundle_digest, point.id), json_bytes(point.to_json()))

    def operating_point(self, bundle: BundleDigest, point_id: OperatingPointId) -> OperatingPoint:
        """A stored operating point, verified. Raises UnknownOperatingPoint, CorruptArtifact."""
        data = self.objects.get(_point_key(bundle, point_id))
        if data is None:
            raise UnknownOperatingPoint(
                f"bundle {bundle} has no operating point {point_id}: see `retrieval operating-points`"
            )
        point = OperatingPoint.from_json(data, f"operating point {point_id}")
        if point.id != point_id:
            raise CorruptArtifact(f"operating point {point_id}: its content has id {point.id}")
        if point.bundle_digest != bundle:
            raise BundleMismatch(f"operating point {point_id} was made for bundle {point.bundle_digest}, not {bundle}")
        return point

    def operating_points(self, bundle: BundleDigest) -> list[OperatingPoint]:
        """All operating points of a bundle, newest first."""
        names = self.objects.names(f"{_bundle_prefix(bundle)}/operating_points")
        ids = [OperatingPointId(name.removesuffix(".json")) for name in names if name.endswith(".json")]
        return sorted((self.operating_point(bundle, i) for i in ids), key=lambda p: p.created_at, reverse=True)

    def activate(self, bundle: BundleDigest, point_id: OperatingPointId) -> OperatingPoint:
        """Make an operating point the one in use. Raises UnknownOperatingPoint, CorruptArtifact."""
        point = self.operating_point(bundle, point_id)
        self.score(bundle, point.score_digest)
        self.objects.put(f"{_bundle_prefix(bundle)}/operating_points/{ACTIVE}", point_id.encode())
        return point

    def active_id(self, bundle: BundleDigest) -> OperatingPointId | None:
        """Id of the operating point in use; None where none is."""
        name = self._pointer(f"{_bundle_prefix(bundle)}/operating_points/{ACTIVE}")
        return None if name is None else OperatingPointId(name)

    def active_operating_point(self, bundle: BundleDigest) -> OperatingPoint:
        """The operating point in use. Raises UnknownOperatingPoint where none is."""
        point_id = self.active_id(bundle)
        if point_id is None:
            raise UnknownOperatingPoint(
                f"bundle {bundle} has no active operating point: run `retrieval calibrate`, then "
                "`retrieval operating-points activate`"
            )
        return self.operating_point(bundle, point_id)

    # snapshots

    def put_snapshot(self, manifest: SnapshotManifest, index: Index, items: ItemTable) -> SnapshotManifest:
        """Store a snapshot's files, the manifest last; it is not live yet. Returns the manifest with the checksums."""
        prefix = _snapshot_prefix(manifest.catalog, manifest.id)
        files = {}
        with tempfile.TemporaryDirectory() as folder:
            for kind, save in ((INDEX, index.save), (ITEMS, items.save)):
                path = Path(folder) / kind
                save(path)
                checksum = digest_file(path)
                files[f"{checksum}.{kind}"] = checksum
                self.objects.put_file(f"{prefix}/{checksum}.{kind}", path)
        complete = replace(manifest, files=files)
        self.objects.put(f"{prefix}/{MANIFEST}", json_bytes(complete.to_json()))
        return complete

    def has_snapshot(self, catalog: str, snapshot: SnapshotId) -> bool:
        """True where the snapshot is stored completely."""
        return self.objects.exists(f"{_snapshot_prefix(catalog, snapshot)}/{MANIFEST}")

    def snapshot_manifest(self, catalog: str, snapshot: SnapshotId) -> SnapshotManifest:
        """What a snapshot was made from. Raises UnknownSnapshot, CorruptArtifact."""
        key = f"{_snapshot_prefix(catalog, snapshot)}/{MANIFEST}"
        data = self.objects.get(key)
        if data is None:
            raise UnknownSnapshot(f"catalogue {catalog} has no snapshot {snapshot}: see `retrieval snapshots list`")
        return SnapshotManifest.from_json(data, f"{self.url}/{key}")

    def open_snapshot(self, catalog: str, snapshot: SnapshotId) -> Snapshot:
        """A snapshot, its files verified. Raises UnknownSnapshot, CorruptArtifact."""
        manifest = self.snapshot_manifest(catalog, snapshot)
        prefix = _snapshot_prefix(catalog, snapshot)
        return self._verified(prefix, lambda directory: open_snapshot(directory, manifest))

    def snapshots(self, catalog: str) -> list[SnapshotManifest]:
        """All complete snapshots of a catalogue, newest first. Raises UnknownCatalog where there is none."""
        names = self.objects.names(f"catalogs/{_checked(catalog, 'catalogue')}/snapshots")
        ids = [SnapshotId(name) for name in names if self.has_snapshot(catalog, SnapshotId(name))]
        if not ids:
            raise UnknownCatalog(f"catalogue {catalog!r} has no snapshot: make one with `retrieval reindex`")
        return sorted((self.snapshot_manifest(catalog, i) for i in ids), key=lambda m: m.created_at, reverse=True)

    def publish(self, catalog: str, snapshot: SnapshotId) -> None:
        """Make a snapshot live: the one atomic write of a reindex. Raises UnknownSnapshot."""
        self.snapshot_manifest(catalog, snapshot)
        self.objects.put(f"catalogs/{catalog}/{CURRENT}", snapshot.encode())

    def current(self, catalog: str) -> SnapshotId:
        """Id of the live snapshot. Raises UnknownCatalog where none is."""
        name = self._pointer(f"catalogs/{_checked(catalog, 'catalogue')}/{CURRENT}")
        if name is None:
            raise UnknownCatalog(f"catalogue {catalog!r} has no live snapshot: make one with `retrieval reindex`")
        return SnapshotId(name)

    def catalogs(self) -> list[str]:
        """Names of all catalogues with a live snapshot."""
        return [name for name in self.objects.names("catalogs") if self.objects.exists(f"catalogs/{name}/{CURRENT}")]

    # audits

    def put_audit(self, catalog: str, audit_id: str, files: Mapping[str, bytes]) -> None:
        """Store an audit's files, the report last."""
        for name, data in sorted(files.items(), key=lambda file: file[0] == REPORT):
            self.objects.put(f"{_audit_prefix(catalog, audit_id)}/{name}", data)

    def audit(self, catalog: str, audit_id: str) -> dict[str, Any]:
        """An audit's report as plain JSON. Raises UnknownJob, CorruptArtifact."""
        data = self.objects.get(f"{_audit_prefix(catalog, audit_id)}/{REPORT}")
        if data is None:
            raise UnknownJob(f"catalogue {catalog!r} has no audit {audit_id}")
        try:
            report: dict[str, Any] = json.loads(data)
        except ValueError as error:
            raise CorruptArtifact(f"audit {audit_id}: its report cannot be read: {error}") from error
        return report

    def audits(self, catalog: str) -> list[str]:
        """Ids of a catalogue's finished audits."""
        names = self.objects.names(f"catalogs/{_checked(catalog, 'catalogue')}/audits")
        return [name for name in names if self.objects.exists(f"{_audit_prefix(catalog, name)}/{REPORT}")]

    def audit_uri(self, catalog: str, audit_id: str, name: str) -> str:
        """Where a file of an audit lies."""
        return f"{self.url}/{_audit_prefix(catalog, audit_id)}/{name}"

    def _pointer(self, key: str) -> str | None:
        """The name in a pointer; None where there is no pointer. Raises CorruptArtifact where it holds no name."""
        data = self.objects.get(key)
        if data is None:
            return None
        name = data.decode(errors="replace").strip()
        if not _NAME.fullmatch(name):
            raise CorruptArtifact(f"{self.url}/{key}: expected one id, found {data[:80]!r}: publish or activate again")
        return name

    def _verified(self, prefix: str, open_artifact: Callable[[Path], _Artifact]) -> _Artifact:
        """Open an artefact's folder; a damaged cached copy is fetched once more before the store is blamed."""
        try:
            return open_artifact(self.objects.local(prefix))
        except CorruptArtifact:
            if not self.objects.forget(prefix):
                raise
            return open_artifact(self.objects.local(prefix))


def embeddings_key(bundle: BundleDigest, digest: str) -> str:
    """The key of stored embeddings."""
    return f"{_bundle_prefix(bundle)}/embeddings/{digest}.npz"


def check_catalog_name(name: str) -> str:
    """`name`, where it can name a catalogue. Raises InvalidInput."""
    return _checked(name, "catalogue")


def _checked(name: str, what: str) -> str:
    """Names become paths: nothing but letters, digits, - and _ may pass."""
    if not _NAME.fullmatch(name):
        raise InvalidInput(f"{what}: expected 1 to 64 letters, digits, - or _, found {name!r}")
    return name


def _bundle_prefix(digest: BundleDigest) -> str:
    return f"bundles/{_checked(digest, 'bundle digest')}"


def _point_key(bundle: BundleDigest, point_id: OperatingPointId) -> str:
    return f"{_bundle_prefix(bundle)}/operating_points/{_checked(point_id, 'operating point')}.json"


def _snapshot_prefix(catalog: str, snapshot: SnapshotId) -> str:
    return f"catalogs/{_checked(catalog, 'catalogue')}/snapshots/{_checked(snapshot, 'snapshot')}"


def _audit_prefix(catalog: str, audit_id: str) -> str:
    return f"catalogs/{_checked(catalog, 'catalogue')}/audits/{_checked(audit_id, 'audit')}"
