"""The operating point survives JSON, is named by its evidence, and is refused when damaged."""

from __future__ import annotations

import dataclasses
import json

import pytest

from retrieval.contract.bundle import BundleDigest
from retrieval.contract.canonical import json_bytes
from retrieval.contract.operating_point import OperatingPoint, OpisAroundTarget
from retrieval.errors import CorruptArtifact


@pytest.fixture(params=["cosine", "cohort"])
def point(request: pytest.FixtureRequest, cosine_point: OperatingPoint, cohort_point: OperatingPoint) -> OperatingPoint:
    return cosine_point if request.param == "cosine" else cohort_point


def test_json_round_trip(point: OperatingPoint) -> None:
    """The value, its id and its interval arithmetic come back equal, to the last bit of the threshold."""
    again = OperatingPoint.from_json(json_bytes(point.to_json()), "here")
    assert again == point
    assert again.id == point.id
    assert again.threshold == point.threshold == point.choice.threshold
    assert again.choice.predicted_far(50) == point.choice.predicted_far(50)


def test_without_a_certificate(point: OperatingPoint) -> None:
    """Both a certificate and the reason for its absence are kept."""
    bare = dataclasses.replace(point, certificate=None, certificate_refusal="too few classes")
    again = OperatingPoint.from_json(json_bytes(bare.to_json()), "here")
    assert (again.certificate, again.certificate_refusal) == (None, "too few classes")


def test_an_older_format_is_refused_by_name(point: OperatingPoint) -> None:
    """No value is guessed; the message names the remedy."""
    with pytest.raises(CorruptArtifact, match="expected operating point format 2, found 1: calibrate again"):
        OperatingPoint.from_json(json_bytes(point.to_json() | {"format": 1}), "here")


def test_the_id_does_not_depend_on_the_time(point: OperatingPoint) -> None:
    assert dataclasses.replace(point, created_at="2030-12-31T00:00:00+00:00").id == point.id


def test_the_id_depends_on_everything_else(point: OperatingPoint) -> None:
    others = [
        dataclasses.replace(point, bundle_digest=BundleDigest("ab")),
        dataclasses.replace(point, data_digest="other images"),
        dataclasses.replace(point, choice=dataclasses.replace(point.choice, threshold=0.123)),
        dataclasses.replace(point, calibrator=dataclasses.replace(point.calibrator, prevalence=0.5)),
        dataclasses.replace(point, compared=()),
    ]
    assert len({point.id, *(other.id for other in others)}) == 6


def test_every_truncation_is_refused_by_name(cosine_point: OperatingPoint) -> None:
    data = json_bytes(cosine_point.to_json())
    for length in range(0, len(data) - 2, 53):  # the last two are the closing brace and its newline
        with pytest.raises(CorruptArtifact, match="this place"):
            OperatingPoint.from_json(data[:length], "this place")


@pytest.mark.parametrize(
    "change",
    [
        {"format": 1},
        {"choice": {}},
        {"choice": None},
        {"calibrator": {"kind": "isotonic"}},
        {"calibrator": None},
        {"compared": [{}]},
        {"certificate": {"threshold": 0.1}},
        {"mean_certificate": {"threshold": 0.1}},
        {"surprise": 1},
    ],
)
def test_unusable_fields_are_refused(cosine_point: OperatingPoint, change: dict[str, object]) -> None:
    with pytest.raises(CorruptArtifact, match="this place"):
        OperatingPoint.from_json(json.dumps(cosine_point.to_json() | change).encode(), "this place")


@pytest.mark.parametrize("data", [b"", b"[]", b"null", b"\xff\xfe", b"{}"])
def test_what_is_no_operating_point(data: bytes) -> None:
    with pytest.raises(CorruptArtifact, match="this place"):
        OperatingPoint.from_json(data, "this place")


def test_a_point_written_before_the_cap_on_images_keeps_its_document_and_id(cosine_point: OperatingPoint) -> None:
    """What says nothing is not written, so that a document of an older version is written again byte for byte."""
    document = cosine_point.to_json()
    assert document["certificate"]
    assert "max_images" not in document["certificate"]
    capped = dataclasses.replace(
        cosine_point, certificate=dataclasses.replace(cosine_point.certificate, max_images=5, seed=2)
    )
    again = OperatingPoint.from_json(json_bytes(capped.to_json()), "here")
    assert again == capped
    assert again.id != cosine_point.id


def test_opis_around_the_target_is_kept_and_older_points_stay_what_they_are(cosine_point: OperatingPoint) -> None:
    older = dataclasses.replace(
        cosine_point, compared=tuple(dataclasses.replace(e, around_target=None) for e in cosine_point.compared)
    )
    document = older.to_json()
    assert all("around_target" not in entry for entry in document["compared"])
    assert OperatingPoint.from_json(json_bytes(document), "here") == older
    around = OpisAroundTarget(far_low=1e-4, far_high=1e-2, opis=0.02, floor=0.01, debiased=None)
    newer = dataclasses.replace(
        older, compared=tuple(dataclasses.replace(e, around_target=around) for e in older.compared)
    )
    again = OperatingPoint.from_json(json_bytes(newer.to_json()), "here")
    assert again == newer
    assert again.id != older.id
