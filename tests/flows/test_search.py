"""A reply holds exactly what the definition accepts, all from one snapshot, also while snapshots change under load."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import Executor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from retrieval.contract.bundle import Bundle
from retrieval.contract.limits import DEFAULT_LIMITS, ImageLimits
from retrieval.contract.manifest import read_manifest
from retrieval.contract.operating_point import OperatingPoint
from retrieval.contract.score import Score
from retrieval.engine.encoder import Encoder
from retrieval.engine.index import gpu_index
from retrieval.engine.index.exact_index import ExactIndex
from retrieval.engine.index.gpu_index import GpuIndex
from retrieval.engine.index.gpu_tiles import Device
from retrieval.engine.live import needs_reindex
from retrieval.engine.matches import SearchResult
from retrieval.engine.snapshot import SnapshotId
from retrieval.engine.store import Store
from retrieval.engine.store.points import last_active_key
from retrieval.errors import (
    BundleMismatch,
    CorruptArtifact,
    DeviceUnavailable,
    ImageTooLarge,
    InvalidEmbeddings,
    InvalidImage,
    InvalidInput,
    NotReady,
    UnknownBundle,
    UnknownCatalog,
    UnknownOperatingPoint,
)
from retrieval.flows.reindex import ReindexRequest
from retrieval.flows.search import MAX_LIMIT, QueryEmbedding, Searcher
from tests.pictures import class_picture, encoded, jpeg, truncated_jpeg, write_class_folders
from tests.stores import CREATED_AT, activate, reindex

Vector = NDArray[np.float32]
N_CLASSES, N_IMAGES = 30, 4


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """120 pictures of 30 classes; read only."""
    return write_class_folders(tmp_path_factory.mktemp("images"), n_classes=N_CLASSES, n_images=N_IMAGES)


@pytest.fixture
def index(calibrated: Store, tiny_encoder: Encoder, pool: Executor) -> Callable[..., SnapshotId]:
    """Reindex a folder into the calibrated store."""

    def run(folder: Path, *, catalog: str = "shop", created_at: str = CREATED_AT) -> SnapshotId:
        request = ReindexRequest(catalog=catalog, manifest_uri=str(folder))
        return reindex(calibrated, tiny_encoder, pool, request, created_at=created_at)

    return run


@pytest.fixture
def searcher(calibrated: Store) -> Searcher:
    """A searcher over the calibrated store with nothing live yet."""
    return make_searcher(calibrated)


def make_searcher(
    store: Store, *, limits: ImageLimits = DEFAULT_LIMITS, catalogs: tuple[str, ...] = (), device: str = "cpu"
) -> Searcher:
    return Searcher(
        store,
        open_encoder=lambda bundle: Encoder.open(bundle, threads=1, max_batch=8),
        limits=limits,
        max_waiting=1000,
        threads=2,
        catalogs=catalogs,
        device=device,
    )


def search(
    searcher: Searcher, query: bytes | QueryEmbedding, *, catalog: str = "shop", limit: int = 100
) -> SearchResult:
    result: SearchResult = run_in_loop(searcher, lambda: searcher.search(catalog, query, limit=limit))
    return result


def run_in_loop(searcher: Searcher, act: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
    """Run one coroutine; batchers belong to one loop, so they are closed with it."""

    async def main() -> Any:
        try:
            return await act()
        finally:
            for live in searcher.live.values():
                await live.batcher.settle()
            await searcher._searches.settle()

    return asyncio.run(main())


def gallery(store: Store, images: Path, encoder: Encoder) -> tuple[list[str], Vector]:
    """Ids and embeddings of all items, computed without the index."""
    items = read_manifest(str(images))
    data = [Path(item.uri.removeprefix("file://")).read_bytes() for item in items]
    return [item.id for item in items], encoder.embed_images(data)


QUERIES = [encoded(class_picture(c, v, spread=s)) for c, v, s in [(0, 50, 40), (7, 51, 60), (29, 52, 20), (800, 0, 40)]]


@pytest.mark.parametrize("kind", ["cosine", "cohort"])
@pytest.mark.parametrize("query", QUERIES, ids=["near", "far", "nearest", "stranger"])
def test_matches_equal_brute_force(
    kind: str,
    query: bytes,
    index: Callable[..., SnapshotId],
    searcher: Searcher,
    calibrated: Store,
    images: Path,
    tiny_encoder: Encoder,
    cosine_point: OperatingPoint,
    cohort_point: OperatingPoint,
    cohort_score: Score,
) -> None:
    """Every pair scored one by one: the same items in the same order, with cosine, score and probability."""
    point, score = (cosine_point, Score()) if kind == "cosine" else (cohort_point, cohort_score)
    activate(calibrated, point, score)
    snapshot = index(images)
    searcher.refresh()
    result = search(searcher, query)

    ids, embeddings = gallery(calibrated, images, tiny_encoder)
    embedding = tiny_encoder.embed_images([query])
    cosines = embeddings @ embedding[0]
    scores = cosines - (score.density(embeddings) + score.density(embedding)) / 2
    accepted = sorted(np.flatnonzero(scores >= point.threshold), key=lambda row: -scores[row])
    assert result.n_total == len(accepted) == len(result.matches)
    assert [match.item.id for match in result.matches] == [ids[row] for row in accepted]
    for match, row in zip(result.matches, accepted, strict=True):
        assert match.similarity == pytest.approx(cosines[row], abs=2e-6)  # sums in another order
        assert match.score == pytest.approx(scores[row], abs=2e-6)
        assert match.probability == pytest.approx(point.calibrator.probability([match.score])[0])
        assert match.item.label == match.item.id.split("/")[0]
    assert (result.live.snapshot.manifest.id, result.live.point) == (snapshot, point)


@pytest.fixture
def live(index: Callable[..., SnapshotId], searcher: Searcher, images: Path) -> Searcher:
    """A searcher that serves the catalogue shop."""
    index(images)
    (change,) = searcher.refresh()
    assert change.live is not None
    return searcher


def test_nearest_first_and_probability_falls(live: Searcher) -> None:
    result = search(live, encoded(class_picture(3, 0)))
    assert result.matches[0].item.id == "class_003/0.png"
    assert result.matches[0].similarity == pytest.approx(1, abs=1e-5)
    assert result.matches[0].similarity <= 1, "a cosine is never above 1, whatever rounding says"
    scores = [match.score for match in result.matches]
    assert scores == sorted(scores, reverse=True)
    probabilities = [match.probability for match in result.matches]
    assert probabilities == sorted(probabilities, reverse=True)


def test_no_match_is_a_normal_answer(live: Searcher) -> None:
    embedding = probe(live)
    opposite = QueryEmbedding(-embedding, live.live["shop"].bundle.digest)
    result = search(live, opposite)
    assert (result.matches, result.n_total) == ((), 0)


def test_the_limit_cuts_and_says_so(live: Searcher) -> None:
    """The first of the full list, with the number there would have been."""
    query = encoded(class_picture(3, 0))
    everything = search(live, query)
    assert everything.n_total >= 3
    cut = search(live, query, limit=2)
    assert cut.matches == everything.matches[:2]
    assert cut.n_total == everything.n_total
    assert search(live, query, limit=everything.n_total).matches == everything.matches


@pytest.mark.parametrize("limit", [0, -1, MAX_LIMIT + 1])
def test_unusable_limits(live: Searcher, limit: int) -> None:
    with pytest.raises(InvalidInput, match=f"limit: expected 1 to {MAX_LIMIT}, found {limit}"):
        search(live, QUERIES[0], limit=limit)


@pytest.mark.parametrize("image", [b"", b"no image", truncated_jpeg()])
def test_what_is_no_image_harms_nobody(live: Searcher, image: bytes) -> None:
    """A poisoned query fails alone, in company of good ones."""

    async def together() -> list[SearchResult | BaseException]:
        good = [live.search("shop", QUERIES[0]) for _ in range(3)]
        return await asyncio.gather(good[0], live.search("shop", image), *good[1:], return_exceptions=True)

    results = run_in_loop(live, together)
    assert [isinstance(result, SearchResult) for result in results] == [True, False, True, True]
    assert isinstance(results[1], InvalidImage)


def test_images_over_the_limit(calibrated: Store, index: Callable[..., SnapshotId], images: Path) -> None:
    index(images)
    searcher = make_searcher(calibrated, limits=ImageLimits(pixels=1000))
    searcher.refresh()
    with pytest.raises(ImageTooLarge, match="64 x 64 pixels, the limit is 1,000"):
        search(searcher, jpeg())


# queries that were embedded elsewhere


def probe(searcher: Searcher) -> Vector:
    embedding: Vector = searcher.live["shop"].bundle.probe()[1][0]
    return embedding


def test_an_embedding_finds_what_its_image_finds(live: Searcher, tiny_encoder: Encoder) -> None:
    embedding = tiny_encoder.embed_images([QUERIES[0]])[0]
    by_embedding = search(live, QueryEmbedding(embedding, tiny_encoder.bundle.digest))
    by_image = search(live, QUERIES[0])
    assert [match.item for match in by_embedding.matches] == [match.item for match in by_image.matches]


def test_an_embedding_of_another_model_is_refused(live: Searcher, other_bundle: Bundle) -> None:
    for digest in (other_bundle.digest, ""):
        with pytest.raises(BundleMismatch, match=rf"made by bundle .*{digest or 'none stated'}"):
            search(live, QueryEmbedding(probe(live), digest))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda v: v[:-1], r"expected an embedding of 32 values, found 31 in shape \(31,\)"),
        (lambda v: v[:0], "expected an embedding of 32 values, found 0"),
        (lambda v: v[None], "expected an embedding of 32 values"),
        (lambda v: np.float32(1).reshape(()), "expected an embedding of 32 values"),
        (lambda v: v * np.float32(2), "expected rows of norm 1, found 2"),
        (lambda v: v * np.float32(np.nan), "expected rows of norm 1, found nan"),
        (lambda v: np.where(np.arange(32) == 3, np.inf, v).astype(np.float32), "expected rows of norm 1, found inf"),
    ],
)
def test_unusable_embeddings(live: Searcher, change: Callable[[Vector], Vector], message: str) -> None:
    with pytest.raises(InvalidEmbeddings, match=message):
        search(live, QueryEmbedding(change(probe(live)), live.live["shop"].bundle.digest))


# what is live


def test_unknown_catalogues(live: Searcher, calibrated: Store) -> None:
    with pytest.raises(UnknownCatalog, match="'other' is not served here; served are: shop"):
        search(live, QUERIES[0], catalog="other")
    searcher = make_searcher(calibrated, catalogs=("third",))
    with pytest.raises(NotReady, match="'shop' is not live: the server has just started"):
        search(searcher, QUERIES[0])
    searcher.refresh()
    with pytest.raises(UnknownCatalog, match="none yet; make one with `retrieval reindex`"):
        search(searcher, QUERIES[0])


def test_only_named_catalogues_are_served(calibrated: Store, index: Callable[..., SnapshotId], images: Path) -> None:
    """One that has no snapshot yet is not ready, and goes live when it has one."""
    index(images, catalog="first")
    index(images, catalog="second")
    searcher = make_searcher(calibrated, catalogs=("second", "third"))
    changes = {change.catalog: change for change in searcher.refresh()}
    assert changes["second"].live is not None
    assert isinstance(changes["third"].problem, UnknownCatalog)
    assert searcher.refresh() == [], "a problem is reported once"
    with pytest.raises(NotReady, match=r"'third' is not live: .*no live snapshot"):
        search(searcher, QUERIES[0], catalog="third")
    with pytest.raises(UnknownCatalog, match="'first' is not served here; served are: second"):
        search(searcher, QUERIES[0], catalog="first")
    index(images, catalog="third")
    assert [change.catalog for change in searcher.refresh()] == ["third"]
    assert search(searcher, QUERIES[0], catalog="third").n_total > 0


def test_nothing_new_changes_nothing(live: Searcher) -> None:
    before = live.live["shop"]
    assert live.refresh() == []
    assert live.live["shop"] is before


def test_a_new_operating_point_goes_live(live: Searcher, calibrated: Store, cosine_point: OperatingPoint) -> None:
    """The model stays loaded; the threshold changes with the reply's operating point."""
    before = live.live["shop"]
    strict = replace(cosine_point, choice=replace(cosine_point.choice, threshold=0.9999))
    activate(calibrated, strict, Score())
    (change,) = live.refresh()
    assert change.live is not None
    assert change.live.batcher is before.batcher
    result = search(live, encoded(class_picture(3, 0)))
    assert (result.live.point.id, [match.item.id for match in result.matches]) == (strict.id, ["class_003/0.png"])


