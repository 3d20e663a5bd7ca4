"""Pruning: what goes, and what stays whatever the policy."""

from __future__ import annotations

from concurrent.futures import Executor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from retrieval.engine.encoder import Encoder
from retrieval.engine.snapshot import SnapshotId
from retrieval.engine.store import Store
from retrieval.errors import InvalidInput, UnknownCatalog
from retrieval.flows.prune import PrunePolicy, prune
from retrieval.flows.reindex import ReindexRequest, roll_back
from tests.pictures import write_class_folders
from tests.stores import reindex

NOW = datetime(2026, 6, 30, tzinfo=UTC)


@pytest.fixture
def snapshots(calibrated: Store, tiny_encoder: Encoder, pool: Executor, tmp_path: Path) -> list[SnapshotId]:
    """Six snapshots of `shop`, made a day after each other, the last of them a day ago; oldest first."""
    made = []
    for number in range(6):
        folder = write_class_folders(tmp_path / f"images{number}", n_classes=2 + number, n_images=1)
        request = ReindexRequest(catalog="shop", manifest_uri=str(folder))
        at = (NOW - timedelta(days=6 - number)).isoformat()
        made.append(reindex(calibrated, tiny_encoder, pool, request, job_id=f"job{number}", created_at=at))
    assert len(set(made)) == 6
    return made


def stored(store: Store) -> set[SnapshotId]:
    return set(store.snapshot_ids("shop"))


def n_embeddings(store: Store) -> int:
    return len(store.embedding_keys(store.only_bundle()))


def test_the_newest_stay_with_their_embeddings(calibrated: Store, snapshots: list[SnapshotId]) -> None:
    """A dry run names the same and removes nothing; the live one still opens; a second run finds nothing."""
    policy = PrunePolicy(keep=2)
    would = prune(calibrated, policy, now=NOW, dry_run=True)
    assert stored(calibrated) == set(snapshots)
    assert n_embeddings(calibrated) == 6
    done = prune(calibrated, policy, now=NOW)
    assert done == would
    assert set(done.snapshots["shop"]) == set(snapshots[:4])
    assert stored(calibrated) == set(snapshots[4:])
    assert n_embeddings(calibrated) == 2
    assert calibrated.objects.names("catalogs/shop/snapshots") == sorted(snapshots[4:])
    assert len(calibrated.open_snapshot("shop", calibrated.current("shop")).items) == 7
    again = prune(calibrated, policy, now=NOW)
    assert (again.snapshots, again.embeddings) == ({}, ())


@pytest.mark.parametrize(("keep", "keep_days", "n_kept"), [(0, 0, 6), (1, 0, 2), (1, 3.5, 3), (3, 1.5, 3), (9, 0, 6)])
def test_number_and_days(
    calibrated: Store, snapshots: list[SnapshotId], keep: int, keep_days: float, n_kept: int
) -> None:
    """A snapshot stays if either keeps it; one more than the live one stays always, so that a rollback is possible."""
    prune(calibrated, PrunePolicy(keep=keep, keep_days=keep_days), now=NOW)
    assert stored(calibrated) == set(snapshots[6 - n_kept :])


def test_live_rolled_back_to_and_used_snapshots_stay(calibrated: Store, snapshots: list[SnapshotId]) -> None:
    """After a rollback: the live one, the one that the next rollback takes, the newest, and what the caller uses."""
    roll_back(calibrated, "shop", snapshots[2])
    prune(calibrated, PrunePolicy(keep=1), now=NOW, in_use=[snapshots[0]])
    assert stored(calibrated) == {snapshots[index] for index in (0, 1, 2, 5)}
    calibrated.publish("shop", snapshots[5])
    prune(calibrated, PrunePolicy(keep=1), now=NOW)
    assert stored(calibrated) == {snapshots[2], snapshots[5]}, "somebody went back to it: it is known to be good"


def test_what_another_catalogue_or_a_job_uses_stays(calibrated: Store, snapshots: list[SnapshotId]) -> None:
    """Two catalogues of the same images share embeddings and even the id of their snapshot."""
    for name in calibrated.objects.names(f"catalogs/shop/snapshots/{snapshots[0]}"):
        data = calibrated.objects.get(f"catalogs/shop/snapshots/{snapshots[0]}/{name}")
        assert data is not None
        calibrated.objects.put(f"catalogs/twin/snapshots/{snapshots[0]}/{name}", data.replace(b'"shop"', b'"twin"'))
    calibrated.publish("twin", snapshots[0])
    calibrated.objects.put("staging/job/plan.json", b"{}")
    pruned = prune(calibrated, PrunePolicy(keep=1), now=NOW, catalogs=["shop"])
    assert pruned.embeddings_kept_for_jobs
    assert n_embeddings(calibrated) == 6
    calibrated.objects.delete("staging/job")
    later = datetime.now(UTC) + timedelta(days=2)
    prune(calibrated, PrunePolicy(keep=1), now=later, catalogs=["shop"])
    assert n_embeddings(calibrated) == 3
    (key,) = calibrated.snapshot_manifest("twin", snapshots[0]).shards
    assert len(calibrated.embeddings(key)) == 2


def test_a_snapshot_that_is_about_to_be_published_stays(calibrated: Store, snapshots: list[SnapshotId]) -> None:
    """Another worker has built it and not made it live yet."""
    calibrated.publish("shop", snapshots[0])
    prune(calibrated, PrunePolicy(keep=1), now=NOW - timedelta(days=2) + timedelta(minutes=30))
    assert snapshots[4] in stored(calibrated)


def test_wrong_policies_and_catalogues_are_refused(calibrated: Store) -> None:
    with pytest.raises(InvalidInput, match="expected keep, keep_days and keep_audits of 0 or more, found -1, 0"):
        PrunePolicy(keep=-1, keep_days=0)
    with pytest.raises(InvalidInput, match="found 1, nan, 0"):
        PrunePolicy(keep=1, keep_days=float("nan"))
    with pytest.raises(UnknownCatalog, match="nothing"):
        prune(calibrated, PrunePolicy(keep=1), now=NOW, catalogs=["nothing"])
