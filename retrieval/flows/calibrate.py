"""Calibration: chooses and stores a threshold for an error target, on labelled images of calibration classes.

The flow embeds the images, lets `engine/score_choice.py` choose the score, and records the threshold with its evidence
as an operating point. `retrieval.consistency` computes the statistics.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import PurePosixPath
from typing import Any

import numpy as np

from retrieval.consistency import (
    Certificate,
    LabelledVectors,
    MeanCertificate,
    Target,
    ThresholdComparison,
    cap_advice,
    certify,
    certify_mean,
    compare_thresholds,
    fit_best_calibrator,
)
from retrieval.contract.bundle import BundleDigest
from retrieval.contract.manifest import Item, Manifest, check_labels, families_of, read_source
from retrieval.contract.operating_point import OperatingPoint
from retrieval.contract.score import Score
from retrieval.engine.class_choice import with_catalog_scores
from retrieval.engine.embedding import EmbeddedItems, ImageEmbedder, embed_items
from retrieval.engine.images import Failure
from retrieval.engine.labelled_embeddings import N_ROUNDS, LabelledEmbeddings
from retrieval.engine.live import needs_reindex
from retrieval.engine.score_choice import (
    COHORT_K,
    best_score,
    candidate_scores,
    check_cohort,
    measure_score,
)
from retrieval.engine.store import Store
from retrieval.errors import CorruptArtifact, InvalidInput, NotEnoughEvidence, UnknownOperatingPoint

__all__ = [
    "COHORT_K",
    "Calibration",
    "CalibrationRequest",
    "CalibrationTarget",
    "calibrate",
    "compare_with_active",
    "run_calibration",
]

_DEFAULT_TARGET = Target("far", 0.01)


@dataclass(frozen=True, slots=True, kw_only=True)
class CalibrationTarget:
    """The target of the threshold, and the parameters of its intervals, certificates and probabilities.

    `prevalence`: share of matches among the pairs that the match probabilities assume; `confidence`: level of the
    intervals. Certificates state a FAR of at most `certified_far` for a new class with probability
    `1 - certified_delta`, and one of at most `certified_mean_far` on average; `certified_strict`,
    `certified_max_images`: see `certify`.
    """

    target: Target = _DEFAULT_TARGET
    prevalence: float = 0.01
    confidence: float = 0.95
    certified_far: float = 0.1
    certified_delta: float = 0.05
    certified_mean_far: float = 0.05
    certified_strict: bool = True
    certified_max_images: int | None = None

    def __post_init__(self) -> None:
        for name in ("prevalence", "confidence", "certified_far", "certified_delta", "certified_mean_far"):
            if not 0 < (value := getattr(self, name)) < 1:
                raise InvalidInput(f"{name}: expected a number between 0 and 1, found {value}")
        if self.certified_max_images is not None and self.certified_max_images < 2:
            raise InvalidInput(f"certified_max_images: expected at least 2, found {self.certified_max_images}")


@dataclass(frozen=True, slots=True, kw_only=True)
class CalibrationRequest:
    """What to calibrate: a bundle of the store, on the labelled images of a manifest.

    `cohort`: manifest with images of other classes, "" to try the plain cosine only; `k`: size of a
    neighbourhood in the cohort; `family`: a column of the manifest, "" for none, whose values name the units in which
    classes are drawn together; `seed`: of the resampling; `activate`: also make the new operating point active;
    `catalog_labels`: whether the items of the catalogues carry labels. Then searches in a labelled gallery are counted,
    and catalogue scores are tried too.
    """

    bundle: BundleDigest
    data: str
    cohort: str = ""
    k: int = COHORT_K
    target: CalibrationTarget = field(default_factory=CalibrationTarget)
    seed: int = 0
    activate: bool = False
    family: str = ""
    catalog_labels: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """A stored operating point and what it changes.

    `active`: whether it is active now; `changes`: the decisions that differ from those of the operating point that was
    active before, None if they cannot be compared, and then `no_changes` gives the reason; `failures`: images that
    were left out, of the calibration images and of the cohort; `needs_reindex`: the catalogues whose live snapshot was
    built with another score, so that they wait for a reindex while this operating point is active; `passed_over`: see
    `contract/manifest.py`; `advice`: a sentence for each certificate that fewer images of large classes would loosen.
    """

    point: OperatingPoint
    active: bool
    changes: ThresholdComparison | None
    no_changes: str
    failures: Sequence[Failure]
    needs_reindex: tuple[str, ...] = ()
    passed_over: Sequence[str] = ()
    advice: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return the operating point as plain JSON, with its id, its state and what it changes."""
        return {
            "id": self.point.id,
            "active": self.active,
            **self.point.to_json(),
            "changes": None if self.changes is None else asdict(self.changes),
            "no_changes": self.no_changes,
            "needs_reindex": list(self.needs_reindex),
            "failures": [asdict(failure) for failure in self.failures],
            "passed_over": list(self.passed_over),
            "advice": list(self.advice),
        }