def test_models_are_shared_between_catalogues(
    calibrated: Store, index: Callable[..., SnapshotId], images: Path, searcher: Searcher
) -> None:
    index(images, catalog="first")
    index(images, catalog="second")
    searcher.refresh()
    assert searcher.live["first"].batcher is searcher.live["second"].batcher


# what cannot be served


@pytest.fixture
def replaced(live: Searcher, index: Callable[..., SnapshotId], tmp_path: Path) -> SnapshotId:
    """A newer snapshot is published that the live searcher has not seen."""
    folder = write_class_folders(tmp_path / "new", n_classes=5, n_images=2, first_class=100)
    return index(folder, created_at="2027-01-01T00:00:00+00:00")


def damage_index(store: Store, snapshot: SnapshotId) -> None:
    (path,) = Path(store.url.removeprefix("file://")).glob(f"catalogs/shop/snapshots/{snapshot}/*.index.bin")
    path.write_bytes(path.read_bytes()[:-10])


def remove_bundle(store: Store, snapshot: SnapshotId) -> None:
    for digest in store.bundles():
        store.objects.delete(f"bundles/{digest}/contract.json")


def damage_bundle(store: Store, snapshot: SnapshotId) -> None:
    path = store.bundle(store.only_bundle()).model_path
    path.write_bytes(path.read_bytes()[:-1])


