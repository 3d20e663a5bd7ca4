"""Does the threshold in use still treat all classes alike? Measured on new labelled images, judged by declared limits.

Decides what an audit measures and its verdict; leaves the statistics to `consistency/` and the picture to the caller's
`render`. An audit never changes a threshold.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from retrieval.consistency import (
    GroupRates,
    Interval,
    OperatingCurves,
    OpisResult,
    ScoreHistograms,
    class_rates,
    consistency_report,
    operating_curves,
    recall_at_k,
    score_histograms,
)
from retrieval.consistency.separation.confusion import ConfusedPair, Confusion, most_confused
from retrieval.consistency.subgroups.group_comparison import GroupComparison, compare_groups
from retrieval.contract.canonical import json_bytes
from retrieval.contract.manifest import check_labels, read_manifest
from retrieval.contract.operating_point import OperatingPoint
from retrieval.contract.preprocessing import ImageLimits
from retrieval.contract.score import Score
from retrieval.engine.embedding import MAX_FAILED_SHARE, EmbeddedItems, embed_items
from retrieval.engine.encoder import Encoder
from retrieval.engine.items import Failure
from retrieval.engine.store import REPORT, Store, check_catalog_name
from retrieval.errors import InvalidInput

_SEED = 0  # splits and resampling of an audit; fixed, so that a repeated audit says the same


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditRequest:
    """What to audit: the model and threshold of `catalog`, on the labelled images of `manifest_uri`."""

    catalog: str
    manifest_uri: str
    group_by: tuple[str, ...] = ()

    def check(self) -> None:
        """Raises InvalidInput where a value can never work."""
        check_catalog_name(self.catalog)
        if not self.manifest_uri:
            raise InvalidInput("manifest_uri: expected a path or URL, found nothing")


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditLimits:
    """What must hold for the verdict to be passed.

    `group_far_factor`: how many times the target the FAR of a group (not a small one) may be. `max_failed_share`:
    share of images that may be unreadable.
    """

    group_far_factor: float = 3.0
    max_failed_share: float = MAX_FAILED_SHARE


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One limit and how it was met."""

    limit: str
    passed: bool
    explanation: str


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class AuditReport:
    """What an audit found. `opis` is of the score in use; `opis_cosine` of the plain cosine on the paper's axis.

    `classes` holds rates at the threshold, `comparisons` (by column) those of groups and how far they are apart;
    `n_single`: images alone in their class, which have no pair to accept; `item_ids`: of the images, which the rows in
    `confusion` count.
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
    item_ids: Sequence[str]
    n_images: int
    n_classes: int
    n_single: int
    failures: Sequence[Failure]
    findings: Sequence[Finding]

    @property
    def groups(self) -> dict[str, Sequence[GroupRates]]:
        """The rates of the groups, by column."""
        return {column: comparison.groups for column, comparison in self.comparisons.items()}

    @property
    def passed(self) -> bool:
        """True where every limit holds."""
        return all(finding.passed for finding in self.findings)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON: everything but the curves, which are stored as Parquet."""
        return {
            "id": self.id,
            "catalog": self.catalog,
            "created_at": self.created_at,
            "verdict": "passed" if self.passed else "failed",
            "findings": [asdict(finding) for finding in self.findings],
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
            "opis": asdict(self.opis),
            "opis_cosine": asdict(self.opis_cosine),
            "d_prime": self.histograms.d_prime,
            "separation": _separation(self.histograms),
            "confused_classes": [_confused(pair, self.item_ids) for pair in self.confusion.pairs],
            "confused_concentration": self.confusion.concentration,
            "n_images": self.n_images,
            "n_classes": self.n_classes,
            "n_single": self.n_single,
            "failures": {failure.item_id: failure.reason for failure in self.failures},
            "groups": {name: [asdict(rates) for rates in groups] for name, groups in self.groups.items()},
            "group_comparisons": {name: _differences(found) for name, found in self.comparisons.items()},
            "classes": [asdict(rates) for rates in self.classes],
        }


def run_audit(
    store: Store,
    request: AuditRequest,
    *,
    audit_id: str,
    created_at: str,
    encoder_of: Callable[[str], Encoder],
    image_limits: ImageLimits,
    limits: AuditLimits,
    pool: Executor,
    progress: Callable[[int, int], None],
    render: Callable[[AuditReport], str],
) -> AuditReport:
    """Embed the images with the catalogue's model, measure, judge, and store report.json, report.html, curves.parquet.

    Raises UnknownCatalog, UnknownOperatingPoint, InvalidManifest, EmptyCatalog, TooManyFailures, NotEnoughEvidence.
    """
    manifest = store.snapshot_manifest(request.catalog, store.current(request.catalog))
    point = store.active_operating_point(manifest.bundle_digest)
    items = read_manifest(request.manifest_uri)
    check_labels(items, request.manifest_uri, request.group_by)
    embedded = embed_items(
        store,
        encoder_of(manifest.bundle_digest),
        items,
        limits=image_limits,
        pool=pool,
        max_failed_share=limits.max_failed_share,
        progress=progress,
    )
    score = store.score(point.bundle_digest, point.score_digest)
    report = measure(request, embedded, point, score, limits, audit_id=audit_id, created_at=created_at)
    files = {
        REPORT: json_bytes(report.to_json()),
        "report.html": render(report).encode(),
        "curves.parquet": report.curves.to_parquet(),
    }
    store.put_audit(request.catalog, audit_id, files)
    return report


