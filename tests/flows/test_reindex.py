"""Reindexing: every step may be killed or repeated, and what was live stays live until the new snapshot is whole."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from numpy.typing import NDArray

from retrieval.contract.bundle import Bundle
from retrieval.contract.class_terms import PulledItems, pull_items
from retrieval.contract.operating_point import OperatingPoint
from retrieval.contract.score import Score
from retrieval.engine.class_table import load_classes
from retrieval.engine.encoder import Encoder
from retrieval.engine.snapshot import SnapshotId
from retrieval.engine.store import Store
from retrieval.errors import (
    BundleMismatch,
    CorruptArtifact,
    EmptyCatalog,
    InvalidInput,
    InvalidManifest,
    TooManyFailures,
    UnknownBundle,
    UnknownCatalog,
    UnknownOperatingPoint,
    UnknownSnapshot,
    ValidationFailed,
)
from retrieval.flows.reindex import (
    ReindexRequest,
    build_and_publish,
    embed_planned_shard,
    labels_for,
    missing_shards,
    plan,
    roll_back,
    settle_bundle,
)
from tests.pictures import class_picture, encoded, write_class_folders
from tests.stores import (
    CREATED_AT,
    Crash,
    activate,
    crashing,
    embedder_of,
    reindex,
    with_labels,
    without_labels,
)

LATER, LATEST = "2027-01-01T00:00:00+00:00", "2028-01-01T00:00:00+00:00"
Reindex = Callable[..., SnapshotId]


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """300 pictures of 60 classes: three shards; read only."""
    return write_class_folders(tmp_path_factory.mktemp("images"), n_classes=60, n_images=5)


@pytest.fixture
def few(tmp_path: Path) -> Path:
    """20 pictures of 10 classes, free to change."""
    return write_class_folders(tmp_path / "few", n_classes=10, n_images=2)


@pytest.fixture
def request_of(images: Path) -> ReindexRequest:
    return ReindexRequest(catalog="shop", manifest_uri=str(images))


@pytest.fixture
def run(calibrated: Store, tiny_encoder: Encoder, pool: Executor) -> Reindex:
    """Reindex a folder into the calibrated store, all steps."""

    def reindex_folder(folder: Path, *, created_at: str = CREATED_AT, **options: Any) -> SnapshotId:
        request = ReindexRequest(catalog="shop", manifest_uri=str(folder), **options)
        return reindex(calibrated, tiny_encoder, pool, request, created_at=created_at)

    return reindex_folder


def test_the_whole_flow(run: Reindex, calibrated: Store, few: Path, cosine_point: OperatingPoint) -> None:
    """The snapshot holds every item in order, names what it was made from, is live, and leaves no working files."""
    snapshot = calibrated.open_snapshot("shop", run(few))
    manifest = snapshot.manifest
    assert calibrated.current("shop") == manifest.id
    assert (manifest.n_items, manifest.n_failed, manifest.index_recall, manifest.failures) == (20, 0, 1.0, {})
    assert (manifest.bundle_digest, manifest.score_digest) == (cosine_point.bundle_digest, cosine_point.score_digest)
    assert manifest.created_at == CREATED_AT
    ids = [item.id for item in snapshot.items.take(np.arange(20))]
    assert ids == sorted(f"class_{c:03d}/{v}.png" for c in range(10) for v in range(2))
    assert calibrated.objects.names("staging") == []


def test_vectors_and_items_have_one_order(run: Reindex, calibrated: Store, few: Path, tiny_encoder: Encoder) -> None:
    """Each picture finds itself first, under its own id."""
    snapshot = calibrated.open_snapshot("shop", run(few))
    embeddings = tiny_encoder.embed_images([path.read_bytes() for path in sorted(few.rglob("*.png"))])
    found = [hits.positions[0] for hits in snapshot.index.above(embeddings, 0.99)]
    assert found == list(range(20))


def test_the_cohort_score_is_built_into_the_vectors(
    run: Reindex, store: Store, few: Path, calibrated: Store, cohort_point: OperatingPoint, cohort_score: Score
) -> None:
    """The index has two more dimensions, and the items keep their densities."""
    activate(store, cohort_point, cohort_score)
    snapshot = store.open_snapshot("shop", run(few))
    embeddings = np.concatenate([store.embeddings(key) for key in snapshot.manifest.shards])
    assert snapshot.manifest.dimension == embeddings.shape[1] + 2
    np.testing.assert_allclose(snapshot.items.densities, cohort_score.density(embeddings), atol=1e-6)


def test_the_same_input_gives_the_same_snapshot(run: Reindex, calibrated: Store, few: Path) -> None:
    """A repeated job finds its own work; nothing is written twice."""
    first = run(few)
    assert run(few, created_at=LATER) == first
    assert [manifest.created_at for manifest in calibrated.snapshots("shop").readable] == [CREATED_AT]


def test_what_makes_another_snapshot(
    run: Reindex, calibrated: Store, few: Path, cohort_point: OperatingPoint, cohort_score: Score
) -> None:
    """Changed pixels, a new item, another index or another score."""
    ids = [run(few)]
    (few / "class_003" / "0.png").write_bytes(encoded(class_picture(500, 0)))
    ids.append(run(few))
    (few / "class_003" / "9.png").write_bytes(encoded(class_picture(501, 0)))
    ids.append(run(few))
    (few / "class_003" / "9.png").unlink()
    activate(calibrated, cohort_point, cohort_score)
    ids.append(run(few))
    assert len(set(ids)) == 4
    assert calibrated.current("shop") == ids[-1]


def test_another_index_is_another_snapshot(run: Reindex, images: Path) -> None:
    assert run(images) != run(images, index_spec="IVF4,nprobe=4")


# a score that uses the labels


def test_a_catalogue_score_is_built_into_the_vectors(
    run: Reindex, calibrated: Store, few: Path, cohort_point: OperatingPoint, cohort_score: Score
) -> None:
    """Items are indexed after their pull, with its densities; the classes are stored, and queries find their class."""
    point, score = with_labels(cohort_point, cohort_score)
    activate(calibrated, point, score)
    snapshot = calibrated.open_snapshot("shop", run(few))
    embeddings = np.concatenate([calibrated.embeddings(key) for key in snapshot.manifest.shards])
    labels = [f"class_{number // 2:03d}" for number in range(20)]
    expected = score.gallery(embeddings, labels)
    assert snapshot.manifest.score_digest == score.digest
    assert snapshot.manifest.dimension == embeddings.shape[1] + 2
    np.testing.assert_array_equal(snapshot.items.densities, expected.densities)
    np.testing.assert_array_equal(snapshot.items.offsets, expected.offsets)
    assert snapshot.manifest.labels is not None
    found = snapshot.manifest.labels
    assert (found.n_classes, found.n_unlabelled, found.n_far) == (10, 0, int(expected.far.sum()))
    folder = calibrated.objects.local(f"catalogs/shop/snapshots/{snapshot.manifest.id}")
    classes = load_classes(next(folder.glob("*classes.parquet")))
    assert classes.names == tuple(sorted(set(labels)))
    assert classes.sizes.tolist() == [2] * 10
    scores = score.query_vectors(embeddings) @ expected.vectors.T
    for query, hits in zip(range(20), snapshot.index.above(score.query_vectors(embeddings), -0.5), strict=True):
        np.testing.assert_allclose(hits.scores, scores[query, hits.positions], atol=1e-6)
        assert query // 2 in hits.positions[:2] // 2


def test_items_that_are_far_from_their_class_are_counted_and_named(
    run: Reindex, calibrated: Store, few: Path, cosine_point: OperatingPoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    def with_far(*arguments: Any, **named: Any) -> PulledItems:
        pulled = pull_items(*arguments, **named)
        return replace(pulled, far=np.arange(len(pulled.far)) % 7 == 3)

    monkeypatch.setattr("retrieval.contract.score.pull_items", with_far)
    activate(calibrated, *with_labels(cosine_point, Score()))
    found = calibrated.snapshot_manifest("shop", run(few)).labels
    assert found is not None
    assert (found.n_far, found.far_items) == (3, ("class_001/1.png", "class_005/0.png", "class_008/1.png"))


def test_other_labels_make_another_snapshot(
    run: Reindex, calibrated: Store, few: Path, cosine_point: OperatingPoint, tmp_path: Path
) -> None:
    """Without embedding anything again: a picture moves to another class, and its class gets other vectors."""
    activate(calibrated, *with_labels(cosine_point, Score()))
    table = tmp_path / "items.csv"
    rows = [f"{path.parent.name}/{path.name},{path},{path.parent.name}" for path in sorted(few.rglob("*.png"))]
    table.write_text("\n".join(["id,uri,label", *rows]))
    first = run(table)
    table.write_text("\n".join(["id,uri,label", *rows]).replace("0.png,class_003", "0.png,class_004"))
    second = run(table)
    assert first != second
    before, after = (calibrated.open_snapshot("shop", each).manifest for each in (first, second))
    assert before.shards == after.shards


def test_a_catalogue_without_labels_is_refused_before_anything_is_embedded(
    calibrated: Store, few: Path, cosine_point: OperatingPoint
) -> None:
    """The message names the catalogue, the score, and both ways out; nothing is left behind."""
    point, score = with_labels(cosine_point, Score())
    activate(calibrated, point, score)
    request = ReindexRequest(catalog="shop", manifest_uri=str(without_labels(few)))
    expected = (
        rf"catalogue 'shop': the active operating point has the catalogue cosine score {score.digest}, .* expected "
        r"items with labels, found none\. Add the labels to the manifest .* or activate an operating point"
    )
    with pytest.raises(InvalidInput, match=expected):
        plan(calibrated, "job", request)
    assert calibrated.objects.names("staging") == []
    assert labels_for(calibrated, settle_bundle(calibrated, request)) == (
        "the catalogue cosine score of the active operating point"
    )


def test_one_label_is_enough(run: Reindex, calibrated: Store, few: Path, cosine_point: OperatingPoint) -> None:
    """Items without one are compared as a score without labels compares them, and counted."""
    activate(calibrated, *with_labels(cosine_point, Score()))
    table = without_labels(few)
    table.write_text(table.read_text().replace("0.png,\n", "0.png,cup\n", 1))
    snapshot = calibrated.open_snapshot("shop", run(table))
    assert snapshot.manifest.labels is not None
    assert (snapshot.manifest.labels.n_classes, snapshot.manifest.labels.n_unlabelled) == (1, 19)
    embeddings = np.concatenate([calibrated.embeddings(key) for key in snapshot.manifest.shards])
    found = [hits.positions[0] for hits in snapshot.index.above(embeddings, 0.99)]
    assert found == list(range(20))


def test_a_score_that_needs_labels_activated_meanwhile(
    run: Reindex, calibrated: Store, tiny_encoder: Encoder, pool: Executor, few: Path, cosine_point: OperatingPoint
) -> None:
    """The build finds out that there are none: nothing is published, what was live stays."""
    before = run(few)
    planned = plan(calibrated, "job", ReindexRequest(catalog="shop", manifest_uri=str(without_labels(few))))
    assert labels_for(calibrated, planned.request) == ""
    embed_planned_shard(calibrated, "job", planned, 0, embedder=embedder_of(tiny_encoder, pool))
    activate(calibrated, *with_labels(cosine_point, Score()))
    with pytest.raises(InvalidInput, match="expected items with labels, found none"):
        build_and_publish(calibrated, "job", planned, created_at=CREATED_AT)
    assert calibrated.current("shop") == before
    assert len(calibrated.snapshots("shop").readable) == 1


def test_recall_is_measured_with_the_queries_of_the_images(
    run: Reindex, calibrated: Store, images: Path, cosine_point: OperatingPoint
) -> None:
    """The items lie elsewhere after their pull, where no query is."""
    point, score = with_labels(cosine_point, Score())
    activate(calibrated, point, score)
    snapshot = calibrated.open_snapshot("shop", run(images, index_spec="IVF7,nprobe=6"))
    measured = snapshot.manifest.index_details["measured_recall"]
    embeddings = np.concatenate([calibrated.embeddings(key) for key in snapshot.manifest.shards])
    gallery = score.gallery(embeddings, [f"class_{number // 5:03d}" for number in range(300)]).vectors
    accepted = score.query_vectors(embeddings) @ gallery.T >= point.threshold
    others = accepted & ~np.eye(300, dtype=bool)
    assert measured["n_queries"] == int(others.any(axis=1).sum())
    assert measured["n_matches"] == int(others.sum())


# bad images


@pytest.mark.slow
def test_an_unreadable_file_among_a_thousand(run: Reindex, calibrated: Store, tmp_path: Path) -> None:
    """It is named and counted, the rest is indexed and live."""
    folder = write_class_folders(tmp_path / "thousand", n_classes=200, n_images=5)
    (folder / "class_123" / "4.png").write_bytes(b"no image")
    manifest = calibrated.snapshot_manifest("shop", run(folder))
    assert (manifest.n_items, manifest.n_failed) == (999, 1)
    assert list(manifest.failures) == ["class_123/4.png"]
    assert "expected one of JPEG" in manifest.failures["class_123/4.png"]


def test_too_many_unreadable_files_leave_the_old_snapshot(run: Reindex, calibrated: Store, few: Path) -> None:
    before = run(few)
    for path in sorted(few.rglob("*.png"))[:3]:
        path.write_bytes(b"no image")
    with pytest.raises(TooManyFailures, match=r"3 of 20 items .* class_000/0\.png"):
        run(few, max_failed_share=0.1)
    assert calibrated.current("shop") == before
    assert len(calibrated.snapshots("shop").readable) == 1


def test_an_item_that_becomes_readable_makes_a_new_snapshot(run: Reindex, calibrated: Store, few: Path) -> None:
    path = few / "class_004" / "1.png"
    good = path.read_bytes()
    path.write_bytes(b"no image")
    first = run(few)
    path.write_bytes(good)
    assert run(few) != first
    assert calibrated.snapshot_manifest("shop", calibrated.current("shop")).n_items == 20


# killed and repeated steps


@pytest.mark.slow
def test_a_kill_between_any_two_writes(
    calibrated: Store, tiny_encoder: Encoder, pool: Executor, few: Path, request_of: ReindexRequest
) -> None:
    """After every single write: what was live stays live until the new snapshot is whole, and the job resumes to it."""
    old = reindex(calibrated, tiny_encoder, pool, replace(request_of, manifest_uri=str(few)), job_id="old")
    expected = reindex(calibrated, tiny_encoder, pool, replace(request_of, catalog="undisturbed"), job_id="u")
    embeddings = f"bundles/{tiny_encoder.bundle.digest}/embeddings"
    # 3 shards and the plan, 3 embeddings and results, index, items, manifest and the pointer
    n_writes, n_until_live = 0, 14
    while True:
        for key in ("staging", f"catalogs/shop/snapshots/{expected}", embeddings):
            calibrated.objects.delete(key)
        calibrated.publish("shop", old)
        try:
            reindex(crashing(calibrated, n_writes), tiny_encoder, pool, request_of)
        except Crash:
            live = calibrated.current("shop")
            assert live == (old if n_writes < n_until_live else expected)
            calibrated.open_snapshot("shop", live)
            assert reindex(calibrated, tiny_encoder, pool, request_of) == expected
            assert calibrated.current("shop") == expected
            n_writes += 1
            continue
        break
    assert n_writes == n_until_live + 2, "the plan and then the other working files are removed"


def test_steps_repeated_in_any_order(
    calibrated: Store, tiny_encoder: Encoder, pool: Executor, request_of: ReindexRequest
) -> None:
    """Each shard twice or more, shuffled, on several threads, and two builders at once: one and the same snapshot."""
    expected = reindex(calibrated, tiny_encoder, pool, replace(request_of, catalog="undisturbed"), job_id="u")
    calibrated.objects.delete(f"bundles/{tiny_encoder.bundle.digest}/embeddings")
    planned = plan(calibrated, "job", request_of)
    assert plan(calibrated, "job", replace(request_of, manifest_uri="/changed/since")) == planned
    assert missing_shards(calibrated, "job", planned) == [0, 1, 2]
    deliveries = [0, 1, 2] * 3
    random.Random(0).shuffle(deliveries)

    def embed(number: int) -> None:
        embed_planned_shard(calibrated, "job", planned, number, embedder=embedder_of(tiny_encoder, pool))

    with ThreadPoolExecutor(3) as workers:
        list(workers.map(embed, deliveries))
        assert missing_shards(calibrated, "job", planned) == []
        builders = [
            workers.submit(build_and_publish, calibrated, "job", planned, created_at=CREATED_AT) for _ in range(2)
        ]
        assert {builder.result() for builder in builders} == {expected}
    assert calibrated.current("shop") == expected
    calibrated.open_snapshot("shop", expected)


def test_building_before_all_shards_are_there(calibrated: Store, request_of: ReindexRequest) -> None:
    planned = plan(calibrated, "job", request_of)
    with pytest.raises(ValidationFailed, match=r"000000\.result\.json is missing.*start it again"):
        build_and_publish(calibrated, "job", planned, created_at=CREATED_AT)
    with pytest.raises(UnknownCatalog, match="'shop' has no live snapshot"):
        calibrated.current("shop")


class CountingEncoder(Encoder):
    """An encoder that counts the images it is given."""

    n_embedded = 0

    def embed(self, pixels: NDArray[np.float32]) -> NDArray[np.float32]:
        self.n_embedded += len(pixels)
        return super().embed(pixels)


def test_a_shard_killed_between_its_files_and_delivered_again(
    calibrated: Store, tiny_encoder: Encoder, pool: Executor, request_of: ReindexRequest
) -> None:
    """Its embeddings are stored, its result is not: it counts as missing, and nothing is embedded a second time."""
    encoder = CountingEncoder(tiny_encoder.bundle, tiny_encoder._session, max_batch=16)
    planned = plan(calibrated, "job", request_of)

    def embed(store: Store) -> None:
        embed_planned_shard(store, "job", planned, 1, embedder=embedder_of(encoder, pool))

    with pytest.raises(Crash, match="the process died here"):
        embed(crashing(calibrated, 1))
    assert missing_shards(calibrated, "job", planned) == [0, 1, 2]
    assert encoder.n_embedded == 128
    for _ in range(2):
        embed(calibrated)
        assert missing_shards(calibrated, "job", planned) == [0, 2]
    embed(crashing(calibrated, 0))
    assert encoder.n_embedded == 128


@pytest.mark.parametrize("name", ["000001.items.parquet", "000001.result.json"])
def test_a_missing_shard_file_is_named(
    calibrated: Store, tiny_encoder: Encoder, pool: Executor, request_of: ReindexRequest, name: str
) -> None:
    """Somebody removed the working files: nothing is published, and the message says what to do."""
    planned = plan(calibrated, "job", request_of)
    for number in range(planned.n_shards):
        embed_planned_shard(calibrated, "job", planned, number, embedder=embedder_of(tiny_encoder, pool))
    calibrated.objects.delete(f"staging/job/{name}")
    with pytest.raises(ValidationFailed, match=f"{name} is missing.*start it again"):
        build_and_publish(calibrated, "job", planned, created_at=CREATED_AT)
    assert calibrated.catalogs() == []


def test_a_manifest_that_changes_between_two_planners_mixes_nothing_up(
    calibrated: Store, tiny_encoder: Encoder, pool: Executor, few: Path, request_of: ReindexRequest
) -> None:
    """A late planner replaced the items of a shard that is embedded already: its rows mean other items now."""
    request = replace(request_of, manifest_uri=str(few))
    planned = plan(calibrated, "job", request)
    embed_planned_shard(calibrated, "job", planned, 0, embedder=embedder_of(tiny_encoder, pool))
    (few / "class_000" / "0.png").unlink()
    calibrated.objects.delete("staging/job/plan.json")
    plan(calibrated, "job", request)
    with pytest.raises(ValidationFailed, match=r"made from other items than those planned.*start it again"):
        build_and_publish(calibrated, "job", planned, created_at=CREATED_AT)
    assert calibrated.catalogs() == []


def test_a_score_activated_meanwhile_is_not_published_over(
    calibrated: Store,
    tiny_encoder: Encoder,
    pool: Executor,
    few: Path,
    request_of: ReindexRequest,
    cohort_point: OperatingPoint,
    cohort_score: Score,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A snapshot that no server could serve does not become the live one."""
    planned = plan(calibrated, "job", replace(request_of, manifest_uri=str(few)))
    embed_planned_shard(calibrated, "job", planned, 0, embedder=embedder_of(tiny_encoder, pool))
    put_snapshot = Store.put_snapshot

    def and_activate(store: Store, *arguments: Any) -> object:
        activate(store, cohort_point, cohort_score)
        return put_snapshot(store, *arguments)

    monkeypatch.setattr(Store, "put_snapshot", and_activate)
    with pytest.raises(BundleMismatch, match="reindex the catalogue"):
        build_and_publish(calibrated, "job", planned, created_at=CREATED_AT)
    assert calibrated.catalogs() == []