def deactivate(store: Store, snapshot: SnapshotId) -> None:
    store.objects.delete(f"bundles/{store.only_bundle()}/operating_points/ACTIVE")


@pytest.mark.parametrize(
    ("damage", "error"),
    [
        (damage_index, CorruptArtifact),
        (remove_bundle, UnknownBundle),
        (damage_bundle, CorruptArtifact),
        (deactivate, UnknownOperatingPoint),
    ],
)
def test_what_cannot_be_served_leaves_the_old_live(
    damage: Callable[[Store, SnapshotId], None],
    error: type[Exception],
    live: Searcher,
    replaced: SnapshotId,
    calibrated: Store,
) -> None:
    """Queries go on from the old snapshot, the problem is reported once, and a fresh server refuses it."""
    before = live.live["shop"]
    damage(calibrated, replaced)
    (change,) = live.refresh()
    assert change.live is None
    assert isinstance(change.problem, error)
    assert live.refresh() == []
    assert search(live, QUERIES[0]).live is before
    fresh = make_searcher(calibrated)
    fresh.refresh()
    with pytest.raises(NotReady, match="catalogue 'shop' is not live"):
        search(fresh, QUERIES[0])


def test_a_snapshot_of_another_score_is_refused(
    live: Searcher, calibrated: Store, cohort_point: OperatingPoint, cohort_score: Score
) -> None:
    """A threshold for one score is never applied to another: the old pair stays until the catalogue is reindexed."""
    before = live.live["shop"]
    activate(calibrated, cohort_point, cohort_score)
    (change,) = live.refresh()
    assert isinstance(change.problem, BundleMismatch)
    assert "reindex the catalogue" in str(change.problem)
    assert search(live, QUERIES[0]).live is before