def audits(store: Store, catalog: str) -> list[dict[str, Any]]:
    """The reports of a catalogue's finished audits, newest first. Raises UnknownCatalog."""
    store.current(catalog)
    reports = [store.audit(catalog, audit_id) for audit_id in store.audits(catalog)]
    return sorted(reports, key=lambda report: str(report["created_at"]), reverse=True)


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
    """Everything an audit says about labelled embeddings at an operating point. Raises NotEnoughEvidence."""
    labels = [item.label for item in embedded.items]
    queries, gallery = score.vectors(embedded.embeddings)
    rng = np.random.default_rng(_SEED)
    curves = operating_curves(queries, labels, gallery_vectors=gallery)
    exact = operating_curves(queries, labels, gallery_vectors=gallery, thresholds=[point.threshold])
    comparisons = {
        column: compare_groups(
            queries,
            labels,
            [item.attributes[column] for item in embedded.items],
            point.threshold,
            gallery_vectors=gallery,
            rng=np.random.default_rng(_SEED),
        )
        for column in request.group_by
    }
    groups = {column: comparison.groups for column, comparison in comparisons.items()}
    n_classes = len(exact.classes)
    far, tar = float(exact.pooled_far[0]), float(exact.pooled_tar[0])
    far_promised = point.choice.predicted_far(n_classes)
    tar_promised = point.choice.predicted_tar(n_classes - exact.n_excluded)
    cosine = consistency_report(embedded.embeddings, labels, rng=rng)
    return AuditReport(
        id=audit_id,
        catalog=request.catalog,
        created_at=created_at,
        point=point,
        far=far,
        far_promised=far_promised,
        tar=tar,
        tar_promised=tar_promised,
        recall_at_1=recall_at_k(queries, labels, gallery_vectors=gallery)[1],
        opis=consistency_report(queries, labels, gallery_vectors=gallery, axis="log_far", rng=rng),
        opis_cosine=cosine,
        classes=class_rates(queries, labels, point.threshold, gallery_vectors=gallery),
        comparisons=comparisons,
        curves=curves,
        histograms=score_histograms(queries, labels, gallery_vectors=gallery),
        confusion=most_confused(queries, labels, point.threshold, gallery_vectors=gallery),
        item_ids=tuple(item.id for item in embedded.items),
        n_images=len(labels),
        n_classes=n_classes,
        n_single=int(np.count_nonzero(exact.n_images == 1)),
        failures=embedded.failures,
        findings=judge(far, far_promised, tar, tar_promised, groups, point.choice.target_far, limits),
    )


def judge(
    far: float,
    far_promised: Interval,
    tar: float,
    tar_promised: Interval,
    groups: Mapping[str, Sequence[GroupRates]],
    target_far: float,
    limits: AuditLimits,
) -> list[Finding]:
    """The declared limits, each with how it was met.

    A FAR below its promise, or a TAR above, does no harm and passes; the explanation says so.
    """
    findings = [
        Finding(
            limit="far_within_promise",
            passed=far <= far_promised.high,
            explanation=f"FAR {far:.3%}; calibration promised {_percent(far_promised)} for as many new classes"
            + ("" if far >= far_promised.low else ": lower than promised, the threshold is stricter than needed"),
        ),
        Finding(
            limit="tar_within_promise",
            passed=tar >= tar_promised.low,
            explanation=f"TAR {tar:.1%}; calibration promised {_percent(tar_promised)}"
            + ("" if tar <= tar_promised.high else ": higher than promised"),
        ),
    ]
    allowed = limits.group_far_factor * target_far
    for column, rates in groups.items():
        over = [r for r in rates if not r.small and r.far is not None and r.far_interval.low > allowed]
        named = ", ".join(f"{r.name} {r.far:.2%}" for r in over)
        findings.append(
            Finding(
                limit=f"group_far:{column}",
                passed=not over,
                explanation=f"FAR of every group of {column} must not exceed {allowed:.2%} "
                f"({limits.group_far_factor:g} times the target); " + (f"exceeded by {named}" if over else "none does"),
            )
        )
    return findings


def _differences(comparison: GroupComparison) -> dict[str, Any]:
    """How far groups are apart; their rates stand under `groups`."""
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


def _percent(interval: Interval) -> str:
    return f"{interval.low:.2%} to {interval.high:.2%}"
