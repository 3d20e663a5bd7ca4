from __future__ import annotations

import numpy as np
import pytest

from retrieval.consistency.curves import operating_curves
from retrieval.consistency.pairs.selection import thresholds_at_far
from retrieval.consistency.thresholds.contamination import (
    KINDS,
    LabelledData,
    contaminate,
    threshold_under_contamination,
)
from retrieval.errors import InvalidEmbeddings, InvalidInput, NotEnoughEvidence


@pytest.fixture(scope="module")
def data(family) -> LabelledData:
    return LabelledData.of(*family(np.random.default_rng(0), n_classes=25, n_images=4, crowding=0.7))


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_changes_the_stated_share_and_nothing_else(data: LabelledData, kind: str) -> None:
    bad = contaminate(data, kind, 0.2, rng=np.random.default_rng(1))
    again = contaminate(data, kind, 0.2, rng=np.random.default_rng(1))
    assert bad.labels == again.labels
    assert np.array_equal(bad.query, again.query)
    relabelled = sum(a != b for a, b in zip(data.labels, bad.labels, strict=False))
    replaced = (bad.query[:100] != data.query).any(axis=1).sum()
    expected = {"random_labels": (20, 0, 100), "confusable_labels": (20, 0, 100), "outliers": (0, 20, 100)}
    assert (relabelled, replaced, len(bad.labels)) == expected.get(kind, (0, 0, 120))
    assert np.array_equal(bad.query, bad.gallery)


def test_a_double_filing_is_the_same_picture_under_another_class(data: LabelledData) -> None:
    bad = contaminate(data, "double_filing", 0.1, rng=np.random.default_rng(2))
    for row in range(100, 110):
        original = int(np.flatnonzero((data.query == bad.query[row]).all(axis=1))[0])
        assert bad.labels[row] != data.labels[original]


def test_a_confusable_label_is_that_of_the_nearest_image_of_another_class(data: LabelledData) -> None:
    bad = contaminate(data, "confusable_labels", 0.1, rng=np.random.default_rng(3))
    labels = np.array(data.labels)
    for row in np.flatnonzero(np.array(bad.labels) != labels):
        scores = np.where(labels == labels[row], -2, data.query @ data.query[row])
        assert bad.labels[row] == labels[scores.argmax()]


def test_the_curve_is_calibrating_on_bad_and_measuring_on_clean_data(data: LabelledData) -> None:
    curve = threshold_under_contamination(
        data, "random_labels", target_far=0.05, shares=(0.0, 0.3), n_repeats=2, rng=np.random.default_rng(4)
    )
    assert curve.points[0].thresholds == (curve.threshold,) * 2
    assert curve.points[0].fars == (curve.far,) * 2
    rng = np.random.default_rng(4)
    drawn = [contaminate(data, "random_labels", share, rng=rng) for share in (0.0, 0.0, 0.3, 0.3)][2:]
    for bad, threshold, far, tar in zip(
        drawn, curve.points[1].thresholds, curve.points[1].fars, curve.points[1].tars, strict=True
    ):
        assert threshold == thresholds_at_far(bad.query, bad.labels, fars=[0.05])[0]
        clean = operating_curves(data.query, data.labels, thresholds=[threshold])
        assert (far, tar) == (clean.pooled_far[0], clean.pooled_tar[0])
    # true pairs now counted among the negatives push the threshold up
    assert min(curve.points[1].thresholds) > curve.threshold
    assert "30 % bad" in str(curve)


def test_outliers_that_lie_together_raise_the_threshold_and_lone_ones_lower_it(data: LabelledData) -> None:
    # with so many dimensions, directions drawn at random are nearly orthogonal to each other and to everything
    wide = np.pad(data.query, ((0, 0), (0, 2000)))
    data = LabelledData(wide, wide, data.labels)
    together = np.tile(np.eye(1, 2032, dtype=np.float32), (3, 1))
    results = [
        threshold_under_contamination(
            data,
            "outliers",
            target_far=0.02,
            shares=(0.3,),
            n_repeats=3,
            rng=np.random.default_rng(5),
            outliers=outliers,
        )
        for outliers in ((together, together), None)
    ]
    assert min(results[0].points[0].thresholds) > results[0].threshold
    assert max(results[1].points[0].thresholds) < results[1].threshold


def test_what_makes_no_sense_is_refused(data: LabelledData) -> None:
    rng = np.random.default_rng(6)
    with pytest.raises(InvalidInput, match="kind"):
        contaminate(data, "typos", 0.1, rng=rng)
    with pytest.raises(InvalidInput, match="share"):
        contaminate(data, "outliers", 1.0, rng=rng)
    with pytest.raises(InvalidEmbeddings, match="32 columns"):
        contaminate(data, "outliers", 0.1, rng=rng, outliers=(data.query[:, :3], data.query[:, :3]))
    other = LabelledData(data.query, 2 * data.query, data.labels)
    with pytest.raises(InvalidEmbeddings, match="not cosine"):
        contaminate(other, "outliers", 0.1, rng=rng)
    one = LabelledData(data.query[:4], data.query[:4], data.labels[:4])
    with pytest.raises(NotEnoughEvidence, match="second class"):
        contaminate(one, "random_labels", 0.5, rng=rng)
    with pytest.raises(InvalidInput, match="n_repeats"):
        threshold_under_contamination(data, "outliers", target_far=0.1, n_repeats=0, rng=rng)
