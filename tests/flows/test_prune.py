"""Pruning: what goes, and what stays whatever the policy."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import uuid
from collections.abc import Callable
from concurrent.futures import Executor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from retrieval.contract.limits import DEFAULT_LIMITS
from retrieval.contract.manifest import read_manifest
from retrieval.engine.embedding import embed_items
from retrieval.engine.encoder import Encoder
from retrieval.engine.snapshot import SnapshotId
from retrieval.engine.store import Store
from retrieval.engine.store.objects import Objects
from retrieval.errors import InvalidInput, UnknownCatalog, UnknownSnapshot
from retrieval.flows.prune import PrunePolicy, prune
from retrieval.flows.reindex import ReindexRequest, roll_back
from retrieval.flows.search import Searcher
from tests.pictures import write_class_folders
from tests.stores import embedder_of, reindex

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


def age(path: Path, days: float) -> None:
    """Let a file, or the files of a folder, be so old."""
    at = (datetime.now(UTC) - timedelta(days=days)).timestamp()
    for file in [path, *path.rglob("*")]:
        os.utime(file, (at, at))


def root_of(store: Store) -> Path:
    return Path(store.url.removeprefix("file://"))


def test_what_killed_processes_left_goes(calibrated: Store, snapshots: list[SnapshotId]) -> None:
    """Half a snapshot, half an audit, temporary files, working files of a job that never came back; not the young."""
    root, now = root_of(calibrated), datetime.now(UTC)
    old = ["catalogs/shop/snapshots/half", "catalogs/new/snapshots/first", "catalogs/shop/audits/half"]
    young = ["catalogs/shop/snapshots/younger", "catalogs/shop/audits/younger"]
    for folder in (*old, *young):
        calibrated.objects.put(f"{folder}/index.bin", b"1")
    temporary = [f"bundles/.{uuid.uuid4().hex}", f"catalogs/shop/.{uuid.uuid4().hex}"]
    for name in temporary:
        (root / name).write_bytes(b"half")
    calibrated.objects.put("staging/dead/plan.json", b"{}")
    age(root / "staging/dead", 8)
    for name in (*old, temporary[0]):
        age(root / name, 2)
    would = prune(calibrated, PrunePolicy(keep=0), now=now, dry_run=True)
    done = prune(calibrated, PrunePolicy(keep=0), now=now)
    assert done == would
    assert set(done.left_over) == {*old, temporary[0], "staging/dead"}
    for name in (*old, temporary[0], "staging/dead"):
        assert not (root / name).exists()
    for name in (*young, temporary[1]):
        assert (root / name).exists()
    assert stored(calibrated) == set(snapshots)


def test_nothing_unfinished_goes_while_a_job_runs(calibrated: Store, snapshots: list[SnapshotId]) -> None:
    """It may be the job's own."""
    calibrated.objects.put("catalogs/shop/snapshots/half/index.bin", b"1")
    age(root_of(calibrated) / "catalogs/shop/snapshots/half", 2)
    calibrated.objects.put("staging/job/plan.json", b"{}")
    assert prune(calibrated, PrunePolicy(keep=0), now=datetime.now(UTC)).left_over == ()


def test_old_audits_go_by_number_and_days(calibrated: Store, snapshots: list[SnapshotId]) -> None:
    for number in range(5):
        calibrated.put_audit("shop", f"a{number}", {"report.json": b"{}", "report.html": b""})
        age(root_of(calibrated) / "catalogs/shop/audits" / f"a{number}", 10 - number)
    now = datetime.now(UTC)
    assert prune(calibrated, PrunePolicy(keep=0), now=now).audits == {}
    assert prune(calibrated, PrunePolicy(keep=0, keep_audits=1, keep_days=8.5), now=now).audits == {
        "shop": ("a1", "a0")
    }
    assert calibrated.audits("shop") == ["a2", "a3", "a4"]
    would = prune(calibrated, PrunePolicy(keep=0, keep_audits=2), now=now, dry_run=True)
    assert would.audits == {"shop": ("a2",)} == prune(calibrated, PrunePolicy(keep=0, keep_audits=2), now=now).audits
    assert calibrated.objects.names("catalogs/shop/audits") == ["a3", "a4"]


def test_a_damaged_manifest_stops_nothing_and_keeps_all_embeddings(
    calibrated: Store, snapshots: list[SnapshotId]
) -> None:
    """Nobody knows which embeddings it needs; the other old snapshots go."""
    key = f"catalogs/shop/snapshots/{snapshots[1]}/manifest.json"
    calibrated.objects.put(key, b"{")
    done = prune(calibrated, PrunePolicy(keep=1), now=NOW)
    assert set(done.snapshots["shop"]) == {snapshots[index] for index in (0, 2, 3)}
    assert list(done.damaged) == [f"shop/{snapshots[1]}"]
    assert stored(calibrated) == {snapshots[index] for index in (1, 4, 5)}
    assert n_embeddings(calibrated) == 6


class Racing(Objects):
    """Objects of a process beside which another one acts, just after a key was removed."""

    def __init__(self, url: str, key: str, act: Callable[[], object]) -> None:
        super().__init__(url)
        self._key, self._act = key, act

    def delete(self, prefix: str) -> None:
        super().delete(prefix)
        if prefix == self._key:
            self._act()


