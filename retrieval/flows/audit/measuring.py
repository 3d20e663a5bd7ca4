"""The audit itself: embed labelled images with the production encoder, measure the active threshold, judge it.

`retrieval.consistency` computes the statistics, `report.py` holds the results, the caller's `render` makes the page.
An audit changes no threshold. It counts what calibration counted: the pairs of one set of images, or searches in a
labelled gallery and strangers.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from retrieval.consistency import (
    Certificate,
    Finding,
    LabelledVectors,
    MeanCertificate,
    OperatingCurves,
    OpisOptions,
    OpisResult,
    PromisedRate,
    StrangerRate,
    VerdictLimits,
    class_rates,
    compare_groups,
    consistency_around,
    consistency_report,
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
    stranger_rate,
    warnings_at,
)
from retrieval.contract.canonical import json_bytes
from retrieval.contract.manifest import Item, check_labels, families_of, read_source
from retrieval.contract.operating_point import OperatingPoint
from retrieval.contract.score import Score
from retrieval.engine.embedding import MAX_FAILED_SHARE, EmbeddedItems, ImageEmbedder, embed_items
from retrieval.engine.labelled_embeddings import LabelledEmbeddings
from retrieval.engine.live import live_parts
from retrieval.engine.store import REPORT, Store, check_catalog_name
from retrieval.engine.thumbnails import thumbnail
from retrieval.errors import InvalidInput, NotEnoughEvidence
from retrieval.flows.audit.report import N_LISTED, AuditReport

_SEED = 0  # of splits and resampling; fixed, so that a repeated audit gives the same report
_N_THUMBNAILS = 160  # in the report, some 2 kB each
DEFAULT_LIMITS = VerdictLimits()


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditRequest:
    """What to audit: the model and threshold of `catalog`, on the labelled images of `manifest_uri`.

    `group_by`: columns of groups that are compared; `family`: a column whose values name the units in which classes are
    drawn together, "" for none.
    """

    catalog: str
    manifest_uri: str
    group_by: tuple[str, ...] = ()
    family: str = ""

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
    families_of(items, request.manifest_uri, request.family)  # refused before the images are embedded
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
    families = families_of(embedded.items, request.manifest_uri, request.family)
    data = LabelledEmbeddings(
        embedded.embeddings, labels, embedded.content_digest, families, request.family, point.n_rounds
    )
    vectors = data.scored(score)
    plain = vectors if vectors.cosine else labelled(embedded.embeddings, labels)
    threshold, choice = point.threshold, point.choice
    certificates = [found for found in (point.certificate, point.mean_certificate) if found is not None]
    curves = operating_curves(vectors, include=[threshold, *(found.threshold for found in certificates)])
    exact = curves.at(threshold)

    def curves_at(found: Certificate | MeanCertificate) -> OperatingCurves:
        if not point.n_rounds or found.max_images is None:
            return curves.at(found.threshold)
        # A class is pulled to the mean of the images that are drawn.
        return operating_curves(data.capped(found.max_images).scored(score), thresholds=[found.threshold])

    comparisons = {
        column: compare_groups(
            vectors,
            [item.attributes[column] for item in embedded.items],
            threshold,
            rng=np.random.default_rng(_SEED),
        )
        for column in request.group_by
    }
    n_classes, n_families = len(exact.classes), vectors.n_families
    n_far, n_tar = _promised_for(point, n_classes, n_classes - exact.n_excluded, n_families)
    far = PromisedRate(measured=float(exact.pooled_far[0]), promised=choice.predicted_far(n_far))
    tar = PromisedRate(measured=float(exact.pooled_tar[0]), promised=choice.predicted_tar(n_tar))
    strangers, of_strangers = _strangers(data, score, point, n_far)
    rng = np.random.default_rng(_SEED)
    opis_cosine = consistency_report(plain, rng=rng)
    warnings = (*_family_notes(point, request.family, n_families), *warnings_at(vectors, exact))
    groups = {column: comparison.groups for column, comparison in comparisons.items()}
    of_far, *others = judge(
        far, tar, groups, target_far=choice.target_far, strangers=of_strangers, limits=limits.verdict
    )
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
        far_items=_far_items(data, score),
        strangers=strangers,
        strangers_promised=None if of_strangers is None else of_strangers.promised,
        item_ids=tuple(item.id for item in embedded.items),
        n_images=len(labels),
        n_classes=n_classes,
        n_single=int(np.count_nonzero(exact.n_images == 1)),
        failures=embedded.failures,
        opis_target=_around_target(vectors, choice.target_far),
        findings=[noted(of_far, warnings), *others, *_retests(point, curves_at, vectors.families)],
        warnings=warnings,
        family=request.family,
        n_families=n_families,
    )


def _strangers(
    data: LabelledEmbeddings, score: Score, point: OperatingPoint, n_classes: int
) -> tuple[StrangerRate | None, PromisedRate | None]:
    """Return the FAR of strangers, and the same with what calibration promised for so many classes; None if nothing."""
    if point.strangers is None:
        return None, None
    found = stranger_rate(data.strangers(score), point.threshold)
    return found, PromisedRate(measured=found.far, promised=point.strangers.predicted(n_classes))


def _far_items(data: LabelledEmbeddings, score: Score) -> tuple[int, ...]:
    """Return the rows of images whose label a catalogue score takes for wrong, see `PulledItems`; else none."""
    if score.classes is None:
        return ()
    return tuple(np.flatnonzero(score.gallery(data.embeddings, data.labels).far).tolist())


def _promised_for(point: OperatingPoint, n_classes: int, n_with: int, n_families: int | None) -> tuple[int, int]:
    """Return for how many new classes the promises of FAR and TAR are asked; n_with: classes with a positive pair.

    If families are named here and were in calibration, they are the units. Then the promise is the one for as many
    classes as so many families held there, or for fewer if there are fewer: those of one family come together.
    """
    if n_families is None or point.choice.n_families is None:
        return n_classes, n_with
    most = round(n_families * point.choice.n_classes / point.choice.n_families)
    return max(2, min(n_classes, most)), max(1, min(n_with, most))


def _family_notes(point: OperatingPoint, family: str, n_families: int | None) -> Iterator[str]:
    """Yield a sentence if families were named in calibration and not here, or the other way round."""
    counted = point.choice.n_families
    if counted is not None and n_families is None:
        column = f" (column {point.family!r})" if point.family else ""
        yield (
            f"calibration counted {counted} families of classes{column} and the promise takes classes here to come in "
            "as large families; name their column for this audit too"
        )
    if counted is None and n_families is not None:
        yield (
            f"the {n_families} families of column {family!r} were not named in calibration, so its promise takes "
            "every class to be drawn by itself; calibrate with this column"
        )


def _retests(
    point: OperatingPoint,
    curves_at: Callable[[Certificate | MeanCertificate], OperatingCurves],
    families: NDArray[np.int64] | None,
) -> Iterator[Finding]:
    """Test the certificates of the operating point on the new classes, each at its own threshold."""

    def retested(finding: Finding, certified: float) -> Finding:
        if point.threshold >= certified:
            return finding
        active = f"the active threshold {point.threshold:.4f} is below {certified:.4f}"
        return noted(finding, [f"{active}: the certificate does not hold there"])

    if (found := point.certificate) is not None:
        yield retested(retest_certificate(found, curves_at(found).far[:, 0], families), found.threshold)
    if (mean := point.mean_certificate) is not None:
        yield retested(retest_mean_certificate(mean, curves_at(mean).far[:, 0], families), mean.threshold)


def _thumbnails(report: AuditReport, items: Sequence[Item], embedder: ImageEmbedder) -> dict[int, bytes]:
    """Make small pictures of the images that the report names: first of confused pairs, then of labels to check."""
    rows = [row for pair in report.confusion.pairs for e in pair.examples for row in (e.first_row, e.second_row)]
    rows += [*(suspect.row for suspect in report.suspects), *report.far_items[:N_LISTED]]
    wanted = list(dict.fromkeys(rows))[:_N_THUMBNAILS]
    made = embedder.pool.map(lambda row: thumbnail(items[row].uri, embedder.limits), wanted)
    return {row: picture for row, picture in zip(wanted, made, strict=True) if picture}


def _around_target(vectors: LabelledVectors, far: float) -> OpisResult | None:
    """Return OPIS around the FAR target, or None if the images cannot show it."""
    try:
        return consistency_around(vectors, far, rng=np.random.default_rng(_SEED))
    except (NotEnoughEvidence, InvalidInput):
        return None
