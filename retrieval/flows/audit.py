"""Audits: measure the active threshold on new labelled images and compare it with the promises of calibration.

`retrieval.consistency` computes the statistics, the caller's `render` makes the page. An audit changes no threshold.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Literal

import numpy as np

from retrieval.consistency import (
    ConfusedPair,
    Confusion,
    Finding,
    GroupComparison,
    GroupRates,
    Interval,
    LabelledVectors,
    LabelMargins,
    OperatingCurves,
    OpisOptions,
    OpisResult,
    PromisedRate,
    ScoreHistograms,
    SuspectLabel,
    VerdictLimits,
    class_rates,
    compare_groups,
    consistency_around,
    consistency_report,
    is_passed,
    judge,
    label_margins,
    labelled,
    most_confused,
    noted,
    operating_curves,
    recall_at_k,
    retest_certificate,
    retest_mean_certificate,
    score_histograms,
    warnings_at,
)
from retrieval.contract.canonical import json_bytes
from retrieval.contract.documents import Count, Moment, parse
from retrieval.contract.manifest import Item, check_labels, read_source
from retrieval.contract.operating_point import OperatingPoint
from retrieval.contract.score import Score
from retrieval.engine.embedding import MAX_FAILED_SHARE, EmbeddedItems, ImageEmbedder, embed_items
from retrieval.engine.images import Failure
from retrieval.engine.live import live_parts
from retrieval.engine.store import REPORT, Store, check_catalog_name
from retrieval.engine.thumbnails import thumbnail
from retrieval.errors import CorruptArtifact, InvalidInput, NotEnoughEvidence

_SEED = 0  # of splits and resampling; fixed, so that a repeated audit gives the same report
_N_SUSPECTS = 20
_N_THUMBNAILS = 160  # in the report, some 2 kB each
DEFAULT_LIMITS = VerdictLimits()


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditRequest:
    """What to audit: the model and threshold of `catalog`, on the labelled images of `manifest_uri`."""

    catalog: str
    manifest_uri: str
    group_by: tuple[str, ...] = ()

    def check(self) -> None:
        """Raise InvalidInput if a value can never work."""
        check_catalog_name(self.catalog)
        if not self.manifest_uri:
            raise InvalidInput("manifest_uri: expected a path or URL, found nothing")


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditLimits:
    """The limits of the verdict, and the share of images that may be unreadable."""

    verdict: VerdictLimits = DEFAULT_LIMITS
    max_failed_share: float = MAX_FAILED_SHARE


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class AuditReport:
    """The results of an audit. `opis` is of the active score; `opis_cosine` of the plain cosine on the paper's axis.

    `opis_target`: of the active score around its FAR target, None if the images cannot show it.

    `classes`: rates at the threshold; `comparisons`: by column, the rates of groups and their differences;
    `n_single`: images alone in their class, which have no true pair; `item_ids`: ids of the images, by the rows in
    `confusion` and `margins`; `thumbnails`: small JPEGs of images that these name; `margins`: how well every image fits
    its label.
    `passed_over`: see `contract/manifest.py`.
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
    warnings: Sequence[str] = ()
    passed_over: Sequence[str] = ()

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
        return self.margins.suspects[:_N_SUSPECTS]

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
            "n_images": self.n_images,
            "n_classes": self.n_classes,
            "n_single": self.n_single,
            "failures": {failure.item_id: failure.reason for failure in self.failures},
            "passed_over": list(self.passed_over),
            "groups": {name: [asdict(rates) for rates in groups] for name, groups in self.groups.items()},
            "group_comparisons": {name: _differences(found) for name, found in self.comparisons.items()},
            "classes": [asdict(rates) for rates in self.classes],
        }


def run_audit(  # noqa: PLR0913  # no two of its dependencies belong together
    store: Store,
    request: AuditRequest,
    *,
    audit_id: str,
    created_at: str,
    embedder: ImageEmbedder,
    limits: AuditLimits,
    progress: Callable[[int, int], None],
    render: Callable[[AuditReport], str],
) -> AuditReport:
    """Embed the images with the catalogue's model, measure, judge; store report.json, report.html, curves.parquet.

    Raises UnknownCatalog, UnknownOperatingPoint, BundleMismatch, InvalidManifest, EmptyCatalog, TooManyFailures,
    NotEnoughEvidence.
    """
    parts = live_parts(store, request.catalog)
    source = read_source(request.manifest_uri, embedder.limits.roots)
    items = source.items
    check_labels(items, request.manifest_uri, request.group_by)
    embedded = embed_items(
        store,
        embedder,
        parts.bundle.digest,
        items,
        max_failed_share=limits.max_failed_share,
        progress=progress,
    )
    report = measure(request, embedded, parts.point, parts.score, limits, audit_id=audit_id, created_at=created_at)
    thumbnails = _thumbnails(report, embedded.items, embedder)
    report = replace(report, thumbnails=thumbnails, passed_over=source.passed_over)
    files = {
        REPORT: json_bytes(report.to_json()),
        "report.html": render(report).encode(),
        "curves.parquet": report.curves.to_parquet(),
    }
    store.put_audit(request.catalog, audit_id, files)
    return report