def test_late_build_does_not_undo_what_was_published_since(
    run: Reindex, calibrated: Store, tiny_encoder: Encoder, pool: Executor, few: Path
) -> None:
    """A build that was delivered twice and ends after another job publishes nothing."""
    old = run(few)
    planned = plan(calibrated, "late", ReindexRequest(catalog="shop", manifest_uri=str(few)))
    embed_planned_shard(calibrated, "late", planned, 0, embedder=embedder_of(tiny_encoder, pool))
    calibrated.objects.delete("staging/late/plan.json")  # what the first delivery does when it is done
    (few / "class_000" / "0.png").unlink()
    new = run(few)
    with pytest.raises(ValidationFailed, match="nothing was published"):
        build_and_publish(calibrated, "late", planned, created_at=CREATED_AT)
    assert calibrated.current("shop") == new != old


def test_image_names_may_hold_what_means_something_to_fsspec(run: Reindex, calibrated: Store, tmp_path: Path) -> None:
    """A file is found by its name, whatever is in it."""
    folder = tmp_path / "images" / "class [1]"
    folder.mkdir(parents=True)
    for number, name in enumerate(["a::b.png", "100% *.png", "q?#.png", "new\nline.png", "ü.png"]):
        (folder / name).write_bytes(encoded(class_picture(number, 0)))
    manifest = calibrated.snapshot_manifest("shop", run(folder.parent))
    assert (manifest.n_items, manifest.n_failed) == (5, 0)


