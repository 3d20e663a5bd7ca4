"""The part of a snapshot that lies in a database: it is published and removed together with the snapshot.

The store decides what is live; a database only follows, so that others find there what is live by its name.
"""

import contextlib

from retrieval.engine.index.open import lies_in_database, publish_index, remove_index
from retrieval.engine.index.spec import IndexSpec
from retrieval.engine.snapshot import INDEX, SnapshotManifest
from retrieval.engine.store.objects import Objects
from retrieval.errors import CorruptArtifact


def publish_in_database(objects: Objects, folder: str, manifest: SnapshotManifest) -> bool:
    """Make the index of the snapshot in a folder the one that its database names; return False if it lies in none.

    Raises Unavailable.
    """
    spec = IndexSpec.parse(manifest.index_spec)
    if not lies_in_database(spec):
        return False
    (pointer,) = (name for name in manifest.files if name.endswith(INDEX))
    publish_index(objects.local(f"{folder}/{pointer}"), spec)
    return True


def remove_from_database(objects: Objects, folder: str, manifest: SnapshotManifest) -> None:
    """Remove all indexes whose pointers are in the folder of a snapshot: two workers may have built it at once.

    A pointer that is damaged is passed over: nobody can tell what it named. Raises Unavailable.
    """
    spec = IndexSpec.parse(manifest.index_spec)
    if not lies_in_database(spec):
        return
    for name in objects.names(folder):
        if name.endswith(INDEX):
            with contextlib.suppress(CorruptArtifact):
                remove_index(objects.local(f"{folder}/{name}"), spec)
