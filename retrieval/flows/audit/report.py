"""The report of an audit: its values, its JSON, and the reports of finished audits in the store."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Literal

from retrieval.consistency import (
    ConfusedPair,
    Confusion,
    Finding,
    GroupComparison,
    GroupRates,
    Interval,
    LabelMargins,
    OperatingCurves,
    OpisResult,
    ScoreHistograms,
    StrangerRate,
    SuspectLabel,
    is_passed,
)
from retrieval.contract.canonical import json_bytes
from retrieval.contract.documents import Count, Moment, parse
from retrieval.contract.operating_point import OperatingPoint
from retrieval.engine.images import Failure
from retrieval.engine.store import REPORT, Store
from retrieval.engine.store.listed import Listed, listed
from retrieval.errors import CorruptArtifact

N_LISTED = 20  # labels to check of each kind


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class AuditReport:
    """The results of an audit. `opis` is of the active score; `opis_cosine` of the plain cosine on the paper's axis.

    `opis_target`: of the active score around its FAR target, None if the images cannot show it.

    `classes`: rates at the threshold; `comparisons`: by column, the rates of groups and their differences;
    `n_single`: images alone in their class, which have no true pair; `item_ids`: ids of the images, by the rows in
    `confusion` and `margins`; `thumbnails`: small JPEGs of images that these name; `margins`: how well every image fits
    its label; `far_items`: rows of the images whose label a catalogue score takes for wrong, because they are far from
    the others of their class.
    `strangers`: the FAR of searches whose class is absent, with its promise, if calibration measured it; then the other
    figures count `point.n_rounds` rounds of searches in a labelled gallery.
    `passed_over`: see `contract/manifest.py`. `family`: the column of families of classes, "" without one;
    `n_families`: their number.
    """

    id: str
    catalog: str
    created_at: str
    point: OperatingPoint
    far: float
    far_promised: Interval
    tar: float
    tar_promised: Interval
    recall_at_1: float
    opis: OpisResult
    opis_cosine: OpisResult
    classes: Sequence[GroupRates]
    comparisons: Mapping[str, GroupComparison]
    curves: OperatingCurves
    histograms: ScoreHistograms
    confusion: Confusion
    margins: LabelMargins
    item_ids: Sequence[str]
    thumbnails: Mapping[int, bytes] = field(default_factory=dict)
    n_images: int
    n_classes: int
    n_single: int
    failures: Sequence[Failure]
    findings: Sequence[Finding]
    opis_target: OpisResult | None = None
    strangers: StrangerRate | None = None
    strangers_promised: Interval | None = None
    far_items: Sequence[int] = ()
    warnings: Sequence[str] = ()
    passed_over: Sequence[str] = ()
    family: str = ""
    n_families: int | None = None

    @property
    def groups(self) -> dict[str, Sequence[GroupRates]]:
        """The rates of the groups, by column."""
        return {column: comparison.groups for column, comparison in self.comparisons.items()}

    @property
    def passed(self) -> bool:
        """Whether every limit holds."""
        return is_passed(self.findings)

    @property
    def suspects(self) -> Sequence[SuspectLabel]:
        """The images to check first: their own class rejects them and another accepts them, worst first."""
        return self.margins.suspects[:N_LISTED]

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON of everything except the curves, which are stored as Parquet."""
        return {
            "id": self.id,
            "catalog": self.catalog,
            "created_at": self.created_at,
            "verdict": "passed" if self.passed else "failed",
            "findings": [asdict(finding) for finding in self.findings],
            "warnings": list(self.warnings),
            "bundle_digest": self.point.bundle_digest,
            "operating_point_id": self.point.id,
            "score_kind": self.point.score_kind,
            "threshold": self.point.threshold,
            "far_target": self.point.choice.target_far,
            "far": self.far,
            "far_promised": asdict(self.far_promised),
            "tar": self.tar,
            "tar_promised": asdict(self.tar_promised),
            "n_rounds": self.point.n_rounds,
            "strangers": None if self.strangers is None else self.strangers.to_json(),
            "strangers_promised": None if self.strangers_promised is None else asdict(self.strangers_promised),
            "recall_at_1": self.recall_at_1,
            "opis": self.opis.to_json(),
            "opis_cosine": self.opis_cosine.to_json(),
            "opis_target": None if self.opis_target is None else self.opis_target.to_json(),
            "d_prime": self.histograms.d_prime,
            "separation": _separation(self.histograms),
            "confused_classes": [_confused(pair, self.item_ids) for pair in self.confusion.pairs],
            "confused_concentration": self.confusion.concentration,
            "suspect_labels": [_suspect(suspect, self.item_ids) for suspect in self.suspects],
            "n_suspect_labels": len(self.margins.suspects),
            "far_from_class": [self.item_ids[row] for row in self.far_items],
            "n_images": self.n_images,
            "n_classes": self.n_classes,
            "n_single": self.n_single,
            "family": self.family,
            "n_families": self.n_families,
            "failures": {failure.item_id: failure.reason for failure in self.failures},
            "passed_over": list(self.passed_over),
            "groups": {name: [asdict(rates) for rates in groups] for name, groups in self.groups.items()},
            "group_comparisons": {name: _differences(found) for name, found in self.comparisons.items()},
            "classes": [asdict(rates) for rates in self.classes],
        }


