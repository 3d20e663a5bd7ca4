"""An audit measures what a slow count measures, judges by its declared limits, and changes no threshold."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
import pytest
from numpy.typing import NDArray
from PIL import Image

from retrieval.consistency import OperatingCurves
from retrieval.contract.manifest import Item, read_manifest
from retrieval.contract.operating_point import OperatingPoint
from retrieval.contract.score import Score
from retrieval.engine.encoder import Encoder
from retrieval.engine.store import Store
from retrieval.errors import (
    BundleMismatch,
    InvalidInput,
    InvalidManifest,
    NotEnoughEvidence,
    TooManyFailures,
    UnknownCatalog,
    UnknownOperatingPoint,
)
from retrieval.flows.audit import AuditLimits, AuditReport, AuditRequest, audits, run_audit
from retrieval.flows.reindex import ReindexRequest
from tests.pictures import class_picture, encoded, write_class_folders
from tests.stores import CREATED_AT, activate, embedder_of, reindex

Audit = Callable[..., AuditReport]
N_CLASSES, N_IMAGES = 30, 4


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """120 labelled pictures of 30 new classes and one picture alone in its class, with two columns of groups."""
    folder = tmp_path_factory.mktemp("audit")
    with (folder / "manifest.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "uri", "label", "half", "camera"])
        for number in range(3000, 3000 + N_CLASSES + 1):
            for variant in range(N_IMAGES if number < 3000 + N_CLASSES else 1):
                name = f"{number}-{variant}.png"
                (folder / name).write_bytes(encoded(class_picture(number, variant, spread=70)))
                writer.writerow([name, name, f"class {number}", "first" if number < 3015 else "second", variant % 2])
    return folder / "manifest.csv"


@pytest.fixture
def audited(calibrated: Store, tiny_encoder: Encoder, pool: Executor, tmp_path: Path) -> Store:
    """A calibrated store with a live catalogue named shop."""
    folder = write_class_folders(tmp_path / "shop", n_classes=4, n_images=1)
    reindex(calibrated, tiny_encoder, pool, ReindexRequest(catalog="shop", manifest_uri=str(folder)))
    return calibrated


@pytest.fixture
def audit(audited: Store, tiny_encoder: Encoder, pool: Executor, manifest: Path) -> Audit:
    def run(
        uri: Path = manifest,
        *,
        audit_id: str = "a1",
        created_at: str = CREATED_AT,
        limits: AuditLimits | None = None,
        **options: Any,
    ) -> AuditReport:
        return run_audit(
            audited,
            replace(AuditRequest(catalog="shop", manifest_uri=str(uri)), **options),
            audit_id=audit_id,
            created_at=created_at,
            embedder=embedder_of(tiny_encoder, pool),
            limits=limits or AuditLimits(),
            progress=lambda done, total: None,
            render=lambda report: f"<h1>{report.id}</h1>",
        )

    return run


class Counted:
    """Every unordered pair of the audit's images, scored and counted one by one."""

    def __init__(self, items: Sequence[Item], encoder: Encoder, score: Score, threshold: float) -> None:
        embeddings = encoder.embed_images([Path(i.uri.removeprefix("file://")).read_bytes() for i in items])
        self.scores = score.query_vectors(embeddings) @ score.gallery_vectors(embeddings).T
        self.labels = np.array([item.label for item in items])
        self.accepted = self.scores >= np.float32(threshold)
        upper = np.triu(np.ones_like(self.accepted), 1)
        self.same = (self.labels[:, None] == self.labels[None, :]) & upper
        self.different = (self.labels[:, None] != self.labels[None, :]) & upper

    @property
    def far(self) -> float:
        return float(self.accepted[self.different].mean())

    @property
    def tar(self) -> float:
        return float(self.accepted[self.same].mean())

    @property
    def recall_at_1(self) -> float:
        """Share of the images with a partner whose best match is of their class."""
        scores = self.scores - 9 * np.eye(len(self.scores))
        has_partner = (self.labels[:, None] == self.labels[None, :]).sum(axis=1) > 1
        return float((self.labels[scores.argmax(axis=1)] == self.labels)[has_partner].mean())

    def rates_of(self, mask: NDArray[np.bool_]) -> tuple[float, float]:
        """FAR and FRR among the pairs inside a group."""
        inside = mask[:, None] & mask[None, :]
        return float(self.accepted[self.different & inside].mean()), 1 - float(self.accepted[self.same & inside].mean())