def test_a_restart_serves_the_last_pair_that_belonged_together(
    live: Searcher,
    index: Callable[..., SnapshotId],
    images: Path,
    calibrated: Store,
    cosine_point: OperatingPoint,
    cohort_point: OperatingPoint,
    cohort_score: Score,
) -> None:
    """Not the pair of the build, if another threshold of the same score was active since; the reindex ends the wait."""
    stricter = replace(cosine_point, choice=replace(cosine_point.choice, threshold=0.99))
    activate(calibrated, stricter, Score())
    activate(calibrated, cohort_point, cohort_score)
    assert needs_reindex(calibrated, cohort_point) == ("shop",)
    fresh = make_searcher(calibrated)
    pair, problem = fresh.refresh()
    assert pair.live is not None
    assert pair.live.point == stricter
    assert isinstance(problem.problem, BundleMismatch)
    assert search(fresh, QUERIES[0]).live is pair.live
    assert fresh.refresh() == []
    index(images)
    (change,) = fresh.refresh()
    assert change.live is not None
    assert change.live.point == cohort_point
    assert needs_reindex(calibrated, cohort_point) == ()


def test_the_pair_of_the_build_serves_if_nothing_else_is_recorded(
    live: Searcher, calibrated: Store, cosine_point: OperatingPoint, cohort_point: OperatingPoint, cohort_score: Score
) -> None:
    """A snapshot names its operating point; one of an earlier version does not, and then nothing can be served."""
    activate(calibrated, cohort_point, cohort_score)
    calibrated.objects.delete(last_active_key(cosine_point.bundle_digest, cosine_point.score_digest))
    fresh = make_searcher(calibrated)
    assert [change.live and change.live.point for change in fresh.refresh()] == [cosine_point, None]
    snapshot = calibrated.current("shop")
    path = Path(calibrated.url.removeprefix("file://")) / "catalogs/shop/snapshots" / snapshot / "manifest.json"
    manifest = json.loads(path.read_text())
    assert manifest.pop("operating_point_id") == cosine_point.id
    path.write_text(json.dumps(manifest))
    older = make_searcher(calibrated)
    (change,) = older.refresh()
    assert isinstance(change.problem, BundleMismatch)
    assert older.live == {}