def run_calibration(
    store: Store,
    request: CalibrationRequest,
    *,
    embedder: ImageEmbedder,
    created_at: str,
    progress: Callable[[str, int, int], None],
) -> Calibration:
    """Embed the images, calibrate, store the operating point with its score, and activate it if asked.

    `progress(description, done, total)` is called after each shard of images. Raises UnknownBundle, InvalidManifest,
    EmptyCatalog, InvalidInput (classes of the cohort), TooManyFailures, NotEnoughEvidence.
    """
    bundle = store.bundle(request.bundle).digest
    source = read_source(request.data)
    items = source.items
    check_labels(items, request.data)
    families_of(items, request.data, request.family)  # refused before the images are embedded
    cohort_source = read_source(request.cohort) if request.cohort else Manifest([])
    others = cohort_source.items
    check_cohort(items, others)

    def embed(source: str, items: Sequence[Item]) -> EmbeddedItems:
        return embed_items(
            store,
            embedder,
            bundle,
            items,
            progress=lambda done, total: progress(f"embedding {PurePosixPath(source).name}", done, total),
        )

    embedded = embed(request.data, items)
    labels = [item.label for item in embedded.items]
    families = families_of(embedded.items, request.data, request.family)
    data = LabelledEmbeddings(embedded.embeddings, labels, embedded.content_digest, families, request.family)
    scores: tuple[Score, ...] = (Score(),)
    failures = embedded.failures
    if request.cohort:
        cohort = embed(request.cohort, others)
        names = [item.label for item in cohort.items]
        scores = candidate_scores(cohort.embeddings, names if all(names) else (), k=request.k)
        failures += cohort.failures
    n_choosing = 0
    if request.catalog_labels:
        choice = with_catalog_scores(replace(data, n_rounds=N_ROUNDS), scores, request.target.target)
        data, scores, n_choosing = choice.judging, choice.scores, choice.n_choosing
    rng = np.random.default_rng(request.seed)
    point = calibrate(data, bundle=bundle, scores=scores, target=request.target, rng=rng, created_at=created_at)
    point = replace(point, n_choosing=n_choosing)
    (score,) = (score for score in scores if score.digest == point.score_digest)
    changes, no_changes = _changes(store, data, score, point)
    store.put_score(bundle, score)
    store.put_operating_point(point)
    if request.activate:
        store.activate(bundle, point.id)
    active = store.active_id(bundle) == point.id
    return Calibration(
        point=point,
        active=active,
        changes=changes,
        no_changes=no_changes,
        failures=failures,
        needs_reindex=needs_reindex(store, point),
        passed_over=(*source.passed_over, *cohort_source.passed_over),
        advice=_advice(data.scored(score), point),
    )


