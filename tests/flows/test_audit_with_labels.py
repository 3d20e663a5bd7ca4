"""An audit of a point that was calibrated on searches in a labelled gallery counts such searches, and strangers."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from retrieval.consistency import Finding, is_passed
from retrieval.contract.bundle import BundleDigest
from retrieval.contract.canonical import json_bytes
from retrieval.contract.class_terms import ClassTerms
from retrieval.contract.manifest import Item
from retrieval.contract.operating_point import OperatingPoint
from retrieval.contract.score import Score
from retrieval.contract.typical_class import TypicalClass
from retrieval.engine.embedding import EmbeddedItems
from retrieval.engine.labelled_embeddings import LabelledEmbeddings
from retrieval.errors import NotEnoughEvidence
from retrieval.flows.audit import AuditLimits, AuditReport, AuditRequest, measure
from retrieval.flows.calibrate import CalibrationTarget, calibrate
from tests.crowds import isolated
from tests.stores import CREATED_AT

SCORE = Score(classes=ClassTerms(pull=0.7))
N_ROUNDS = 3


@pytest.fixture(scope="module")
def point() -> OperatingPoint:
    return calibrate(
        replace(isolated(60, 6), n_rounds=N_ROUNDS),
        bundle=BundleDigest("b" * 64),
        scores=[SCORE],
        target=CalibrationTarget(),
        rng=np.random.default_rng(0),
        created_at=CREATED_AT,
    )


@pytest.fixture(scope="module")
def data() -> LabelledEmbeddings:
    """30 new classes of 6 images and one of a single image, in mixed order."""
    rows = np.random.default_rng(1).permutation(181)
    return isolated(31, 6, seed=1).subset(rows)


def audited(point: OperatingPoint, data: LabelledEmbeddings, score: Score = SCORE) -> AuditReport:
    items = tuple(
        Item(id=f"image {row}", uri="", label=label, attributes={"camera": f"camera {row % 2}"})
        for row, label in enumerate(data.labels)
    )
    embedded = EmbeddedItems(items=items, embeddings=data.embeddings, failures=(), content_digest="c" * 64)
    request = AuditRequest(catalog="shop", manifest_uri="new.csv", group_by=("camera",))
    return measure(request, embedded, point, score, AuditLimits(), audit_id="a1", created_at=CREATED_AT)


@pytest.fixture(scope="module")
def report(point: OperatingPoint, data: LabelledEmbeddings) -> AuditReport:
    return audited(point, data)


class Counted:
    """Every pair of a query and an item of a round, with the images of both and whether it is accepted."""

    def __init__(self, data: LabelledEmbeddings, threshold: float) -> None:
        vectors = replace(data, n_rounds=N_ROUNDS).scored(SCORE)
        parts: list[list[NDArray[np.int64]]] = [[], [], []]
        for queries, items in vectors.rounds:
            accepted = vectors.query[queries] @ vectors.gallery[items].T >= np.float32(threshold)
            query, item = np.meshgrid(vectors.order[queries], vectors.gallery_order[items], indexing="ij")
            for part, values in zip(parts, (query, item, accepted), strict=True):
                part.append(values.ravel())
        self.query, self.item, accepted = (np.concatenate(part) for part in parts)
        self.accepted = accepted.astype(np.bool_)
        labels = np.array(data.labels)
        self.labels = labels[self.query], labels[self.item]
        self.same = self.labels[0] == self.labels[1]


def limits_of(report: AuditReport) -> dict[str, Finding]:
    return {finding.limit: finding for finding in report.findings}


def test_rates_are_those_of_a_count_of_all_searches(
    report: AuditReport, point: OperatingPoint, data: LabelledEmbeddings
) -> None:
    counted = Counted(data, point.threshold)
    assert report.far == pytest.approx(counted.accepted[~counted.same].mean())
    assert report.tar == pytest.approx(counted.accepted[counted.same].mean())
    assert (report.n_images, report.n_classes, report.n_single) == (181, 31, 1)
    assert sum(rates.positives for rates in report.classes) == counted.same.sum()
    for rates in report.classes:
        own = (counted.labels[0] == rates.name) | (counted.labels[1] == rates.name)
        assert rates.far == pytest.approx(counted.accepted[own & ~counted.same].mean())
    for rates in report.groups["camera"]:
        cameras = counted.query % 2, counted.item % 2
        inside = (cameras[0] == int(rates.name[-1])) & (cameras[1] == int(rates.name[-1]))
        assert rates.far == pytest.approx(counted.accepted[inside & ~counted.same].mean())
        assert rates.frr == pytest.approx(1 - counted.accepted[inside & counted.same].mean())
    for pair in report.confusion.pairs:
        between = [pair.first, pair.second]
        met = np.isin(counted.labels[0], between) & np.isin(counted.labels[1], between) & ~counted.same
        assert (pair.n_pairs, pair.n_accepted) == (met.sum(), counted.accepted[met].sum())
        for example in pair.examples:
            assert (data.labels[example.first_row], data.labels[example.second_row]) == (pair.first, pair.second)


def test_new_classes_like_those_calibrated_on_pass(report: AuditReport) -> None:
    assert report.passed
    assert list(limits_of(report)) == [
        "far_within_promise",
        "tar_within_promise",
        "stranger_far_within_promise",
        "group_far:camera",
        "certificate",
        "certificate_on_average",
    ]


def test_strangers_are_counted_in_the_gallery_of_all_images(
    report: AuditReport, point: OperatingPoint, data: LabelledEmbeddings
) -> None:
    query, gallery = SCORE.query_vectors(data.embeddings), SCORE.gallery(data.embeddings, data.labels).vectors
    labels = np.array(data.labels)
    accepted = (query @ gallery.T >= np.float32(point.threshold))[labels[:, None] != labels]
    assert report.strangers is not None
    assert point.strangers is not None
    assert report.strangers.far == pytest.approx(accepted.mean())
    assert report.strangers_promised == point.strangers.predicted(31)


def test_strangers_above_their_promise_fail_the_audit(point: OperatingPoint, data: LabelledEmbeddings) -> None:
    """Members may hold theirs: the two rates have a promise each."""
    assert point.strangers is not None
    strict = replace(point, strangers=replace(point.strangers, far=point.strangers.far / 100))
    report = audited(strict, data)
    assert not is_passed(report.findings)
    assert [limit for limit, finding in limits_of(report).items() if not finding.passed] == [
        "stranger_far_within_promise"
    ]
    assert "FAR of strangers" in limits_of(report)["stranger_far_within_promise"].explanation


def test_a_threshold_that_lets_too_much_through_fails(point: OperatingPoint, data: LabelledEmbeddings) -> None:
    loose = replace(point, choice=replace(point.choice, threshold=0.1))
    found = limits_of(audited(loose, data))
    assert not found["far_within_promise"].passed
    assert not found["stranger_far_within_promise"].passed
    assert found["tar_within_promise"].passed


def test_the_document_has_all_of_it(report: AuditReport) -> None:
    document = report.to_json()
    assert json_bytes(document)
    assert document["n_rounds"] == N_ROUNDS
    assert report.strangers is not None
    assert document["strangers"]["far"] == report.strangers.far
    assert set(document["strangers_promised"]) == {"low", "high"}
    assert document["far_from_class"] == []


def test_an_audit_repeated_is_the_same_for_any_order_of_the_images(
    report: AuditReport, point: OperatingPoint, data: LabelledEmbeddings
) -> None:
    order = np.random.default_rng(2).permutation(len(data.labels))
    again = audited(point, data.subset(order))
    assert (again.far, again.tar, again.recall_at_1) == (report.far, report.tar, report.recall_at_1)
    for one, other in zip(again.classes, report.classes, strict=True):
        assert (one.name, one.far, one.frr) == (other.name, other.far, other.frr)
        assert one.far_interval.high == pytest.approx(other.far_interval.high)


def test_a_wrong_label_is_listed(point: OperatingPoint, data: LabelledEmbeddings) -> None:
    """The first image gets the label of another class; the score expects little of it as an item of that class."""
    labels = list(data.labels)
    labels[0] = next(label for label in labels if label != labels[0] and labels.count(label) == 6)
    wrong = replace(data, labels=labels)
    typical = TypicalClass(within=0.5, between=0.0, variance=0.03, density=0.0)
    score = Score(classes=ClassTerms(pull=0.7, typical=typical))
    report = audited(point, wrong, score)
    assert 0 in report.far_items
    assert report.far_items == tuple(np.flatnonzero(score.gallery(wrong.embeddings, labels).far))
    assert report.to_json()["far_from_class"] == [f"image {row}" for row in report.far_items]


def test_a_score_without_labels_that_was_calibrated_in_rounds_is_audited_in_rounds(
    point: OperatingPoint, data: LabelledEmbeddings
) -> None:
    """Calibration compared all scores in rounds, so the promise is about rounds."""
    report = audited(point, data, Score())
    assert report.strangers is not None
    vectors = replace(data, n_rounds=N_ROUNDS).scored(Score())
    assert sum(rates.positives for rates in report.classes) == vectors.n_positives
    assert report.far_items == ()


def test_a_certificate_for_drawn_images_is_tested_on_as_many(point: OperatingPoint, data: LabelledEmbeddings) -> None:
    """Classes of two images have one query and one item each, which nothing pulls."""
    assert point.certificate is not None
    certificate = replace(point.certificate, alpha=0.08, max_images=2)
    explanations = []
    for max_images in (2, None):
        drawn = replace(data if max_images is None else data.capped(2), n_rounds=N_ROUNDS).scored(SCORE)
        far = np.zeros(31)
        for queries, items in drawn.rounds:
            accepted = drawn.query[queries] @ drawn.gallery[items].T >= np.float32(certificate.threshold)
            for row, column in np.argwhere(accepted & (drawn.codes[queries, None] != drawn.gallery_codes[items])):
                far[[drawn.codes[queries][row], drawn.gallery_codes[items][column]]] += 1
        broken = np.count_nonzero(far / drawn.negatives > 0.08)
        report = audited(replace(point, certificate=replace(certificate, max_images=max_images)), data)
        explanations.append(limits_of(report)["certificate"].explanation)
        assert f", {broken} of 31 new classes have FAR above 8%" in explanations[-1]
    assert explanations[0] != explanations[1]


@pytest.mark.parametrize(("n_classes", "n_images"), [(1, 4), (4, 1)])
def test_too_little_to_measure(point: OperatingPoint, n_classes: int, n_images: int) -> None:
    with pytest.raises(NotEnoughEvidence, match=r"at least 2 classes|no class has two images"):
        audited(point, isolated(n_classes, n_images))