def audits(store: Store, catalog: str) -> Listed[dict[str, Any]]:
    """Return the reports of a catalogue's finished audits, newest first. Raises UnknownCatalog."""
    store.current(catalog)
    return listed(
        store.audits(catalog),
        lambda audit_id: finished_audit(store, catalog, audit_id),
        created_at=lambda report: str(report["created_at"]),
    )


def finished_audit(store: Store, catalog: str, audit_id: str) -> dict[str, Any]:
    """Return the report of a finished audit as plain JSON. Raises UnknownJob, CorruptArtifact."""
    report = store.audit(catalog, audit_id)
    where = store.audit_uri(catalog, audit_id, REPORT)
    read = {known.name for known in fields(_ReportDocument)}
    parse(_ReportDocument, {name: value for name, value in report.items() if name in read}, where)
    parse(_OpisDocument, {name: report["opis"].get(name) for name in ("value", "floor")}, f"{where}: opis")
    if (report["catalog"], report["id"]) != (catalog, audit_id):
        raise CorruptArtifact(
            f"{where} is the report of audit {report['id']} of catalogue {report['catalog']}: it was copied or moved"
        )
    return report


@dataclass(frozen=True, slots=True, kw_only=True)
class _ReportDocument:
    """The fields of a stored report that are read again; the others are for people."""

    id: str
    catalog: str
    created_at: Moment
    verdict: Literal["passed", "failed"]
    findings: tuple[Finding, ...]
    bundle_digest: str
    operating_point_id: str
    threshold: float
    far: float
    far_promised: Interval
    tar: float
    recall_at_1: float
    opis: dict[str, Any]
    n_images: Count
    n_classes: Count
    passed_over: tuple[str, ...] = ()  # this and what follows: absent in older reports
    warnings: tuple[str, ...] = ()
    family: str = ""
    n_families: Count | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class _OpisDocument:
    """The fields of OPIS in a stored report that are read again."""

    value: float
    floor: float


def _differences(comparison: GroupComparison) -> dict[str, Any]:
    """Return the differences of groups; their rates are under `groups`."""
    document = asdict(replace(comparison, groups=()))
    del document["groups"]
    plain: dict[str, Any] = json.loads(json_bytes(document))  # tuples become lists
    return plain


def _separation(histograms: ScoreHistograms) -> dict[str, Any]:
    intervals = {
        "d_prime_interval": histograms.d_prime_interval,
        "auc_interval": histograms.auc_interval,
        "overlap_interval": histograms.overlap_interval,
    }
    figures = {"d_prime": histograms.d_prime, "auc": histograms.auc, "overlap": histograms.overlap}
    return figures | {name: asdict(interval) if interval else None for name, interval in intervals.items()}


def _confused(pair: ConfusedPair, item_ids: Sequence[str]) -> dict[str, Any]:
    examples = [
        {"first_id": item_ids[e.first_row], "second_id": item_ids[e.second_row], "score": e.score}
        for e in pair.examples
    ]
    return asdict(pair) | {"examples": examples}


def _suspect(suspect: SuspectLabel, item_ids: Sequence[str]) -> dict[str, Any]:
    return {
        "item_id": item_ids[suspect.row],
        "label": suspect.label,
        "resembles": suspect.likely,
        "own": suspect.own,
        "other": suspect.other,
        "margin": suspect.margin,
    }