def audits(store: Store, catalog: str) -> list[dict[str, Any]]:
    """Return the reports of a catalogue's finished audits, newest first. Raises UnknownCatalog."""
    store.current(catalog)
    reports = [finished_audit(store, catalog, audit_id) for audit_id in store.audits(catalog)]
    return sorted(reports, key=lambda report: str(report["created_at"]), reverse=True)


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


@dataclass(frozen=True, slots=True, kw_only=True)
class _OpisDocument:
    """The fields of OPIS in a stored report that are read again."""

    value: float
    floor: float


def measure(
    request: AuditRequest,
    embedded: EmbeddedItems,
    point: OperatingPoint,
    score: Score,
    limits: AuditLimits,
    *,
    audit_id: str,
    created_at: str,
) -> AuditReport:
    """Measure labelled embeddings at an operating point and judge them. Raises NotEnoughEvidence."""
    labels = [item.label for item in embedded.items]
    queries, gallery = score.vectors(embedded.embeddings)
    vectors = labelled(queries, labels, gallery=gallery)
    plain = vectors if vectors.cosine else labelled(embedded.embeddings, labels)
    threshold, choice = point.threshold, point.choice
    certificates = [found for found in (point.certificate, point.mean_certificate) if found is not None]
    curves = operating_curves(vectors, include=[threshold, *(found.threshold for found in certificates)])
    exact = curves.at(threshold)
    comparisons = {
        column: compare_groups(
            vectors,
            [item.attributes[column] for item in embedded.items],
            threshold,
            rng=np.random.default_rng(_SEED),
        )
        for column in request.group_by
    }
    n_classes = len(exact.classes)
    far = PromisedRate(measured=float(exact.pooled_far[0]), promised=choice.predicted_far(n_classes))
    tar = PromisedRate(measured=float(exact.pooled_tar[0]), promised=choice.predicted_tar(n_classes - exact.n_excluded))
    rng = np.random.default_rng(_SEED)
    opis_cosine = consistency_report(plain, rng=rng)
    warnings = warnings_at(vectors, exact)
    groups = {column: comparison.groups for column, comparison in comparisons.items()}
    return AuditReport(
        id=audit_id,
        catalog=request.catalog,
        created_at=created_at,
        point=point,
        far=far.measured,
        far_promised=far.promised,
        tar=tar.measured,
        tar_promised=tar.promised,
        recall_at_1=recall_at_k(vectors)[1],
        opis=consistency_report(vectors, OpisOptions(axis="log_far"), rng=rng),
        opis_cosine=opis_cosine,
        classes=class_rates(vectors, threshold),
        comparisons=comparisons,
        curves=curves,
        histograms=score_histograms(vectors),
        confusion=most_confused(vectors, threshold),
        margins=label_margins(vectors, threshold),
        item_ids=tuple(item.id for item in embedded.items),
        n_images=len(labels),
        n_classes=n_classes,
        n_single=int(np.count_nonzero(exact.n_images == 1)),
        failures=embedded.failures,
        opis_target=_around_target(vectors, choice.target_far),
        findings=[
            *noted(judge(far, tar, groups, target_far=choice.target_far, limits=limits.verdict), warnings),
            *_retests(point, curves),
        ],
        warnings=warnings,
    )


def _retests(point: OperatingPoint, curves: OperatingCurves) -> Iterator[Finding]:
    """Test the certificates of the operating point on the new classes, each at its own threshold."""

    def with_note(finding: Finding, certified: float) -> Finding:
        if point.threshold >= certified:
            return finding
        note = (
            f". The active threshold {point.threshold:.4f} is below {certified:.4f}: there the certificate says nothing"
        )
        return replace(finding, explanation=finding.explanation + note)

    if (found := point.certificate) is not None:
        yield with_note(retest_certificate(found, curves.at(found.threshold).far[:, 0]), found.threshold)
    if (mean := point.mean_certificate) is not None:
        yield with_note(retest_mean_certificate(mean, curves.at(mean.threshold).far[:, 0]), mean.threshold)


def _thumbnails(report: AuditReport, items: Sequence[Item], embedder: ImageEmbedder) -> dict[int, bytes]:
    """Make small pictures of the images that the report names: of the first confused pairs, and of suspect labels."""
    rows = [row for pair in report.confusion.pairs for e in pair.examples for row in (e.first_row, e.second_row)]
    rows += [suspect.row for suspect in report.suspects]
    wanted = list(dict.fromkeys(rows))[:_N_THUMBNAILS]
    made = embedder.pool.map(lambda row: thumbnail(items[row].uri, embedder.limits), wanted)
    return {row: picture for row, picture in zip(wanted, made, strict=True) if picture}


def _around_target(vectors: LabelledVectors, far: float) -> OpisResult | None:
    """Return OPIS around the FAR target, or None if the images cannot show it."""
    try:
        return consistency_around(vectors, far, rng=np.random.default_rng(_SEED))
    except (NotEnoughEvidence, InvalidInput):
        return None


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
