"""What pruning needs of the store: removing snapshots, listing embeddings, and the mark of a rollback."""

from retrieval.contract.bundle import BundleDigest
from retrieval.engine.snapshot import MANIFEST, SnapshotId
from retrieval.engine.store.bundles import bundle_prefix
from retrieval.engine.store.objects import Objects, checked_name


class Pruning:
    """The part of the store that removes what is not needed any more."""

    objects: Objects

    def delete_snapshot(self, catalog: str, snapshot: SnapshotId) -> None:
        """Remove a snapshot, its manifest first: a kill leaves no snapshot that lacks files."""
        folder = f"{_catalog(catalog)}/snapshots/{checked_name(snapshot, 'snapshot')}"
        self.objects.delete(f"{folder}/{MANIFEST}")
        self.objects.delete(folder)
        self.objects.forget(folder)

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
