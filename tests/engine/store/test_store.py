"""The store: an artefact is there whole or not at all, pointers decide what is live, names never leave the store."""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Callable
from pathlib import Path

import pytest

from retrieval.contract.bundle import CONTRACT, Bundle, BundleDigest
from retrieval.contract.operating_point import OperatingPoint, OperatingPointId
from retrieval.contract.score import Score
from retrieval.engine.snapshot import SnapshotId
from retrieval.engine.store import Store
from retrieval.engine.store.bundles import embeddings_key
from retrieval.errors import CorruptArtifact, InvalidInput, InvalidSettings, RetrievalError, Unavailable
from tests.engine.store.artefacts import AUDIT, VECTORS, put_snapshot
from tests.stores import Crash, activate, crashing


def layout(store: Store) -> set[str]:
    root = Path(store.url.removeprefix("file://"))
    return {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()}


# every artefact: how it is written, how one sees that it is there, how many writes it takes


def add_bundle(store: Store, bundle: Bundle, score: Score) -> None:
    store.add_bundle(bundle.directory)


def add_score(store: Store, bundle: Bundle, score: Score) -> None:
    store.put_score(bundle.digest, score)


def add_snapshot(store: Store, bundle: Bundle, score: Score) -> None:
    put_snapshot(store)


def add_audit(store: Store, bundle: Bundle, score: Score) -> None:
    store.put_audit("shop", "a1", AUDIT)


def has_bundle(store: Store, bundle: Bundle, score: Score) -> bool:
    return store.bundles() == [bundle.digest] and _opens(lambda: store.bundle(bundle.digest))


def has_score(store: Store, bundle: Bundle, score: Score) -> bool:
    there = store.objects.exists(f"bundles/{bundle.digest}/scores/{score.digest}/score.json")
    assert there == _opens(lambda: store.score(bundle.digest, score.digest))
    return there


def has_snapshot(store: Store, bundle: Bundle, score: Score) -> bool:
    there = store.has_snapshot("shop", SnapshotId("s1"))
    assert there == _opens(lambda: store.open_snapshot("shop", SnapshotId("s1")))
    assert there == _opens(lambda: store.publish("shop", SnapshotId("s1")))
    return there


def has_audit(store: Store, bundle: Bundle, score: Score) -> bool:
    assert (store.audits("shop") == ["a1"]) == _opens(lambda: store.audit("shop", "a1"))
    return store.audits("shop") == ["a1"]


def _opens(open_artifact: Callable[[], object]) -> bool:
    try:
        open_artifact()
    except RetrievalError:
        return False
    return True


@pytest.mark.parametrize(
    ("write", "is_there", "n_writes"),
    [
        (add_bundle, has_bundle, 4),
        (add_score, has_score, 2),
        (add_snapshot, has_snapshot, 3),
        (add_audit, has_audit, 3),
    ],
)
def test_a_crash_between_any_two_writes_leaves_nothing_half(
    write: Callable[[Store, Bundle, Score], None],
    is_there: Callable[[Store, Bundle, Score], bool],
    n_writes: int,
    store: Store,
    tiny_bundle: Bundle,
    cohort_score: Score,
) -> None:
    """The marker comes last: after a crash the artefact is absent, and writing it again completes it."""
    for n_done in range(n_writes):
        with pytest.raises(Crash, match="the process died here"):
            write(crashing(store, n_done), tiny_bundle, cohort_score)
        assert not is_there(store, tiny_bundle, cohort_score)
    write(crashing(store, n_writes), tiny_bundle, cohort_score)
    assert is_there(store, tiny_bundle, cohort_score)


def test_layout(
    store: Store, tiny_bundle: Bundle, cohort_point: OperatingPoint, cohort_score: Score, tmp_path: Path
) -> None:
    """Where everything lies is part of the contract: other versions read it."""
    store.add_bundle(tiny_bundle.directory)
    activate(store, cohort_point, cohort_score)
    key = store.put_embeddings(tiny_bundle.digest, "e1", VECTORS)
    complete = put_snapshot(store)
    store.publish("shop", complete.id)
    store.put_audit("shop", "a1", AUDIT)
    bundle = f"bundles/{tiny_bundle.digest}"
    assert layout(store) == {
        *(f"{bundle}/{name}" for name in ("model.onnx", "contract.json", "evaluation.json", "probe.npz")),
        *(f"{bundle}/scores/{cohort_score.digest}/{name}" for name in ("score.json", "cohort.npy")),
        f"{bundle}/operating_points/{cohort_point.id}.json",
        f"{bundle}/operating_points/ACTIVE",
        f"{bundle}/embeddings/e1.npz",
        "catalogs/shop/snapshots/s1/manifest.json",
        *(f"catalogs/shop/snapshots/s1/{name}" for name in complete.files),
        "catalogs/shop/CURRENT",
        *(f"catalogs/shop/audits/a1/{name}" for name in AUDIT),
    }
    assert key == embeddings_key(tiny_bundle.digest, "e1") == f"{bundle}/embeddings/e1.npz"