def test_a_snapshot_of_another_dimension_is_refused(live: Searcher, replaced: SnapshotId, calibrated: Store) -> None:
    path = Path(calibrated.url.removeprefix("file://")) / "catalogs/shop/snapshots" / replaced / "manifest.json"
    path.write_text(path.read_text().replace('"dimension": 32', '"dimension": 31'))
    (change,) = live.refresh()
    assert isinstance(change.problem, BundleMismatch)
    assert "vectors of dimension 31" in str(change.problem)


# on a GPU


def test_on_a_gpu_the_answers_are_the_same(live: Searcher, calibrated: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """The search that is written for GPUs, here on the CPU: equal in every bit, also for callers who ask together."""
    monkeypatch.setattr(gpu_index, "devices_of", lambda device: [Device("cpu")])
    on_gpu = make_searcher(calibrated, device="cuda")
    on_gpu.refresh()
    assert isinstance(on_gpu.live["shop"].snapshot.index, GpuIndex)
    assert isinstance(live.live["shop"].snapshot.index, ExactIndex)

    async def together(searcher: Searcher) -> list[SearchResult]:
        return await asyncio.gather(*(searcher.search("shop", query) for query in QUERIES * 3))

    expected = run_in_loop(live, lambda: together(live))
    found = run_in_loop(on_gpu, lambda: together(on_gpu))
    assert [(result.n_total, result.matches) for result in found] == [
        (result.n_total, result.matches) for result in expected
    ]


def test_a_snapshot_that_the_gpu_cannot_hold_is_refused(
    live: Searcher, calibrated: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A GPU that is missing, or has no room for a new snapshot beside the live one: nothing falls back to the CPU."""

    def full(*_: object, **__: object) -> None:
        raise DeviceUnavailable("device cuda:0: 512 bytes could not be moved there, perhaps it has no room")

    monkeypatch.setattr(GpuIndex, "load", full)
    on_gpu = make_searcher(calibrated, device="cuda")
    (change,) = on_gpu.refresh()
    assert isinstance(change.problem, DeviceUnavailable)
    with pytest.raises(
        NotReady, match=r"room for it beside the live one: .* no room; a server with RETRIEVAL_DEVICE=cpu"
    ):
        search(on_gpu, QUERIES[0])


# swapping under load


@pytest.mark.slow
def test_swapping_under_load(
    live: Searcher, index: Callable[..., SnapshotId], calibrated: Store, cosine_point: OperatingPoint, tmp_path: Path
) -> None:
    """Snapshots and thresholds change while many search: nobody fails, and each reply is of one pair throughout."""
    strict = replace(cosine_point, choice=replace(cosine_point.choice, threshold=0.99))
    calibrated.put_operating_point(strict)
    old = calibrated.current("shop")
    folder = write_class_folders(tmp_path / "other", n_classes=N_CLASSES, n_images=1, first_class=0)
    new = index(folder)
    query = encoded(class_picture(3, 0))
    # what a reply from each pair must hold
    expected: dict[tuple[str, str], list[str]] = {}
    for snapshot, point in pairs_of(old, new, cosine_point, strict):
        calibrated.publish("shop", snapshot)
        calibrated.activate(point.bundle_digest, point.id)
        live.refresh()
        expected[snapshot, point.id] = [match.item.id for match in search(live, query).matches]
    assert len({tuple(ids) for ids in expected.values()}) > 1

    async def main() -> list[SearchResult]:
        swapping = True
        results: list[SearchResult] = []

        async def ask() -> None:
            while swapping:
                results.append(await live.search("shop", query))

        askers = [asyncio.create_task(ask()) for _ in range(8)]
        for _ in range(4):
            for snapshot, point in pairs_of(old, new, cosine_point, strict):
                calibrated.publish("shop", snapshot)
                calibrated.activate(point.bundle_digest, point.id)
                changes = await asyncio.to_thread(live.refresh)
                assert [change.problem for change in changes] == [None]
                await asyncio.sleep(0.01)
        swapping = False
        await asyncio.gather(*askers)
        return results

    results: list[SearchResult] = run_in_loop(live, main)
    seen = {(result.live.snapshot.manifest.id, result.live.point.id) for result in results}
    assert seen == set(expected)
    for result in results:
        key = result.live.snapshot.manifest.id, result.live.point.id
        assert [match.item.id for match in result.matches] == expected[key]


def pairs_of(
    old: SnapshotId, new: SnapshotId, point: OperatingPoint, strict: OperatingPoint
) -> Iterator[tuple[SnapshotId, OperatingPoint]]:
    """All four pairs of a snapshot and an operating point, each different from the one before."""
    yield from [(old, point), (new, point), (new, strict), (old, strict)]