def test_a_damaged_snapshot_is_built_again(run: Reindex, calibrated: Store, few: Path) -> None:
    """`reindex the catalogue`, as the message of a damaged snapshot says, mends it."""
    first = run(few)
    (index,) = Path(calibrated.url.removeprefix("file://")).glob("catalogs/shop/snapshots/*/*.index.bin")
    index.write_bytes(index.read_bytes()[:-10])
    with pytest.raises(CorruptArtifact, match="roll back or reindex"):
        calibrated.open_snapshot("shop", first)
    assert run(few) == first
    calibrated.open_snapshot("shop", first)


# what an item may hold


ODD = {"": "", "a:b": '{["\\', "line": "one\ntwo", "zero": "\x00", "face": "\U0001f600", "null": "null"}


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_whatever_a_manifest_holds_reaches_the_snapshot(
    run: Reindex, calibrated: Store, few: Path, tmp_path: Path, suffix: str
) -> None:
    """Odd characters, no attributes, and a label that is None or missing: "" in the snapshot."""
    image = str(few / "class_000" / "0.png")
    rows = [
        {"id": 'odd "\n\u202e', "uri": image, "label": "ü/\\", **ODD},
        {"id": "none", "uri": image, "label": None, **dict.fromkeys(ODD)},
        {"id": "bare", "uri": image},
    ]
    manifest = tmp_path / f"manifest.{suffix}"
    if suffix == "jsonl":
        manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        pyarrow.parquet.write_table(pa.Table.from_pylist(rows), manifest)
    snapshot = calibrated.open_snapshot("shop", run(manifest))
    odd, none, bare = snapshot.items.take(np.arange(3))
    assert (odd.id, odd.label, odd.attributes) == (rows[0]["id"], "ü/\\", ODD)
    assert (none.id, none.label, none.attributes) == ("none", "", dict.fromkeys(ODD, ""))
    assert (bare.id, bare.label) == ("bare", "")
    assert bare.attributes == ({} if suffix == "jsonl" else dict.fromkeys(ODD, ""))
    assert odd.uri == none.uri == bare.uri == f"file://{image}"


