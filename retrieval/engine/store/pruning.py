"""What pruning needs of the store: what is unfinished or unused, how to remove it, and the mark of a rollback."""

from datetime import datetime

from retrieval.contract.bundle import BundleDigest
from retrieval.engine.snapshot import MANIFEST, SnapshotId, SnapshotManifest
from retrieval.engine.store.audits import REPORT
from retrieval.engine.store.bundles import bundle_prefix
from retrieval.engine.store.databases import remove_from_database
from retrieval.engine.store.objects import Objects, checked_name
from retrieval.engine.store.snapshots import CURRENT

_STAGING = "staging"


class Pruning:
    """The part of the store that removes what is not needed any more."""

    objects: Objects

    def delete_snapshot(self, catalog: str, snapshot: SnapshotId) -> bool:
        """Remove a snapshot, its manifest first; return False if it went live meanwhile, and stays.

        A kill leaves no snapshot that lacks files. `publish` checks the manifest after it has written the pointer, this
        checks the pointer after it has removed the manifest: one of them sees the other. Raises Unavailable if the
        index lies in a database that is: the snapshot stays then.
        """
        folder = f"{_catalog(catalog)}/snapshots/{checked_name(snapshot, 'snapshot')}"
        manifest = self.objects.get(f"{folder}/{MANIFEST}")
        described = manifest and SnapshotManifest.from_json(manifest, f"{self.objects.url}/{folder}/{MANIFEST}")
        self.objects.delete(f"{folder}/{MANIFEST}")
        if manifest is not None and self.objects.pointer(f"{_catalog(catalog)}/{CURRENT}") == snapshot:
            self.objects.put(f"{folder}/{MANIFEST}", manifest)
            return False
        if manifest and described:
            try:
                remove_from_database(self.objects, folder, described)
            except BaseException:  # the manifest names the collection: without it nobody would find that again
                self.objects.put(f"{folder}/{MANIFEST}", manifest)
                raise
        self.objects.delete(folder)
        self.objects.forget(folder)
        return True

    def delete_embeddings(self, key: str) -> bool:
        """Remove stored embeddings; return False if a job began meanwhile, which may use them: then they stay."""
        data = self.objects.get(key)
        self.objects.delete(key)
        if data is not None and self.jobs_at_work():
            self.objects.put(key, data)
            return False
        return True

    def jobs_at_work(self) -> list[str]:
        """Return the ids of the jobs that have working files."""
        return self.objects.names(_STAGING)

    def abandoned_jobs(self, before: datetime) -> list[str]:
        """Return the keys of working files of jobs that wrote nothing since a time."""
        keys = (f"{_STAGING}/{job}" for job in self.jobs_at_work())
        return [key for key in keys if self.objects.last_written(key) < before]

    def unfinished(self, before: datetime) -> list[str]:
        """Return the keys of snapshots and audits that were begun before a time and never finished."""
        found = []
        for catalog in self.objects.names("catalogs"):
            for kind, marker in (("snapshots", MANIFEST), ("audits", REPORT)):
                folder = f"catalogs/{catalog}/{kind}"
                for name in self.objects.names(folder):
                    key = f"{folder}/{name}"
                    if not self.objects.exists(f"{key}/{marker}") and self.objects.last_written(key) < before:
                        found.append(key)
        return found

    def mark_rolled_back(self, catalog: str, snapshot: SnapshotId) -> None:
        """Remember that somebody went back to this snapshot: it is kept, also when a newer one goes live."""
        self.objects.put(f"{_catalog(catalog)}/ROLLED_BACK_TO", snapshot.encode())

    def rolled_back_to(self, catalog: str) -> SnapshotId | None:
        """Return the snapshot of the last rollback; None if there was none."""
        name = self.objects.pointer(f"{_catalog(catalog)}/ROLLED_BACK_TO")
        return None if name is None else SnapshotId(name)

    def embedding_keys(self, bundle: BundleDigest) -> list[str]:
        """Return the keys of all stored embeddings of a bundle."""
        folder = f"{bundle_prefix(bundle)}/embeddings"
        return [f"{folder}/{name}" for name in self.objects.names(folder) if name.endswith(".npz")]


def _catalog(catalog: str) -> str:
    return f"catalogs/{checked_name(catalog, 'catalogue')}"
