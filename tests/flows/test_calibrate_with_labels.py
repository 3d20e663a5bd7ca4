"""Calibration for catalogues whose items carry labels: it counts searches in a labelled gallery, and strangers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from retrieval.contract.bundle import BundleDigest
from retrieval.contract.canonical import json_bytes
from retrieval.contract.class_terms import ClassTerms
from retrieval.contract.operating_point import OperatingPoint
from retrieval.contract.score import Score
from retrieval.engine.labelled_embeddings import LabelledEmbeddings
from retrieval.flows.calibrate import CalibrationTarget, calibrate
from tests.crowds import isolated
from tests.stores import CREATED_AT


def run(
    data: LabelledEmbeddings, scores: Sequence[Score], *, target: CalibrationTarget | None = None
) -> OperatingPoint:
    return calibrate(
        data,
        bundle=BundleDigest("bundle"),
        scores=scores,
        target=target or CalibrationTarget(),
        rng=np.random.default_rng(0),
        created_at=CREATED_AT,
    )


@pytest.fixture(scope="module")
def data() -> LabelledEmbeddings:
    return replace(isolated(60, 6), n_rounds=3)


@pytest.fixture(scope="module")
def point(data: LabelledEmbeddings) -> OperatingPoint:
    return run(data, [Score(), Score(classes=ClassTerms(pull=0.9))])


def test_the_score_that_knows_the_classes_wins_where_images_scatter_around_them(point: OperatingPoint) -> None:
    by_kind = {entry.kind: entry for entry in point.compared}
    assert by_kind["catalogue cosine"].tar > by_kind["cosine"].tar + 0.05
    assert point.score_kind == "catalogue cosine"
    assert point.choice.n_images == 360


def test_rates_count_queries_and_items(data: LabelledEmbeddings, point: OperatingPoint) -> None:
    """Pair by pair, in every round."""
    vectors = data.scored(Score(classes=ClassTerms(pull=0.9)))
    counts = np.zeros((2, 2))
    for queries, items in vectors.rounds:
        accepted = vectors.query[queries] @ vectors.gallery[items].T >= np.float32(point.threshold)
        same = vectors.codes[queries, None] == vectors.gallery_codes[items]
        counts += [[accepted[same].sum(), same.sum()], [accepted[~same].sum(), (~same).sum()]]
    assert point.choice.tar == pytest.approx(counts[0, 0] / counts[0, 1])
    assert point.choice.far == pytest.approx(counts[1, 0] / counts[1, 1])


def test_strangers_are_measured_and_promised(data: LabelledEmbeddings, point: OperatingPoint) -> None:
    assert point.strangers is not None
    vectors = data.strangers(Score(classes=ClassTerms(pull=0.9)))
    accepted = vectors.query @ vectors.gallery.T >= np.float32(point.threshold)
    other = vectors.codes[:, None] != vectors.gallery_codes
    assert point.strangers.far == pytest.approx(accepted[other].mean())
    assert point.strangers.far in point.strangers.interval
    assert point.strangers.interval.high < point.strangers.predicted(20).high


def test_the_record_keeps_all_of_it(point: OperatingPoint) -> None:
    data = json_bytes(point.to_json())
    assert OperatingPoint.from_json(data, "here") == point
    assert OperatingPoint.id_of(data, "here") == point.id


def test_a_cap_is_drawn_before_the_rounds(data: LabelledEmbeddings) -> None:
    target = CalibrationTarget(certified_max_images=2)
    point = run(data, [Score(classes=ClassTerms(pull=0.9))], target=target)
    assert point.certificate is not None
    assert point.certificate.max_images == 2