@pytest.mark.parametrize("row", [{"id": "\udcff"}, {"id": "1", "label": "b\udcff"}, {"id": "1", "maker": "\udcff"}])
def test_a_name_that_is_no_text_is_refused(
    run: Reindex, calibrated: Store, tmp_path: Path, row: dict[str, str]
) -> None:
    """It could be stored nowhere and shown to nobody; the message shows it escaped."""
    manifest = tmp_path / "manifest.jsonl"
    manifest.write_text(json.dumps({"uri": "a.png", **row}) + "\n")
    with pytest.raises(InvalidManifest, match=r"manifest\.jsonl: item .* has text that is not UTF-8"):
        run(manifest)
    assert calibrated.catalogs() == []


# what cannot be built


def test_an_empty_catalogue_leaves_the_old_snapshot(run: Reindex, calibrated: Store, few: Path, tmp_path: Path) -> None:
    before = run(few)
    (tmp_path / "empty").mkdir()
    with pytest.raises(EmptyCatalog, match="expected at least one image, found none"):
        run(tmp_path / "empty")
    with pytest.raises(InvalidManifest, match="found nothing there"):
        run(tmp_path / "nothing there")
    assert calibrated.current("shop") == before


def test_too_few_items_for_the_index_leave_the_old_snapshot(run: Reindex, calibrated: Store, few: Path) -> None:
    before = run(few)
    with pytest.raises(InvalidInput, match=r"IVF4,nprobe=4: expected at least 156 items .* found 20"):
        run(few, index_spec="IVF4,nprobe=4")
    assert calibrated.current("shop") == before


