"""Snapshot, bundle, operating point and score are served together only if they were made for each other."""

from __future__ import annotations

from concurrent.futures import Executor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from retrieval.contract.class_terms import ClassTerms
from retrieval.contract.operating_point import OperatingPoint
from retrieval.contract.score import Score
from retrieval.engine.batcher import Batcher
from retrieval.engine.encoder import Encoder
from retrieval.engine.live import Opener, last_matching_parts, matching_parts, needs_reindex
from retrieval.engine.snapshot import SnapshotId
from retrieval.engine.store import Store
from retrieval.errors import BundleMismatch, CorruptArtifact, UnknownBundle, UnknownOperatingPoint, UnknownSnapshot
from retrieval.flows.reindex import ReindexRequest
from tests.pictures import write_class_folders
from tests.stores import activate, reindex, with_labels


@pytest.fixture
def snapshot(calibrated: Store, tiny_encoder: Encoder, pool: Executor, tmp_path: Path) -> SnapshotId:
    """A live catalogue named shop, of six pictures."""
    folder = write_class_folders(tmp_path / "shop", n_classes=3, n_images=2)
    return reindex(calibrated, tiny_encoder, pool, ReindexRequest(catalog="shop", manifest_uri=str(folder)))


def test_what_belongs_together(
    calibrated: Store, snapshot: SnapshotId, cosine_point: OperatingPoint, tiny_encoder: Encoder
) -> None:
    parts = matching_parts(calibrated, "shop", snapshot)
    assert (parts.manifest.id, parts.bundle.digest) == (snapshot, tiny_encoder.bundle.digest)
    assert (parts.point, parts.score.digest) == (cosine_point, Score().digest)
    batcher = Batcher(lambda pixels: list(tiny_encoder.embed(np.stack(pixels))), name="model", max_batch=4)
    live = Opener(calibrated, lambda bundle: batcher).live("shop", snapshot)
    assert live.key == (snapshot, cosine_point.id)
    assert live.batcher is batcher
    assert len(live.snapshot.items) == live.snapshot.index.n_items == 6


def test_another_score_is_refused_with_both_ways_out(
    calibrated: Store, snapshot: SnapshotId, cohort_point: OperatingPoint, cohort_score: Score
) -> None:
    activate(calibrated, cohort_point, cohort_score)
    expected = (
        rf"catalogue 'shop': snapshot {snapshot} was built with score {Score().digest}, the active operating point "
        rf"{cohort_point.id} uses {cohort_score.digest}: reindex the catalogue, or activate an operating point"
    )
    with pytest.raises(BundleMismatch, match=expected):
        matching_parts(calibrated, "shop", snapshot)


def test_a_catalogue_score_is_another_score(
    calibrated: Store, tiny_encoder: Encoder, pool: Executor, tmp_path: Path, cosine_point: OperatingPoint
) -> None:
    """Other terms of the classes are refused, and the catalogue waits for a reindex; afterwards it is served."""
    folder = write_class_folders(tmp_path / "shop", n_classes=3, n_images=2)
    request = ReindexRequest(catalog="shop", manifest_uri=str(folder))
    point, score = with_labels(cosine_point, Score())
    activate(calibrated, point, score)
    first = reindex(calibrated, tiny_encoder, pool, request)
    assert matching_parts(calibrated, "shop", first).score.classes == score.classes
    assert needs_reindex(calibrated, point) == ()
    other = replace(score, classes=ClassTerms(pull=0.9))
    changed = replace(point, score_digest=other.digest)
    activate(calibrated, changed, other)
    assert needs_reindex(calibrated, changed) == needs_reindex(calibrated, cosine_point) == ("shop",)
    with pytest.raises(BundleMismatch, match=f"built with score {score.digest}.*uses {other.digest}"):
        matching_parts(calibrated, "shop", first)
    assert last_matching_parts(calibrated, "shop", first).point == point
    second = reindex(calibrated, tiny_encoder, pool, request)
    assert second != first
    assert matching_parts(calibrated, "shop", second).score.digest == other.digest


def test_another_dimension_is_refused(calibrated: Store, snapshot: SnapshotId) -> None:
    key = f"catalogs/shop/snapshots/{snapshot}/manifest.json"
    data = calibrated.objects.get(key)
    assert data is not None
    calibrated.objects.put(key, data.replace(b'"dimension": 32', b'"dimension": 31'))
    with pytest.raises(BundleMismatch, match=r"vectors of dimension 31, bundle \w+ with its cosine score makes 32"):
        matching_parts(calibrated, "shop", snapshot)


def test_what_is_missing_is_named(calibrated: Store, snapshot: SnapshotId, cosine_point: OperatingPoint) -> None:
    """The snapshot, the score, the operating point and the bundle, each with its own error."""
    bundle = f"bundles/{cosine_point.bundle_digest}"
    with pytest.raises(UnknownSnapshot, match="has no snapshot abc"):
        matching_parts(calibrated, "shop", SnapshotId("abc"))
    calibrated.objects.delete(f"{bundle}/scores")
    with pytest.raises(CorruptArtifact, match="missing from the store"):
        matching_parts(calibrated, "shop", snapshot)
    calibrated.objects.delete(f"{bundle}/operating_points/ACTIVE")
    with pytest.raises(UnknownOperatingPoint, match="has no active operating point"):
        matching_parts(calibrated, "shop", snapshot)
    calibrated.objects.delete(f"{bundle}/contract.json")
    with pytest.raises(UnknownBundle, match="is not in the store"):
        matching_parts(calibrated, "shop", snapshot)
