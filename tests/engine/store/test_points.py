"""At most one operating point of a bundle is active; activating is a separate step; a changed file is detected."""

from __future__ import annotations

from dataclasses import replace

import pytest

from retrieval.contract.bundle import Bundle
from retrieval.contract.operating_point import OperatingPoint, OperatingPointId
from retrieval.contract.score import Score
from retrieval.engine.store import Store
from retrieval.errors import (
    BundleMismatch,
    CorruptArtifact,
    UnknownOperatingPoint,
)
from tests.engine.store.artefacts import the_only


@pytest.fixture
def point(store: Store, tiny_bundle: Bundle, cosine_point: OperatingPoint) -> OperatingPoint:
    """A stored operating point that is not active."""
    store.add_bundle(tiny_bundle.directory)
    store.put_score(tiny_bundle.digest, Score())
    store.put_operating_point(cosine_point)
    return cosine_point


def test_activating_is_a_separate_act(store: Store, point: OperatingPoint) -> None:
    bundle = point.bundle_digest
    assert store.operating_points(bundle).readable == [point]
    assert store.active_id(bundle) is None
    with pytest.raises(UnknownOperatingPoint, match="no active operating point"):
        store.active_operating_point(bundle)
    newer = replace(point, data_digest="new images", created_at="2027-01-01T00:00:00+00:00")
    store.put_operating_point(newer)
    assert store.operating_points(bundle).readable == [newer, point], "newest first"
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