def test_an_index_that_misses_matches_is_not_published(run: Reindex, calibrated: Store, images: Path) -> None:
    """Recall of an approximate index is measured at the threshold in use, and a bad one is refused."""
    before = run(images, index_spec="IVF7,nprobe=6")
    manifest = calibrated.snapshot_manifest("shop", before)
    measured = manifest.index_details["measured_recall"]
    assert 0.9 == measured["least"] <= measured["value"] == manifest.index_recall
    assert 0.9 < manifest.index_recall_low < manifest.index_recall <= manifest.index_recall_high
    assert 200 < measured["n_queries"] < measured["n_matches"]
    with pytest.raises(ValidationFailed, match=r"IVF7,nprobe=1: it finds .*% .* raise nprobe or ef, or use Exact"):
        run(images, index_spec="IVF7,nprobe=1")
    assert calibrated.current("shop") == before


def test_the_manifest_states_what_the_index_promises(run: Reindex, calibrated: Store, few: Path) -> None:
    """A complete one its choice and slack; an approximate one what it misses, and the recall that it had to have."""
    exact = calibrated.snapshot_manifest("shop", run(few))
    assert {"bytes_at_level_1", "lists", "slack", "expected_microseconds"} <= set(exact.index_details)
    assert exact.index_details["complete"]
    assert "measured_recall" not in exact.index_details
    graph = calibrated.snapshot_manifest("shop", run(few, index_spec="HNSW8,ef=40"))
    assert not graph.index_details["complete"]
    assert graph.index_details["measured_recall"]["least"] == 0.9 <= graph.index_recall
    assert "is missed" in graph.index_details["cannot_promise"]