def test_a_remote_store_serves_the_same(
    tmp_path: Path, tiny_bundle: Bundle, cohort_point: OperatingPoint, cohort_score: Score
) -> None:
    """Through the cache everything opens as it does locally, in whatever order it is asked for."""
    store = Store(f"memory://{uuid.uuid4().hex}", cache=tmp_path)
    store.add_bundle(tiny_bundle.directory)
    activate(store, cohort_point, cohort_score)
    complete = put_snapshot(store)
    store.publish("shop", complete.id)
    fresh = Store(store.url, cache=tmp_path / "another machine")
    assert fresh.score(tiny_bundle.digest, cohort_score.digest).digest == cohort_score.digest
    assert fresh.bundle(tiny_bundle.digest).digest == tiny_bundle.digest
    assert fresh.active_operating_point(tiny_bundle.digest) == cohort_point
    assert fresh.open_snapshot("shop", fresh.current("shop")).manifest == complete


# names


@pytest.mark.parametrize("name", ["../other", "..", ".", "", "a/b", "/etc", "a\\b", "a b", "ü", "a\n", "x" * 65])
def test_names_never_leave_the_store(name: str, store: Store, tiny_bundle: Bundle) -> None:
    """A name from outside becomes a path: only plain ones do."""
    acts: list[Callable[[], object]] = [
        lambda: store.bundle(BundleDigest(name)),
        lambda: store.operating_points(BundleDigest(name)),
        lambda: store.operating_point(tiny_bundle.digest, OperatingPointId(name)),
        lambda: store.activate(tiny_bundle.digest, OperatingPointId(name)),
        lambda: store.active_id(BundleDigest(name)),
        lambda: store.snapshots(name),
        lambda: store.snapshot_manifest(name, SnapshotId("s1")),
        lambda: store.open_snapshot("shop", SnapshotId(name)),
        lambda: store.publish("shop", SnapshotId(name)),
        lambda: store.current(name),
        lambda: store.put_audit(name, "a1", AUDIT),
        lambda: store.put_audit("shop", name, AUDIT),
        lambda: store.audit("shop", name),
        lambda: store.audits(name),
    ]
    for act in acts:
        with pytest.raises(InvalidInput, match="expected 1 to 64 letters, digits, - or _"):
            act()
    assert not Path(store.url.removeprefix("file://")).exists(), "nothing was written"


def test_stray_files_are_no_artefacts(store: Store, tiny_bundle: Bundle) -> None:
    """Half-copied bundles and snapshots are passed over."""
    store.add_bundle(tiny_bundle.directory)
    store.objects.put("bundles/half/model.onnx", b"")
    store.objects.put("catalogs/shop/snapshots/half/index", b"")
    put_snapshot(store)
    assert store.bundles() == [tiny_bundle.digest]
    assert [m.id for m in store.snapshots("shop").readable] == ["s1"]
    assert store.catalogs() == []
    assert store.objects.exists(f"bundles/{tiny_bundle.digest}/{CONTRACT}")


@pytest.mark.parametrize("name", ["Thumbs.db", "manifest.json", "copy of s1", "\u00fcber", "x" * 65])
def test_names_of_no_artefact_are_passed_over(name: str, calibrated: Store, tiny_bundle: Bundle) -> None:
    """Whatever people and tools leave in a folder hides nothing beside it, also where it holds a copy."""
    put_snapshot(calibrated)
    calibrated.publish("shop", SnapshotId("s1"))
    root = Path(calibrated.url.removeprefix("file://"))
    for folder in ("bundles/" + tiny_bundle.digest, "catalogs/shop", "catalogs/shop/snapshots/s1"):
        shutil.copytree(root / folder, (root / folder).with_name(name))
    points = root / "bundles" / tiny_bundle.digest / "operating_points"
    (points / f"{name} 2.json").write_text("{}")
    calibrated.put_audit("shop", "a1", {"report.json": b"{}"})
    shutil.copytree(root / "catalogs/shop/audits/a1", root / "catalogs/shop/audits" / name)
    assert calibrated.bundles() == [tiny_bundle.digest]
    assert calibrated.catalogs() == ["shop"]
    assert calibrated.snapshot_ids("shop") == ["s1"]
    assert len(calibrated.operating_points(tiny_bundle.digest).readable) == 1
    assert calibrated.audits("shop") == ["a1"]


@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"../../elsewhere", b"two words"])
def test_damaged_pointer_is_data_loss(calibrated: Store, content: bytes) -> None:
    """The error names the damaged pointer, for any content of it; activating repairs it."""
    digest = calibrated.only_bundle()
    active = calibrated.active_operating_point(digest)
    calibrated.objects.put(f"bundles/{digest}/operating_points/ACTIVE", content)
    calibrated.objects.put("catalogs/shop/CURRENT", content)
    with pytest.raises(CorruptArtifact, match="ACTIVE"):
        calibrated.active_operating_point(digest)
    with pytest.raises(CorruptArtifact, match="CURRENT"):
        calibrated.current("shop")
    calibrated.activate(digest, active.id)
    assert calibrated.active_id(digest) == active.id


def test_store_that_is_a_file_is_a_wrong_setting(tmp_path: Path) -> None:
    """It will never be a folder; below a file nothing can be stored either."""
    (tmp_path / "store").touch()
    with pytest.raises(InvalidSettings, match=r"expected a folder, found a file: .*/store$"):
        Store((tmp_path / "store").as_uri())
    store = Store(f"{(tmp_path / 'store').as_uri()}/below")
    for ask in (lambda: store.bundle_name(BundleDigest("b")), store.catalogs):
        with pytest.raises(Unavailable, match="store/below"):
            ask()


def test_store_of_unknown_protocol_is_a_wrong_setting() -> None:
    """A mistyped URL stops the start."""
    with pytest.raises(InvalidSettings, match="nowhere://"):
        Store("nowhere://bucket")
