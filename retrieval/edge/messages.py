"""Converts snapshots and operating points to messages: for the server, and for commands that need none."""

import json
from collections.abc import Sequence
from dataclasses import asdict

from retrieval.consistency import Interval
from retrieval.contract.operating_point import OperatingPoint
from retrieval.edge.jobs.messages import timestamp
from retrieval.engine.snapshot import SnapshotManifest
from retrieval.v1 import catalogs_pb2, operating_points_pb2


def snapshot_message(manifest: SnapshotManifest, *, live: bool) -> catalogs_pb2.Snapshot:
    """Convert a snapshot."""
    labels = manifest.labels
    return catalogs_pb2.Snapshot(
        id=manifest.id,
        catalog=manifest.catalog,
        bundle_digest=manifest.bundle_digest,
        score_digest=manifest.score_digest,
        index_spec=manifest.index_spec,
        n_items=manifest.n_items,
        n_failed=manifest.n_failed,
        failures=manifest.failures,
        index_recall=manifest.index_recall,
        index_recall_low=manifest.index_recall_low,
        index_recall_high=manifest.index_recall_high,
        index_details=json.dumps(manifest.index_details) if manifest.index_details else "",
        created_at=timestamp(manifest.created_at),
        live=live,
        labels=None if labels is None else catalogs_pb2.LabelSummary(**asdict(labels)),
    )


def operating_point_message(
    point: OperatingPoint, *, active: bool, needs_reindex: Sequence[str] = ()
) -> operating_points_pb2.OperatingPoint:
    """Convert an operating point; `needs_reindex`: the catalogues whose live snapshot has another score."""
    choice, certificate, mean, strangers = point.choice, point.certificate, point.mean_certificate, point.strangers
    return operating_points_pb2.OperatingPoint(
        id=point.id,
        bundle_digest=point.bundle_digest,
        score_digest=point.score_digest,
        score_kind=point.score_kind,
        threshold=point.threshold,
        threshold_interval=_interval(choice.threshold_interval),
        far_target=choice.target_far,
        far=choice.far,
        far_interval=_interval(choice.far_interval),
        tar=choice.tar,
        tar_interval=_interval(choice.tar_interval),
        confidence=choice.confidence,
        n_classes=choice.n_classes,
        n_images=choice.n_images,
        prevalence=point.calibrator.prevalence,
        created_at=timestamp(point.created_at),
        active=active,
        target=str(choice.target),
        target_description=choice.target.describe(),
        class_far=choice.class_far,
        class_far_interval=_interval(choice.class_far_interval),
        far_promised=_interval(choice.predicted_far(choice.n_classes)),
        tar_promised=_interval(choice.predicted_tar(choice.n_classes_with_positives)),
        certificate=str(certificate or point.certificate_refusal),
        mean_certificate=str(mean or point.mean_certificate_refusal),
        certificate_threshold=None if certificate is None else certificate.threshold,
        mean_certificate_threshold=None if mean is None else mean.threshold,
        needs_reindex=needs_reindex,
        family=point.family,
        n_families=choice.n_families,
        n_rounds=point.n_rounds,
        stranger_far=None if strangers is None else strangers.far,
        stranger_far_interval=None if strangers is None else _interval(strangers.interval),
        stranger_far_promised=None if strangers is None else _interval(strangers.predicted(choice.n_classes)),
        n_choosing=point.n_choosing,
    )


def _interval(interval: Interval) -> operating_points_pb2.Interval:
    return operating_points_pb2.Interval(low=interval.low, high=interval.high)