@pytest.mark.parametrize("kind", ["cosine", "cohort"])
def test_rates_equal_a_count_of_all_pairs(
    kind: str,
    audit: Audit,
    audited: Store,
    manifest: Path,
    tmp_path: Path,
    tiny_encoder: Encoder,
    pool: Executor,
    cosine_point: OperatingPoint,
    cohort_point: OperatingPoint,
    cohort_score: Score,
) -> None:
    """FAR, TAR, recall, the rates of every class and of every group, at the active threshold with its score."""
    point, score = (cosine_point, Score()) if kind == "cosine" else (cohort_point, cohort_score)
    activate(audited, point, score)
    reindex(audited, tiny_encoder, pool, ReindexRequest(catalog="shop", manifest_uri=str(tmp_path / "shop")))
    report = audit(group_by=("half", "camera"))
    items = read_manifest(str(manifest))
    counted = Counted(items, tiny_encoder, score, point.threshold)
    # products of other tiles differ in the last digit: one pair may change sides
    one_negative, one_positive = 1.5 / counted.different.sum(), 1.5 / counted.same.sum()
    assert report.point == point
    assert (report.n_images, report.n_classes, report.n_single) == (121, 31, 1)
    assert report.far == pytest.approx(counted.far, abs=one_negative)
    assert report.tar == pytest.approx(counted.tar, abs=one_positive)
    assert report.recall_at_1 == pytest.approx(counted.recall_at_1, abs=1.5 / 120)
    assert {rates.name for rates in report.classes} == set(counted.labels)
    assert sum(rates.positives for rates in report.classes) == counted.same.sum()
    assert sum(rates.negatives for rates in report.classes) == 2 * counted.different.sum(), "each end counts it"
    for column, groups in report.groups.items():
        values = np.array([item.attributes[column] for item in items])
        assert [rates.name for rates in groups] == sorted(set(values))
        for rates in groups:
            far, frr = counted.rates_of(values == rates.name)
            assert rates.far == pytest.approx(far, abs=1.5 / rates.negatives)
            assert rates.frr == pytest.approx(frr, abs=1.5 / rates.positives)


def test_differences_between_groups_are_stored(audit: Audit, audited: Store) -> None:
    """Differentials with what chance would show, and a test of each group, for FAR and FRR."""
    report = audit(group_by=("half", "camera"))
    stored = audited.audit("shop", "a1")["group_comparisons"]
    assert set(stored) == {"half", "camera"}
    for column, comparison in report.comparisons.items():
        assert report.groups[column] == comparison.groups
        assert "groups" not in stored[column]
        for rate, differential in (("far", comparison.far), ("frr", comparison.frr)):
            assert differential is not None
            assert stored[column][rate]["max_min_ratio"] == differential.max_min_ratio
            assert stored[column][rate]["gini_by_chance"] == differential.gini_by_chance
            assert [test["p_adjusted"] for test in stored[column][rate]["tests"]] == [
                test.p_adjusted for test in differential.tests
            ]


def test_the_most_confused_classes_are_named_with_their_images(
    audit: Audit, audited: Store, manifest: Path, tiny_encoder: Encoder, cosine_point: OperatingPoint
) -> None:
    """The listed pairs of classes hold the false accepts that a count of all pairs finds, the examples are theirs."""
    report = audit()
    items = read_manifest(str(manifest))
    counted = Counted(items, tiny_encoder, Score(), cosine_point.threshold)
    stored = audited.audit("shop", "a1")
    label_of = {item.id: item.label for item in items}
    labels = np.array([item.label for item in items])
    assert stored["confused_classes"]
    for pair in stored["confused_classes"]:
        between = counted.accepted[np.ix_(labels == pair["first"], labels == pair["second"])]
        assert pair["n_pairs"] == between.size
        assert pair["n_accepted"] == pytest.approx(between.sum(), abs=1.5)  # the last digit, as above
        for example in pair["examples"]:
            assert (label_of[example["first_id"]], label_of[example["second_id"]]) == (pair["first"], pair["second"])
    assert stored["separation"]["auc"] == report.histograms.auc
    assert stored["separation"]["overlap_interval"]["low"] <= stored["separation"]["overlap"]


