"""Pruning: removes old snapshots and audits of catalogues, and files that nothing needs any more.

Decides what may go. A snapshot stays if it is live, if a rollback made it live or would do so next, if it is among the
newest, if it is young, or if its manifest is damaged, because somebody may repair it. Embeddings stay if a snapshot
that stays was made from them, or while a job runs. What killed processes left goes after a day, if no job runs.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from retrieval.engine.snapshot import SnapshotId, SnapshotManifest
from retrieval.engine.store import Store
from retrieval.errors import InvalidInput, Unavailable, UnknownCatalog

_YOUNG = timedelta(hours=1)  # a snapshot that is newer than the live one may be about to be published
_CACHED = timedelta(days=1)  # how long embeddings are kept that no snapshot ever used: of calibrations and audits
_LEFT_OVER = timedelta(days=1)  # a file that is not finished by then never will be
_ABANDONED = timedelta(days=7)  # a job that has not written for so long does not come back


@dataclass(frozen=True, slots=True, kw_only=True)
class PrunePolicy:
    """Which snapshots and audits of each catalogue stay: the newest ones, and all that are younger than `keep_days`.

    keep: number of snapshots, keep_audits: number of audits, at least 1; 0 keeps all.
    """

    keep: int
    keep_days: float = 0.0
    keep_audits: int = 0

    def __post_init__(self) -> None:
        if self.keep < 0 or self.keep_audits < 0 or not self.keep_days >= 0:
            found = f"{self.keep}, {self.keep_days}, {self.keep_audits}"
            raise InvalidInput(f"prune: expected keep, keep_days and keep_audits of 0 or more, found {found}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Pruned:
    """What was removed, or would be: ids of snapshots and of audits by catalogue, and keys of embeddings.

    left_over: keys of what killed processes left. embeddings_kept_for_jobs: True if jobs at work kept unused
    embeddings. damaged: snapshots by `catalogue/id` whose manifest is damaged, with the reason; while there is one, no
    embeddings are removed, because nobody knows which it needs.
    """

    snapshots: dict[str, tuple[SnapshotId, ...]]
    audits: dict[str, tuple[str, ...]]
    embeddings: tuple[str, ...]
    left_over: tuple[str, ...]
    embeddings_kept_for_jobs: bool
    damaged: dict[str, str]


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

    in_use: snapshots that stay in any case. Raises UnknownCatalog if a named one has no snapshot, and Unavailable if
    the index of one lies in a database that is away: it stays, and all else is removed before.
    """
    snapshots: dict[str, tuple[SnapshotId, ...]] = {}
    audits: dict[str, tuple[str, ...]] = {}
    away: list[Unavailable] = []
    gone: dict[tuple[str, SnapshotId], set[str]] = {}  # two catalogues may have a snapshot with the same id
    for catalog in catalogs or store.catalogs():
        manifests = store.snapshots(catalog).readable
        kept = _kept(store, catalog, manifests, policy, now) | set(in_use)
        for manifest in manifests:
            if manifest.id in kept or manifest.id == _live(store, catalog):  # somebody may just have gone back to it
                continue
            if dry_run or _deleted(store, manifest, away):
                gone[catalog, manifest.id] = set(manifest.shards)
                snapshots[catalog] = (*snapshots.get(catalog, ()), manifest.id)
        if old := _old_audits(store, catalog, policy, now):
            audits[catalog] = old
            for audit_id in () if dry_run else old:
                store.delete_audit(catalog, audit_id)
    left_over = _left_over(store, now)
    for key in () if dry_run else left_over:
        store.objects.delete(key)
    unused, damaged = _unused_embeddings(store, gone, now)
    at_work = set(store.jobs_at_work()) - {key.split("/")[-1] for key in left_over}  # they may use any embeddings
    embeddings = unused if not at_work else ()
    if not dry_run:
        embeddings = tuple(key for key in embeddings if store.delete_embeddings(key))
    if away:
        raise away[0]
    return Pruned(
        snapshots=snapshots,
        audits=audits,
        embeddings=embeddings,
        left_over=left_over,
        embeddings_kept_for_jobs=len(embeddings) < len(unused),
        damaged=damaged,
    )


def _deleted(store: Store, manifest: SnapshotManifest, away: list[Unavailable]) -> bool:
    """Remove a snapshot; return whether it is gone. Adds the error if its database is away."""
    try:
        return store.delete_snapshot(manifest.catalog, manifest.id)
    except Unavailable as error:
        away.append(error)
        return False


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


def _old_audits(store: Store, catalog: str, policy: PrunePolicy, now: datetime) -> tuple[str, ...]:
    """Return the finished audits of a catalogue that go, newest first."""
    if policy.keep_audits == 0:
        return ()
    written = {audit_id: store.audit_written(catalog, audit_id) for audit_id in store.audits(catalog)}
    newest_first = sorted(written, key=lambda audit_id: (written[audit_id], audit_id), reverse=True)
    limit = now - timedelta(days=policy.keep_days)
    return tuple(audit_id for audit_id in newest_first[policy.keep_audits :] if written[audit_id] <= limit)


def _left_over(store: Store, now: datetime) -> tuple[str, ...]:
    """Return what killed processes left: temporary files, working files, and, if no job runs, unfinished artefacts."""
    abandoned = store.abandoned_jobs(now - _ABANDONED)
    at_work = len(store.jobs_at_work()) > len(abandoned)
    unfinished = [] if at_work else store.unfinished(now - _LEFT_OVER)
    temporary = store.objects.left_over(now - _LEFT_OVER)
    folders = (*abandoned, *unfinished)
    return (*folders, *(key for key in temporary if not key.startswith(tuple(f"{folder}/" for folder in folders))))


def _unused_embeddings(
    store: Store, gone: Mapping[tuple[str, SnapshotId], set[str]], now: datetime
) -> tuple[tuple[str, ...], dict[str, str]]:
    """Return the embeddings of removed snapshots that no other one uses, and old ones that no snapshot uses.

    gone: the keys of the embeddings of each removed snapshot. Also returns the damaged snapshots, with the reasons: if
    there is one, no embeddings are unused.
    """
    used: set[str] = set()
    damaged: dict[str, str] = {}
    for catalog in store.catalogs():
        found = store.snapshots(catalog)
        damaged |= {f"{catalog}/{name}": problem for name, problem in found.damaged.items()}
        used.update(key for m in found.readable if (catalog, m.id) not in gone for key in m.shards)
    if damaged:
        return (), damaged
    was_used = {key for keys in gone.values() for key in keys}
    unused = (
        key
        for bundle in store.bundles()
        for key in store.embedding_keys(bundle)
        if key not in used and (key in was_used or now - store.objects.modified(key) >= _CACHED)
    )
    return tuple(unused), damaged


def _live(store: Store, catalog: str) -> SnapshotId | None:
    try:
        return store.current(catalog)
    except UnknownCatalog:
        return None
