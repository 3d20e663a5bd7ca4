"""Pruning: removes old snapshots of catalogues, and embeddings that no snapshot needs any more.

Decides what may go. A snapshot stays if it is live, if a rollback made it live or would do so next, if it is among the
newest, or if it is young. Embeddings stay if a snapshot that stays was made from them, or while a job runs.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from retrieval.engine.snapshot import SnapshotId, SnapshotManifest
from retrieval.engine.store import Store
from retrieval.errors import InvalidInput, UnknownCatalog

_YOUNG = timedelta(hours=1)  # a snapshot that is newer than the live one may be about to be published
_CACHED = timedelta(days=1)  # how long embeddings are kept that no snapshot ever used: of calibrations and audits


@dataclass(frozen=True, slots=True, kw_only=True)
class PrunePolicy:
    """Which snapshots of each catalogue stay: the newest `keep`, and all that are younger than `keep_days`.

    `keep`: at least 1; 0 keeps all.
    """

    keep: int
    keep_days: float = 0.0

    def __post_init__(self) -> None:
        if self.keep < 0 or not self.keep_days >= 0:
            raise InvalidInput(f"prune: expected keep and keep_days of 0 or more, found {self.keep}, {self.keep_days}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Pruned:
    """What was removed, or would be: ids of snapshots by catalogue, and keys of embeddings.

    `embeddings_kept_for_jobs`: True if jobs at work kept unused embeddings.
    """

    snapshots: dict[str, tuple[SnapshotId, ...]]
    embeddings: tuple[str, ...]
    embeddings_kept_for_jobs: bool


def prune(
    store: Store,
    policy: PrunePolicy,
    *,
    now: datetime,
    catalogs: Sequence[str] = (),
    in_use: Sequence[SnapshotId] = (),
    dry_run: bool = False,
) -> Pruned:
    """Remove what the policy does not keep, from some catalogues or from all; with `dry_run` only return it.

    in_use: snapshots that stay in any case. Raises UnknownCatalog if a named one has no snapshot.
    """
    going: dict[str, tuple[SnapshotId, ...]] = {}
    gone: dict[tuple[str, SnapshotId], set[str]] = {}  # two catalogues may have a snapshot with the same id
    for catalog in catalogs or store.catalogs():
        manifests = store.snapshots(catalog)
        kept = _kept(store, catalog, manifests, policy, now) | set(in_use)
        for manifest in manifests:
            if manifest.id in kept or manifest.id == _live(store, catalog):  # somebody may just have gone back to it
                continue
            if not dry_run:
                store.delete_snapshot(catalog, manifest.id)
            gone[catalog, manifest.id] = set(manifest.shards)
            going[catalog] = (*going.get(catalog, ()), manifest.id)
    unused = _unused_embeddings(store, gone, now)
    at_work = bool(store.objects.names("staging"))  # a job may use embeddings that no snapshot names yet
    if not dry_run and not at_work:
        for key in unused:
            store.objects.delete(key)
    return Pruned(
        snapshots=going, embeddings=() if at_work else unused, embeddings_kept_for_jobs=at_work and bool(unused)
    )


def _kept(
    store: Store, catalog: str, newest_first: Sequence[SnapshotManifest], policy: PrunePolicy, now: datetime
) -> set[SnapshotId]:
    """Return the snapshots of a catalogue that stay."""
    if policy.keep == 0:
        return {manifest.id for manifest in newest_first}
    live = _live(store, catalog)
    kept = {manifest.id for manifest in newest_first[: policy.keep]}
    kept |= {name for name in (live, store.rolled_back_to(catalog)) if name is not None}
    live_at = next((manifest.created_at for manifest in newest_first if manifest.id == live), "")
    older = [manifest.id for manifest in newest_first if manifest.created_at < live_at]
    kept |= set(older[:1])  # the next rollback goes there
    for manifest in newest_first:
        age = now - datetime.fromisoformat(manifest.created_at)
        if age < timedelta(days=policy.keep_days) or (manifest.created_at > live_at and age < _YOUNG):
            kept.add(manifest.id)
    return kept


def _unused_embeddings(store: Store, gone: Mapping[tuple[str, SnapshotId], set[str]], now: datetime) -> tuple[str, ...]:
    """Return the embeddings of removed snapshots that no other one uses, and old ones that no snapshot uses.

    gone: the keys of the embeddings of each removed snapshot.
    """
    used: set[str] = set()
    for catalog in store.catalogs():
        for snapshot in store.snapshot_ids(catalog):
            if (catalog, snapshot) not in gone:
                used.update(store.snapshot_manifest(catalog, snapshot).shards)
    was_used = {key for keys in gone.values() for key in keys}
    return tuple(
        key
        for bundle in store.bundles()
        for key in store.embedding_keys(bundle)
        if key not in used and (key in was_used or now - store.objects.modified(key) >= _CACHED)
    )


def _live(store: Store, catalog: str) -> SnapshotId | None:
    try:
        return store.current(catalog)
    except UnknownCatalog:
        return None