def calibrate(
    data: LabelledEmbeddings,
    *,
    bundle: BundleDigest,
    scores: Sequence[Score],
    target: CalibrationTarget,
    rng: np.random.Generator,
    created_at: str,
) -> OperatingPoint:
    """Measure every score on the data, choose the best one as `best_score` does, and choose its threshold.

    `compared` lists all the scores. Raises NotEnoughEvidence, InvalidEmbeddings.
    """
    measured = [measure_score(data, score, target.target, target.confidence, rng) for score in scores]
    best = best_score(measured)
    vectors = data.scored(best.score)
    calibrator = fit_best_calibrator(vectors, prevalence=target.prevalence, rng=rng)
    certified, cap = vectors, target.certified_max_images
    if data.n_rounds and cap is not None:  # a cap changes what the classes are pulled to
        certified, target = data.capped(cap).scored(best.score), replace(target, certified_max_images=None)
    certificate, refusal = _certificate(certified, target)
    mean_certificate, mean_refusal = _mean_certificate(certified, target)
    if data.n_rounds:
        certificate = certificate and replace(certificate, max_images=cap)
        mean_certificate = mean_certificate and replace(mean_certificate, max_images=cap)
    return OperatingPoint(
        bundle_digest=bundle,
        score_digest=best.score.digest,
        score_kind=best.score.kind,
        choice=best.choice,
        certificate=certificate,
        certificate_refusal=refusal,
        mean_certificate=mean_certificate,
        mean_certificate_refusal=mean_refusal,
        calibrator=calibrator,
        compared=tuple(entry.comparison for entry in measured),
        data_digest=data.data_digest,
        created_at=created_at,
        family=data.family,
        n_rounds=data.n_rounds,
        strangers=best.strangers,
    )


def compare_with_active(
    data: LabelledEmbeddings, score: Score, proposed: OperatingPoint, active: OperatingPoint
) -> ThresholdComparison | None:
    """Return the decisions on the data that would change; None if the active operating point has another score."""
    if proposed.score_digest != active.score_digest:
        return None
    return compare_thresholds(data.scored(score), active=active.threshold, proposed=proposed.threshold)


def _changes(
    store: Store, data: LabelledEmbeddings, score: Score, point: OperatingPoint
) -> tuple[ThresholdComparison | None, str]:
    """Return the decisions that change, or None and the reason why they cannot be compared."""
    if store.active_id(point.bundle_digest) is None:
        return None, "no operating point was active"
    try:
        active = store.active_operating_point(point.bundle_digest)
    except (CorruptArtifact, UnknownOperatingPoint) as error:  # the new operating point is useful all the same
        return None, str(error)
    changes = compare_with_active(data, score, point, active)
    if changes is None:
        return None, f"it uses another score ({active.score_kind}), so the thresholds cannot be compared"
    return changes, ""


def _advice(vectors: LabelledVectors, point: OperatingPoint) -> tuple[str, ...]:
    """Return what would loosen the certificates of unequal classes."""
    named = (("certificate", point.certificate), ("certificate on average", point.mean_certificate))
    advised = [(name, cap_advice(vectors, found)) for name, found in named if found is not None]
    return tuple(f"{name}: {sentence}" for name, sentence in advised if sentence)


def _certificate(vectors: LabelledVectors, target: CalibrationTarget) -> tuple[Certificate | None, str]:
    """Return the certificate, or None and the reason: a threshold is useful without one."""
    try:
        certificate = certify(
            vectors,
            alpha=target.certified_far,
            delta=target.certified_delta,
            strict=target.certified_strict,
            max_images=target.certified_max_images,
        )
        return certificate, ""
    except NotEnoughEvidence as error:
        return None, str(error)


def _mean_certificate(vectors: LabelledVectors, target: CalibrationTarget) -> tuple[MeanCertificate | None, str]:
    """Return the certificate of the mean FAR, or None and the reason."""
    try:
        certificate = certify_mean(
            vectors,
            alpha=target.certified_mean_far,
            strict=target.certified_strict,
            max_images=target.certified_max_images,
        )
        return certificate, ""
    except NotEnoughEvidence as error:
        return None, str(error)