def test_a_wrong_label_is_listed_with_the_class_it_resembles(
    audit: Audit, audited: Store, manifest: Path, tmp_path: Path
) -> None:
    """The first image of one class gets the label of another; at most 20 are listed, worst first."""
    rows = [row.split(",") for row in manifest.read_text().splitlines()]
    rows[1:] = [[row[0], str(manifest.parent / row[1]), *row[2:]] for row in rows[1:]]
    right, rows[1][2] = rows[1][2], "class 3020"
    (tmp_path / "wrong.csv").write_text("\n".join(",".join(row) for row in rows))
    report = audit(tmp_path / "wrong.csv")
    listed = audited.audit("shop", "a1")["suspect_labels"]
    (wrong,) = [suspect for suspect in listed if suspect["item_id"] == rows[1][0]]
    assert (wrong["label"], wrong["resembles"]) == ("class 3020", right)
    assert wrong["own"] < report.point.threshold <= wrong["other"]
    assert wrong["margin"] == pytest.approx(wrong["own"] - wrong["other"])
    margins = [suspect["margin"] for suspect in listed]
    assert margins == sorted(margins)
    assert len(listed) == min(20, audited.audit("shop", "a1")["n_suspect_labels"])


def test_what_is_stored(audit: Audit, audited: Store, cosine_point: OperatingPoint) -> None:
    """The report as JSON equals the value, the page is the caller's, and the curves come back exactly."""
    report = audit(group_by=("half",))
    stored = audited.audit("shop", "a1")
    assert stored == report.to_json()
    assert stored["verdict"] == ("passed" if report.passed else "failed")
    assert (stored["threshold"], stored["operating_point_id"]) == (cosine_point.threshold, cosine_point.id)
    assert stored["far_promised"] == {"low": report.far_promised.low, "high": report.far_promised.high}
    assert audited.objects.get("catalogs/shop/audits/a1/report.html") == b"<h1>a1</h1>"
    curves = audited.objects.get("catalogs/shop/audits/a1/curves.parquet")
    assert curves is not None
    table = pyarrow.parquet.read_table(io.BytesIO(curves))
    columns = {name: table.column(name).to_numpy() for name in table.column_names}
    again = OperatingCurves.from_table(columns)
    np.testing.assert_array_equal(again.positives_accepted, report.curves.positives_accepted)
    assert again.classes == report.curves.classes


def test_an_audit_repeated_says_the_same_and_changes_nothing(
    audit: Audit, audited: Store, cosine_point: OperatingPoint
) -> None:
    """The second is found under its own id; neither touched the threshold."""
    first = audit()
    second = audit(audit_id="a2", created_at="2027-01-01T00:00:00+00:00")
    changing = ("id", "created_at")
    assert {k: v for k, v in first.to_json().items() if k not in changing} == {
        k: v for k, v in second.to_json().items() if k not in changing
    }
    assert [report["id"] for report in audits(audited, "shop").readable] == ["a2", "a1"], "newest first"
    assert audited.active_operating_point(cosine_point.bundle_digest) == cosine_point


def test_new_classes_like_those_calibrated_on_pass(audit: Audit) -> None:
    report = audit()
    assert report.passed
    limits = [finding.limit for finding in report.findings]
    assert limits == ["far_within_promise", "tar_within_promise", "certificate", "certificate_on_average"]
    assert report.far in report.far_promised


def test_a_threshold_that_lets_too_much_through_fails(
    audit: Audit, audited: Store, cosine_point: OperatingPoint
) -> None:
    """The verdict names the limit that broke."""
    loose = replace(cosine_point, choice=replace(cosine_point.choice, threshold=-0.5))
    activate(audited, loose, Score())
    report = audit()
    assert not report.passed
    assert {finding.limit: finding.passed for finding in report.findings} == {
        "far_within_promise": False,
        "tar_within_promise": True,
        "certificate": True,  # at its own threshold, which is higher than the active one
        "certificate_on_average": True,
    }
    assert all("the certificate does not hold there" in finding.explanation for finding in report.findings[2:])
    assert audited.audit("shop", "a1")["verdict"] == "failed"


