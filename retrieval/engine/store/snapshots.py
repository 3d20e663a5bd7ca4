"""Snapshots of catalogues in the store, and the pointer to the live one of each catalogue."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

from retrieval.contract.canonical import digest_file, json_bytes
from retrieval.contract.score import GalleryClasses
from retrieval.engine.class_table import save_classes
from retrieval.engine.index.index import Index
from retrieval.engine.items import ItemTable
from retrieval.engine.snapshot import (
    CLASSES,
    INDEX,
    ITEMS,
    MANIFEST,
    Snapshot,
    SnapshotId,
    SnapshotManifest,
    open_snapshot,
)
from retrieval.engine.store.calls import is_full
from retrieval.engine.store.databases import publish_in_database
from retrieval.engine.store.listed import Listed, listed
from retrieval.engine.store.objects import Objects, checked_name
from retrieval.engine.workspace import workspace
from retrieval.errors import CorruptArtifact, OutOfSpace, UnknownCatalog, UnknownSnapshot

CURRENT = "CURRENT"


class Snapshots:
    """The part of the store that holds snapshots."""

    objects: Objects

    def put_snapshot(
        self, manifest: SnapshotManifest, index: Index, items: ItemTable, classes: GalleryClasses | None = None
    ) -> SnapshotManifest:
        """Store a snapshot without publishing it, the manifest last; return the manifest with the checksums.

        classes: only if the score uses the labels. Raises OutOfSpace, also if the folder for temporary files is full.
        """
        prefix = _snapshot_prefix(manifest.catalog, manifest.id)
        files = {}
        parts: list[tuple[str, Callable[[Path], None]]] = [(INDEX, index.save), (ITEMS, items.save)]
        if classes is not None:
            parts.append((CLASSES, partial(save_classes, classes)))
        with workspace() as folder:
            for kind, save in parts:
                path = folder / kind
                try:
                    save(path)
                except OSError as error:
                    if is_full(error):
                        raise OutOfSpace(f"disk full: cannot write the {kind} of a snapshot: {error}") from error
                    raise
                checksum = digest_file(path)
                files[f"{checksum}.{kind}"] = checksum
                self.objects.put_file(f"{prefix}/{checksum}.{kind}", path)
        complete = replace(manifest, files=files)
        self.objects.put(f"{prefix}/{MANIFEST}", json_bytes(complete.to_json()))
        return complete

    def has_snapshot(self, catalog: str, snapshot: SnapshotId) -> bool:
        """Return True if the snapshot is stored completely."""
        return self.objects.exists(f"{_snapshot_prefix(catalog, snapshot)}/{MANIFEST}")

    def snapshot_manifest(self, catalog: str, snapshot: SnapshotId) -> SnapshotManifest:
        """Read the manifest of a snapshot. Raises UnknownSnapshot, CorruptArtifact."""
        key = f"{_snapshot_prefix(catalog, snapshot)}/{MANIFEST}"
        data = self.objects.get(key)
        if data is None:
            raise UnknownSnapshot(f"catalogue {catalog} has no snapshot {snapshot}: see `retrieval snapshots list`")
        where = f"{self.objects.url}/{key}"
        manifest = SnapshotManifest.from_json(data, where)
        if (manifest.catalog, manifest.id) != (catalog, snapshot):
            raise CorruptArtifact(
                f"{where} is the manifest of snapshot {manifest.id} of catalogue {manifest.catalog}: it was copied or "
                "moved; reindex the catalogue"
            )
        return manifest

    def open_snapshot(self, catalog: str, snapshot: SnapshotId, *, device: str = "cpu") -> Snapshot:
        """Open and verify a snapshot, see `engine/snapshot.py`. Raises UnknownSnapshot too."""
        manifest = self.snapshot_manifest(catalog, snapshot)
        return self.objects.opened(
            _snapshot_prefix(catalog, snapshot), lambda path: open_snapshot(path, manifest, device=device)
        )

    def snapshot_ids(self, catalog: str) -> list[SnapshotId]:
        """Return the ids of all complete snapshots of a catalogue. Raises UnknownCatalog if there is none."""
        names = self.objects.artefacts(f"{_catalog_prefix(catalog)}/snapshots")
        ids = [SnapshotId(name) for name in names if self.has_snapshot(catalog, SnapshotId(name))]
        if not ids:
            raise UnknownCatalog(f"catalogue {catalog!r} has no snapshot: make one with `retrieval reindex`")
        return ids

    def snapshots(self, catalog: str) -> Listed[SnapshotManifest]:
        """Return all complete snapshots of a catalogue, newest first. Raises UnknownCatalog if there is none."""
        return listed(self.snapshot_ids(catalog), lambda snapshot: self.snapshot_manifest(catalog, snapshot))

    def publish(self, catalog: str, snapshot: SnapshotId) -> None:
        """Make a snapshot live: the one atomic write of a reindex. A database with its index follows.

        Raises UnknownSnapshot, also if it is pruned meanwhile (see `delete_snapshot`): what was live is live again.
        Raises Unavailable if the database is; the snapshot is live then, and publishing it again is enough.
        """
        manifest = self.snapshot_manifest(catalog, snapshot)
        before = self.objects.get(_current_key(catalog))
        self.objects.put(_current_key(catalog), snapshot.encode())
        if not self.has_snapshot(catalog, snapshot):
            if before is None:
                self.objects.delete(_current_key(catalog))
            else:
                self.objects.put(_current_key(catalog), before)
            raise UnknownSnapshot(f"catalogue {catalog}: snapshot {snapshot} was pruned meanwhile: reindex")
        while publish_in_database(self.objects, _snapshot_prefix(catalog, snapshot), manifest):
            if (live := self.current(catalog)) == snapshot:
                return
            snapshot, manifest = live, self.snapshot_manifest(catalog, live)  # somebody published another one meanwhile

    def current(self, catalog: str) -> SnapshotId:
        """Return the id of the live snapshot. Raises UnknownCatalog if there is none."""
        name = self.objects.pointer(_current_key(catalog))
        if name is None:
            raise UnknownCatalog(f"catalogue {catalog!r} has no live snapshot: make one with `retrieval reindex`")
        return SnapshotId(name)

    def catalogs(self) -> list[str]:
        """Return the names of all catalogues with a live snapshot."""
        names = self.objects.artefacts("catalogs")  # other folders may be among them
        return [name for name in names if self.objects.exists(f"catalogs/{name}/{CURRENT}")]


def check_catalog_name(name: str) -> str:
    """Return `name` if it can name a catalogue. Raises InvalidInput otherwise."""
    return checked_name(name, "catalogue")


def _catalog_prefix(catalog: str) -> str:
    return f"catalogs/{check_catalog_name(catalog)}"


def _current_key(catalog: str) -> str:
    return f"{_catalog_prefix(catalog)}/{CURRENT}"


def _snapshot_prefix(catalog: str, snapshot: SnapshotId) -> str:
    return f"{_catalog_prefix(catalog)}/snapshots/{checked_name(snapshot, 'snapshot')}"