# which bundle


def test_the_only_bundle_is_taken(calibrated: Store, request_of: ReindexRequest, tiny_bundle: Bundle) -> None:
    assert settle_bundle(calibrated, request_of).bundle_digest == tiny_bundle.digest


def test_the_live_snapshots_bundle_is_kept(
    run: Reindex, calibrated: Store, few: Path, request_of: ReindexRequest, tiny_bundle: Bundle, other_bundle: Bundle
) -> None:
    """A second bundle in the store does not change what a running catalogue uses; a new catalogue must say."""
    run(few)
    calibrated.add_bundle(other_bundle.directory)
    assert settle_bundle(calibrated, request_of).bundle_digest == tiny_bundle.digest
    with pytest.raises(InvalidInput, match="2 bundles, name one of them"):
        settle_bundle(calibrated, replace(request_of, catalog="new"))


def test_unknown_bundle_and_missing_operating_point(
    calibrated: Store, request_of: ReindexRequest, other_bundle: Bundle
) -> None:
    with pytest.raises(UnknownBundle, match="no bundle 'abc'"):
        plan(calibrated, "job", replace(request_of, bundle_digest="abc"))
    calibrated.add_bundle(other_bundle.directory)
    with pytest.raises(UnknownOperatingPoint, match="run `retrieval calibrate`"):
        plan(calibrated, "job", replace(request_of, bundle_digest=other_bundle.digest))
    assert calibrated.objects.names("staging") == [], "a job that cannot run leaves nothing behind"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"catalog": "../shop"}, "catalogue: expected"),
        ({"catalog": ""}, "catalogue: expected"),
        ({"manifest_uri": ""}, "manifest_uri"),
        ({"index_spec": "HNSW"}, "index: expected"),
        ({"max_failed_share": -0.1}, "max_failed_share"),
        ({"max_failed_share": 1.1}, "max_failed_share"),
        ({"max_failed_share": float("nan")}, "max_failed_share"),
    ],
)
def test_requests_that_can_never_work(change: dict[str, Any], message: str, request_of: ReindexRequest) -> None:
    request_of.check()
    with pytest.raises(InvalidInput, match=message):
        replace(request_of, **change).check()