def test_a_threshold_that_rejects_too_much_fails(audit: Audit, audited: Store, cosine_point: OperatingPoint) -> None:
    strict = replace(cosine_point, choice=replace(cosine_point.choice, threshold=0.9999))
    activate(audited, strict, Score())
    report = audit()
    assert {finding.limit: finding.passed for finding in report.findings} == {
        "far_within_promise": True,
        "tar_within_promise": False,
        "certificate": True,
        "certificate_on_average": True,
    }
    assert not any("does not hold there" in finding.explanation for finding in report.findings)
    assert "stricter than needed" in report.findings[0].explanation


def test_a_certificate_that_new_classes_break_fails(audit: Audit, audited: Store, cosine_point: OperatingPoint) -> None:
    """Tested again at its own threshold, whatever the active one is: here too many classes are above the limit."""
    assert cosine_point.certificate is not None
    assert cosine_point.mean_certificate is not None
    broken = replace(
        cosine_point,
        certificate=replace(cosine_point.certificate, threshold=-0.5),
        mean_certificate=replace(cosine_point.mean_certificate, threshold=-0.5),
    )
    activate(audited, broken, Score())
    found = {finding.limit: finding for finding in audit().findings}
    assert not found["certificate"].passed
    assert "new classes have FAR above" in found["certificate"].explanation
    assert not found["certificate_on_average"].passed
    assert found["far_within_promise"].passed


def test_the_report_has_pictures_of_what_it_names(audit: Audit) -> None:
    """Small ones, of the images of confused classes; an image that is gone has none."""
    report = audit()
    named = {row for pair in report.confusion.pairs for e in pair.examples for row in (e.first_row, e.second_row)}
    assert named
    assert set(report.thumbnails) >= set(list(named)[:1])
    for picture in report.thumbnails.values():
        assert max(Image.open(io.BytesIO(picture)).size) <= 72
        assert len(picture) < 8_000
    assert len(report.thumbnails) <= 160


def test_unlabelled_items_are_refused(audit: Audit, audited: Store, tmp_path: Path) -> None:
    (tmp_path / "m.csv").write_text("id,uri,label\n1,a.png,cup\n2,b.png,\n3,c.png,\n")
    with pytest.raises(InvalidManifest, match="every item needs a label here, 2 have none, for instance '2'"):
        audit(tmp_path / "m.csv")
    assert audited.audits("shop") == []


def test_a_column_of_groups_that_is_missing_is_named(audit: Audit) -> None:
    with pytest.raises(InvalidManifest, match="expected a column 'maker' to group by, found camera, half"):
        audit(group_by=("half", "maker"))


def test_an_unreadable_image_is_named_and_many_stop_the_audit(audit: Audit, audited: Store, tmp_path: Path) -> None:
    folder = write_class_folders(tmp_path / "new", n_classes=30, n_images=4, first_class=200)
    broken = sorted(folder.rglob("*.png"))
    broken[0].write_bytes(b"no image")
    report = audit(folder)
    assert [failure.item_id for failure in report.failures] == ["class_200/0.png"]
    assert list(report.to_json()["failures"]) == ["class_200/0.png"]
    assert report.n_images == 119
    broken[1].write_bytes(b"no image")
    with pytest.raises(TooManyFailures, match="2 of 120 items"):
        audit(folder, audit_id="a2")
    assert audit(folder, audit_id="a3", limits=AuditLimits(max_failed_share=0.05)).n_images == 118
    assert audited.audits("shop") == ["a1", "a3"]


@pytest.mark.parametrize(("n_classes", "n_images"), [(1, 4), (4, 1)])
def test_too_little_to_measure(audit: Audit, audited: Store, tmp_path: Path, n_classes: int, n_images: int) -> None:
    """One class has no false accepts, and classes of one image no true ones."""
    folder = write_class_folders(tmp_path / "new", n_classes=n_classes, n_images=n_images)
    with pytest.raises(NotEnoughEvidence, match=r"at least 2 classes|no class has two images"):
        audit(folder)
    assert audited.audits("shop") == []