def test_what_goes_live_while_it_is_pruned_stays(calibrated: Store, snapshots: list[SnapshotId]) -> None:
    """Whichever process is first: the pointer never names a snapshot that is gone."""
    pruning, folder = Store(calibrated.url), f"catalogs/shop/snapshots/{snapshots[0]}"
    pointer = root_of(calibrated) / "catalogs/shop/CURRENT"

    pruning.objects = Racing(
        calibrated.url, f"{folder}/manifest.json", lambda: pointer.write_text(snapshots[0])
    )  # the other had read the manifest before
    assert not pruning.delete_snapshot("shop", snapshots[0])
    assert len(calibrated.open_snapshot("shop", calibrated.current("shop")).items) == 2

    calibrated.publish("shop", snapshots[5])
    publishing = Store(calibrated.url)
    put = publishing.objects.put

    def put_while_it_is_pruned(key: str, data: bytes) -> None:
        Store(calibrated.url).delete_snapshot("shop", snapshots[1])
        put(key, data)

    publishing.objects.put = put_while_it_is_pruned  # type: ignore[method-assign]
    with pytest.raises(UnknownSnapshot, match="was pruned meanwhile"):
        publishing.publish("shop", snapshots[1])
    assert calibrated.current("shop") == snapshots[5]


def test_embeddings_that_a_job_may_use_come_back(calibrated: Store, snapshots: list[SnapshotId]) -> None:
    (key,) = calibrated.snapshot_manifest("shop", snapshots[0]).shards
    pruning = Store(calibrated.url)
    pruning.objects = Racing(calibrated.url, key, lambda: calibrated.objects.put("staging/job/plan.json", b"{}"))
    done = prune(pruning, PrunePolicy(keep=1), now=NOW)
    assert key not in done.embeddings
    assert len(calibrated.embeddings(key)) == 2


def test_a_calibration_beside_a_prune_embeds_again(
    calibrated: Store, tiny_encoder: Encoder, pool: Executor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its embeddings belong to no snapshot: a prune may take them before they are read back."""
    folder = write_class_folders(tmp_path / "images", n_classes=3, n_images=2)
    bundle, read, taken = calibrated.only_bundle(), calibrated.embeddings, []

    def pruned_once(key: str) -> object:
        if not taken and calibrated.objects.exists(key):
            taken.append(key)
            calibrated.objects.delete(key)
        return read(key)

    monkeypatch.setattr(calibrated, "embeddings", pruned_once)
    items = read_manifest(str(folder))
    embedded = embed_items(calibrated, embedder_of(tiny_encoder, pool), bundle, items, progress=lambda *_: None)
    assert taken
    assert embedded.embeddings.shape[0] == 6


def test_a_search_server_beside_a_prune_opens_what_is_live_now(
    calibrated: Store, snapshots: list[SnapshotId], tiny_encoder: Encoder
) -> None:
    """It read the pointer, then another snapshot went live and the old one was pruned."""
    reading = Store(calibrated.url)
    calibrated.publish("shop", snapshots[0])
    manifest_of = reading.snapshot_manifest

    def late(catalog: str, snapshot: SnapshotId) -> object:
        if snapshot == snapshots[0]:
            calibrated.publish("shop", snapshots[5])
            calibrated.delete_snapshot("shop", snapshots[0])
        return manifest_of(catalog, snapshot)

    reading.snapshot_manifest = late  # type: ignore[assignment,method-assign]
    searcher = Searcher(
        reading, open_encoder=lambda _: tiny_encoder, limits=DEFAULT_LIMITS, max_waiting=9, threads=1, catalogs=["shop"]
    )
    (change,) = searcher.refresh()
    assert change.live is not None
    assert change.live.snapshot.manifest.id == snapshots[5]


ACTS = st.lists(
    st.tuples(st.sampled_from(["publish", "roll back", "back to", "audit", "half", "prune"]), st.integers(0, 5)),
    max_size=12,
)


@pytest.mark.slow
@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(acts=ACTS, policy=st.tuples(st.integers(0, 3), st.sampled_from([0.0, 2.5]), st.integers(0, 2)))
def test_no_sequence_loses_what_is_needed(
    acts: list[tuple[str, int]], policy: tuple[int, float, int], calibrated: Store, snapshots: list[SnapshotId]
) -> None:
    """Publish, roll back, audit, die and prune in any order: what is live opens, with its embeddings, and so does the
    next rollback; a dry run names what goes; a second prune finds nothing."""
    with tempfile.TemporaryDirectory() as folder:
        shutil.copytree(root_of(calibrated), Path(folder) / "store")
        store = Store((Path(folder) / "store").as_uri())
        for number, (act, index) in enumerate([*acts, ("prune", 0)]):
            known = store.snapshot_ids("shop")
            chosen = known[index % len(known)]
            if act == "publish":
                store.publish("shop", chosen)
            elif act == "back to":
                roll_back(store, "shop", chosen)
            elif act == "roll back":
                with contextlib.suppress(UnknownSnapshot):
                    roll_back(store, "shop", SnapshotId(""))
            elif act == "audit":
                store.put_audit("shop", f"a{number}", {"report.json": b"{}"})
            elif act == "half":
                store.objects.put(f"catalogs/shop/snapshots/half{number}/index.bin", b"1")
                age(root_of(store) / f"catalogs/shop/snapshots/half{number}", 3)
            else:
                kept = PrunePolicy(keep=policy[0], keep_days=policy[1], keep_audits=policy[2])
                live, back, n_audits = store.current("shop"), store.rolled_back_to("shop"), len(store.audits("shop"))
                would = prune(store, kept, now=NOW, dry_run=True)
                done = prune(store, kept, now=NOW)
                assert done == would
                assert store.current("shop") == live
                for needed in {live, back} - {None}:
                    assert len(store.open_snapshot("shop", SnapshotId(str(needed))).items) >= 2
                for manifest in store.snapshots("shop").readable:
                    assert all(len(store.embeddings(key)) for key in manifest.shards)
                assert len(store.audits("shop")) >= min(n_audits, policy[2] or n_audits)
                again = prune(store, kept, now=NOW)
                assert (again.snapshots, again.audits, again.embeddings, again.left_over) == ({}, {}, (), ())