# rolling back


@pytest.fixture
def three(run: Reindex, few: Path) -> list[SnapshotId]:
    """Three snapshots, the last one live."""
    ids = []
    for number, created_at in enumerate([CREATED_AT, LATER, LATEST]):
        (few / "class_000" / f"new{number}.png").write_bytes(encoded(class_picture(600 + number, 0)))
        ids.append(run(few, created_at=created_at))
    return ids


def test_rolling_back(calibrated: Store, three: list[SnapshotId]) -> None:
    """Step by step to the one before, or to any by its id, also forward again."""
    assert roll_back(calibrated, "shop", SnapshotId("")).manifest.id == three[1] == calibrated.current("shop")
    assert roll_back(calibrated, "shop", SnapshotId("")).manifest.id == three[0] == calibrated.current("shop")
    with pytest.raises(UnknownSnapshot, match="no snapshot older than the live one"):
        roll_back(calibrated, "shop", SnapshotId(""))
    assert roll_back(calibrated, "shop", three[2]).manifest.id == three[2] == calibrated.current("shop")


def test_rolling_back_to_what_cannot_be_served(
    calibrated: Store, three: list[SnapshotId], cohort_point: OperatingPoint, cohort_score: Score
) -> None:
    """An unknown or damaged snapshot, or one of another score: the live one stays."""
    with pytest.raises(UnknownSnapshot, match=r"no snapshot .*abc"):
        roll_back(calibrated, "shop", SnapshotId("abc"))
    with pytest.raises(UnknownCatalog, match="'other' has no live snapshot"):
        roll_back(calibrated, "other", SnapshotId(""))
    folder = Path(calibrated.url.removeprefix("file://")) / "catalogs" / "shop" / "snapshots" / three[0]
    next(folder.glob("*.index.bin")).write_bytes(b"")
    with pytest.raises(CorruptArtifact, match="does not have the checksum of its manifest"):
        roll_back(calibrated, "shop", three[0])
    activate(calibrated, cohort_point, cohort_score)
    with pytest.raises(BundleMismatch, match="activate an operating point with that score first"):
        roll_back(calibrated, "shop", three[1])
    assert calibrated.current("shop") == three[2]
