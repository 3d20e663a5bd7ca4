"""The store: an artefact is there whole or not at all, pointers decide what is live, names never leave the store."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from retrieval.contract.bundle import CONTRACT, Bundle, BundleDigest, write_bundle
from retrieval.contract.manifest import Item
from retrieval.contract.operating_point import OperatingPoint, OperatingPointId
from retrieval.contract.score import Score, ScoreDigest
from retrieval.engine.index.open import build_index
from retrieval.engine.index.spec import IndexSpec
from retrieval.engine.items import ItemTable
from retrieval.engine.snapshot import Snapshot, SnapshotId, SnapshotManifest
from retrieval.engine.store import Store
from retrieval.engine.store.bundles import embeddings_key
from retrieval.errors import (
    BundleMismatch,
    CorruptArtifact,
    InvalidInput,
    RetrievalError,
    UnknownBundle,
    UnknownCatalog,
    UnknownJob,
    UnknownOperatingPoint,
    UnknownSnapshot,
)
from tests.stores import CREATED_AT, Crash, activate, crashing

VECTORS = np.eye(4, 8, dtype=np.float32)
AUDIT = {"report.json": b'{"verdict": "passed"}', "report.html": b"<html>", "curves.parquet": b"PAR1"}


def manifest(snapshot: str = "s1", *, created_at: str = CREATED_AT) -> SnapshotManifest:
    return SnapshotManifest(
        id=SnapshotId(snapshot),
        catalog="shop",
        bundle_digest=BundleDigest("b"),
        score_digest=ScoreDigest("s"),
        catalog_digest="c",
        index_spec="Flat",
        dimension=8,
        n_items=4,
        n_failed=1,
        failures={"x": "damaged"},
        index_recall=1.0,
        shards=("one", "two"),
        files={},
        created_at=created_at,
    )


def items() -> ItemTable:
    rows = [Item(id=f"{n}", uri=f"{n}.png", label="cup", attributes={"maker": "north"}) for n in range(4)]
    return ItemTable.build(rows, np.linspace(0, 3 / 8, 4, dtype=np.float32))


def put_snapshot(store: Store, snapshot: str = "s1", *, created_at: str = CREATED_AT) -> SnapshotManifest:
    return store.put_snapshot(manifest(snapshot, created_at=created_at), build_index(VECTORS, IndexSpec()), items())


def layout(store: Store) -> set[str]:
    root = Path(store.url.removeprefix("file://"))
    return {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()}


def the_only(store: Store, pattern: str) -> Path:
    (path,) = Path(store.url.removeprefix("file://")).glob(pattern)
    return path


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
        with pytest.raises(Crash):
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


def test_a_damaged_cached_copy_is_fetched_again(tmp_path: Path) -> None:
    """Somebody cleans the temporary folder: the store is asked again before it is called corrupt."""
    store = Store(f"memory://{uuid.uuid4().hex}", cache=tmp_path)
    complete = put_snapshot(store)
    store.open_snapshot("shop", complete.id)
    for path in tmp_path.rglob("*.parquet"):
        path.unlink()
    assert len(store.open_snapshot("shop", complete.id).items) == 4
    store.objects.put(f"catalogs/shop/snapshots/s1/{next(iter(complete.files))}", b"damaged in the store")
    with pytest.raises(CorruptArtifact, match="checksum"):
        Store(store.url, cache=tmp_path / "another machine").open_snapshot("shop", complete.id)


# bundles, scores, embeddings


def test_bundles(store: Store, tiny_bundle: Bundle, other_bundle: Bundle) -> None:
    with pytest.raises(UnknownBundle, match="holds no bundle"):
        store.only_bundle()
    assert store.bundles() == []
    added = store.add_bundle(tiny_bundle.directory)
    assert added.digest == tiny_bundle.digest == store.only_bundle()
    assert added.directory != tiny_bundle.directory
    assert store.add_bundle(tiny_bundle.directory) == added, "adding it again changes nothing"
    store.add_bundle(other_bundle.directory)
    assert set(store.bundles()) == {tiny_bundle.digest, other_bundle.digest}
    with pytest.raises(InvalidInput, match=r"holds 2 bundles, name one of them: .*"):
        store.only_bundle()


def test_a_model_card_comes_along(tiny_bundle: Bundle, tmp_path: Path) -> None:
    """Into a store elsewhere, and from there to who fetches the bundle."""
    store = Store(f"memory://{uuid.uuid4().hex}", cache=tmp_path / "cache")
    inputs, embeddings = tiny_bundle.probe()
    with_card = write_bundle(
        tmp_path / "with card",
        onnx_model=tiny_bundle.model_path.read_bytes(),
        preprocessing=tiny_bundle.preprocessing,
        dimension=tiny_bundle.dimension,
        opset=tiny_bundle.opset,
        input_name=tiny_bundle.input_name,
        output_name=tiny_bundle.output_name,
        evaluation={},
        probe_inputs=inputs,
        probe_embeddings=embeddings,
        model_card="# Card\n",
    )
    assert store.add_bundle(with_card.directory).model_card == "# Card\n"


def test_unknown_bundle(store: Store) -> None:
    with pytest.raises(UnknownBundle, match="bundle abc is not in the store"):
        store.bundle(BundleDigest("abc"))


def test_a_bundle_under_anothers_name_is_refused(store: Store, tiny_bundle: Bundle) -> None:
    added = store.add_bundle(tiny_bundle.directory)
    added.directory.rename(added.directory.with_name("abc"))
    with pytest.raises(CorruptArtifact, match=f"bundle abc: its contract has digest {tiny_bundle.digest}"):
        store.bundle(BundleDigest("abc"))


def test_a_damaged_bundle_is_refused(store: Store, tiny_bundle: Bundle) -> None:
    path = store.add_bundle(tiny_bundle.directory).model_path
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(CorruptArtifact, match=r"model\.onnx has checksum"):
        store.bundle(tiny_bundle.digest)


def test_embeddings(store: Store) -> None:
    key = store.put_embeddings(BundleDigest("b"), "e1", VECTORS)
    np.testing.assert_array_equal(store.embeddings(key), VECTORS)
    empty = store.put_embeddings(BundleDigest("b"), "e0", VECTORS[:0])
    assert store.embeddings(empty).shape == (0, 8)
    with pytest.raises(CorruptArtifact, match="missing"):
        store.embeddings("bundles/b/embeddings/none.npz")


def test_every_truncation_of_embeddings_is_refused(store: Store) -> None:
    key = store.put_embeddings(BundleDigest("b"), "e1", VECTORS)
    data = store.objects.get(key)
    assert data is not None
    for length in range(0, len(data), 13):
        store.objects.put(key, data[:length])
        with pytest.raises(CorruptArtifact, match=r"e1\.npz cannot be read"):
            store.embeddings(key)


def test_an_unknown_score(store: Store) -> None:
    with pytest.raises(CorruptArtifact, match="missing from the store"):
        store.score(BundleDigest("b"), ScoreDigest("none"))


# operating points


@pytest.fixture
def point(store: Store, tiny_bundle: Bundle, cosine_point: OperatingPoint) -> OperatingPoint:
    """A stored operating point that is not active."""
    store.add_bundle(tiny_bundle.directory)
    store.put_score(tiny_bundle.digest, Score())
    store.put_operating_point(cosine_point)
    return cosine_point


def test_activating_is_a_separate_act(store: Store, point: OperatingPoint) -> None:
    bundle = point.bundle_digest
    assert store.operating_points(bundle) == [point]
    assert store.active_id(bundle) is None
    with pytest.raises(UnknownOperatingPoint, match="no active operating point"):
        store.active_operating_point(bundle)
    newer = replace(point, data_digest="new images", created_at="2027-01-01T00:00:00+00:00")
    store.put_operating_point(newer)
    assert store.operating_points(bundle) == [newer, point], "newest first"
    assert store.activate(bundle, newer.id) == newer
    assert store.active_operating_point(bundle) == newer
    store.activate(bundle, point.id)
    assert store.active_id(bundle) == point.id, "rolling back is activating the older one"


def test_unknown_operating_point_activates_nothing(store: Store, point: OperatingPoint) -> None:
    store.activate(point.bundle_digest, point.id)
    with pytest.raises(UnknownOperatingPoint, match="has no operating point abc"):
        store.activate(point.bundle_digest, OperatingPointId("abc"))
    assert store.active_id(point.bundle_digest) == point.id


def test_an_operating_point_without_its_score_is_not_activated(store: Store, point: OperatingPoint) -> None:
    store.objects.delete(f"bundles/{point.bundle_digest}/scores")
    with pytest.raises(CorruptArtifact, match="score"):
        store.activate(point.bundle_digest, point.id)
    assert store.active_id(point.bundle_digest) is None


def test_a_changed_threshold_is_detected(store: Store, point: OperatingPoint) -> None:
    """Nobody edits a threshold by hand and keeps its evidence."""
    path = the_only(store, "bundles/*/operating_points/*.json")
    path.write_text(path.read_text().replace(str(point.threshold), "0.5"))
    with pytest.raises(CorruptArtifact, match="its content has id"):
        store.operating_point(point.bundle_digest, point.id)


def test_an_operating_point_of_another_bundle_is_refused(
    store: Store, point: OperatingPoint, other_bundle: Bundle
) -> None:
    store.add_bundle(other_bundle.directory)
    data = the_only(store, "bundles/*/operating_points/*.json").read_bytes()
    store.objects.put(f"bundles/{other_bundle.digest}/operating_points/{point.id}.json", data)
    with pytest.raises(BundleMismatch, match=f"was made for bundle {point.bundle_digest}"):
        store.activate(other_bundle.digest, point.id)


# snapshots


def test_publish_and_roll_back(store: Store) -> None:
    """One pointer says what is live; what was live before stays and can be live again."""
    first = put_snapshot(store, "s1")
    second = put_snapshot(store, "s2", created_at="2027-01-01T00:00:00+00:00")
    with pytest.raises(UnknownCatalog, match="no live snapshot"):
        store.current("shop")
    assert store.catalogs() == []
    store.publish("shop", first.id)
    store.publish("shop", second.id)
    assert store.current("shop") == "s2"
    assert store.snapshots("shop") == [second, first], "newest first"
    assert store.catalogs() == ["shop"]
    store.publish("shop", first.id)
    assert store.current("shop") == "s1"


def test_snapshot_round_trip(store: Store) -> None:
    complete = put_snapshot(store)
    assert len(complete.files) == 2
    assert replace(complete, files={}) == manifest()
    snapshot = store.open_snapshot("shop", complete.id)
    assert snapshot.manifest == complete
    assert_found(snapshot, VECTORS[2], ["2"])
    np.testing.assert_array_equal(snapshot.items.densities, np.arange(4) / 8)


def assert_found(snapshot: Snapshot, query: NDArray[np.float32], expected: list[str]) -> None:
    (hits,) = snapshot.index.above(query[None], 0.5)
    found = snapshot.items.take(hits.positions)
    assert [item.id for item in found] == expected
    assert found[0] == Item(id="2", uri="2.png", label="cup", attributes={"maker": "north"})


def test_unknown_snapshots(store: Store) -> None:
    with pytest.raises(UnknownCatalog, match="'shop' has no snapshot"):
        store.snapshots("shop")
    put_snapshot(store)
    store.publish("shop", SnapshotId("s1"))
    for act in (store.publish, store.open_snapshot, store.snapshot_manifest):
        with pytest.raises(UnknownSnapshot, match="catalogue shop has no snapshot s9"):
            act("shop", SnapshotId("s9"))
    assert store.current("shop") == "s1"


@pytest.mark.parametrize("kind", ["index.faiss", "items.parquet"])
@pytest.mark.parametrize("damage", ["truncate", "change", "remove"])
def test_a_damaged_snapshot_is_refused(kind: str, damage: str, store: Store) -> None:
    complete = put_snapshot(store)
    path = the_only(store, f"catalogs/shop/snapshots/s1/*{kind}")
    content = path.read_bytes()
    if damage == "remove":
        path.unlink()
    else:
        path.write_bytes(content[:-1] if damage == "truncate" else content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(CorruptArtifact, match=rf"snapshot s1: .*{kind}"):
        store.open_snapshot("shop", complete.id)


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b'{"format": 2}', b'{"format": 1}'])
def test_a_damaged_snapshot_manifest_is_refused(data: bytes, store: Store) -> None:
    put_snapshot(store)
    store.objects.put("catalogs/shop/snapshots/s1/manifest.json", data)
    with pytest.raises(CorruptArtifact, match=r"manifest\.json"):
        store.snapshot_manifest("shop", SnapshotId("s1"))


# audits


def test_audits(store: Store) -> None:
    assert store.audits("shop") == []
    with pytest.raises(UnknownJob, match="'shop' has no audit a1"):
        store.audit("shop", "a1")
    store.put_audit("shop", "a1", AUDIT)
    assert store.audits("shop") == ["a1"]
    assert store.audit("shop", "a1") == {"verdict": "passed"}
    assert store.audit_uri("shop", "a1", "report.html") == f"{store.url}/catalogs/shop/audits/a1/report.html"
    store.objects.put("catalogs/shop/audits/a1/report.json", b'{"verd')
    with pytest.raises(CorruptArtifact, match="audit a1"):
        store.audit("shop", "a1")


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
    assert [m.id for m in store.snapshots("shop")] == ["s1"]
    assert store.catalogs() == []
    assert store.objects.exists(f"bundles/{tiny_bundle.digest}/{CONTRACT}")