def test_unknown_catalogue_and_missing_operating_point(
    audit: Audit, audited: Store, cosine_point: OperatingPoint
) -> None:
    with pytest.raises(UnknownCatalog, match="other"):
        audit(catalog="other")
    with pytest.raises(UnknownCatalog, match=r"other"):
        audits(audited, "other")
    assert audits(audited, "shop").readable == []
    audited.objects.delete(f"bundles/{cosine_point.bundle_digest}/operating_points/ACTIVE")
    with pytest.raises(UnknownOperatingPoint, match="operating point"):
        audit()


def test_a_threshold_that_is_not_in_use_is_not_audited(
    audit: Audit, audited: Store, cohort_point: OperatingPoint, cohort_score: Score
) -> None:
    """The catalogue still answers with the score of its snapshot, so figures of another one would mislead."""
    activate(audited, cohort_point, cohort_score)
    with pytest.raises(BundleMismatch, match="reindex the catalogue"):
        audit()
    assert audited.audits("shop") == []


@pytest.mark.parametrize("change", [{"catalog": "../shop"}, {"catalog": ""}, {"manifest_uri": ""}])
def test_requests_that_can_never_work(change: dict[str, Any]) -> None:
    request = AuditRequest(catalog="shop", manifest_uri="here")
    request.check()
    with pytest.raises(InvalidInput, match=r"catalog|manifest_uri"):
        replace(request, **change).check()


@pytest.fixture
def with_families(manifest: Path, tmp_path: Path) -> Path:
    """The same images with a column of families: ten classes each."""
    rows = [row.split(",") for row in manifest.read_text().splitlines()]
    lines = [",".join([*rows[0], "maker"])]
    for row in rows[1:]:
        maker = f"maker {int(row[2].split()[1]) // 10}"
        lines.append(",".join([row[0], str(manifest.parent / row[1]), *row[2:], maker]))
    (tmp_path / "families.csv").write_text("\n".join(lines))
    return tmp_path / "families.csv"


def test_a_named_family_is_the_unit_of_the_promise(
    audit: Audit, audited: Store, with_families: Path, cosine_point: OperatingPoint
) -> None:
    """Calibration counted 10 families of 6 classes: 4 families here promise as much as 24 classes did, not 31."""
    choice = replace(cosine_point.choice, n_classes=60, n_families=10)
    point = replace(cosine_point, choice=choice, family="maker")
    activate(audited, point, Score())
    plain, named = audit(with_families), audit(with_families, audit_id="a2", family="maker")
    assert (plain.far, plain.tar) == (named.far, named.tar)
    assert plain.far_promised == choice.predicted_far(31)
    assert named.far_promised == choice.predicted_far(24)
    assert named.tar_promised == choice.predicted_tar(24)
    assert any("calibration counted 10 families of classes (column 'maker')" in note for note in plain.warnings)
    assert not any("calibration" in note for note in named.warnings)
    assert [audited.audit("shop", name)["n_families"] for name in ("a1", "a2")] == [None, 4]
    assert audited.audit("shop", "a2")["family"] == "maker"
    assert "4 families" in named.findings[-1].explanation


def test_families_that_calibration_did_not_name_are_noted(audit: Audit, with_families: Path) -> None:
    report = audit(with_families, family="maker")
    assert any("were not named in calibration" in note for note in report.warnings)
    assert "were not named in calibration" in report.findings[0].explanation


def test_unusable_families_are_refused_before_anything_is_embedded(
    audit: Audit, audited: Store, with_families: Path
) -> None:
    """A column that is missing, and a class in two families; the images need not even exist."""
    rows = with_families.read_text().replace(".png", ".gone")
    with_families.write_text(rows)
    with pytest.raises(InvalidManifest, match="expected a column 'line' of families, found camera, half, maker"):
        audit(with_families, family="line")
    with pytest.raises(InvalidManifest, match="found class 'class 3000' in '0' and '1'"):
        audit(with_families, family="camera")
    assert audited.audits("shop") == []
