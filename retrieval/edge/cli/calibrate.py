"""Commands that need no server: calibrating, reindexing with an embedded queue, copying a report, asking for health."""

import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import fsspec
import grpc
import numpy as np
from grpc_health.v1 import health_pb2, health_pb2_grpc

from retrieval.consistency.thresholds.threshold_comparison import ThresholdComparison
from retrieval.contract.bundle import BundleDigest
from retrieval.contract.manifest import check_labels, read_manifest
from retrieval.contract.operating_point import OperatingPoint
from retrieval.contract.score import Score
from retrieval.edge import wire
from retrieval.edge.jobs import Jobs, now, redis_url
from retrieval.edge.jobs.embedded import die_with_parent, embedded_valkey
from retrieval.edge.queue import make_app, submit
from retrieval.edge.settings import Settings, child_environment
from retrieval.edge.wiring import OfflineParts, offline_parts
from retrieval.engine.embedding import EmbeddedItems, embed_items
from retrieval.engine.score_choice import LabelledEmbeddings, candidate_scores, check_cohort
from retrieval.engine.store import Store
from retrieval.errors import CorruptArtifact, RetrievalError, Unavailable, UnknownOperatingPoint
from retrieval.flows.calibrate import CalibrationTarget, calibrate, compare_with_active
from retrieval.flows.reindex import settle_bundle
from retrieval.terminal import err, out, print_table, progress_bar
from retrieval.v1 import audits_pb2, catalogs_pb2, jobs_pb2

_MAX_FAILED_SHARE = 0.01
_POLL_S = 0.3


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibrated:
    """A stored operating point; `active` where it is in use now.

    `changes`: what is decided otherwise than by the operating point that was in use before; None where that cannot be
    said, `no_changes` then says why.
    """

    point: OperatingPoint
    active: bool
    store_url: str
    changes: ThresholdComparison | None
    no_changes: str

    def to_json(self) -> dict[str, Any]:
        """The operating point as plain JSON, with its id, whether it is active and what it would change."""
        return {
            "id": self.point.id,
            "active": self.active,
            **self.point.to_json(),
            "changes": None if self.changes is None else asdict(self.changes),
            "no_changes": self.no_changes,
        }

    def print(self) -> None:
        """What people want to know of a new threshold."""
        point, choice = self.point, self.point.choice
        rows = [
            (
                entry.kind
                + (f", k {entry.k}" if entry.k else "")
                + (" (in use)" if entry.score_digest == point.score_digest else ""),
                f"{entry.tar:.3f}",
                f"{entry.far:.2e}",
                f"{entry.recall_at_1:.3f}",
                f"{entry.opis:.2e}",
                f"{entry.opis_floor:.2e}",
                "unknown" if entry.opis_debiased is None else f"{entry.opis_debiased:.2e}",
            )
            for entry in point.compared
        ]
        columns = ("score", "TAR", "FAR", "R@1", "OPIS (log FAR)", "noise floor", "debiased")
        title = f"{choice.n_classes} calibration classes, {choice.n_images} images; target: {choice.target.describe()}"
        print_table(title, columns, rows)
        level, far, tar = f"{choice.confidence:.0%}", choice.far_interval, choice.tar_interval
        out.print(
            f"threshold {choice.threshold:.4f} ({level}: {choice.threshold_interval}) for {choice.target.describe()}\n"
            f"FAR {choice.far:.4g} ({level}: {far}), mean over classes {choice.class_far:.4g} "
            f"({level}: {choice.class_far_interval})\n"
            f"TAR {choice.tar:.3f} ({level}: {tar}): it costs {choice.cost:.1%} of the true pairs"
        )
        out.print(f"certificate: {point.certificate or point.certificate_refusal}")
        out.print(f"certificate on average: {point.mean_certificate or point.mean_certificate_refusal}")
        out.print(f"against the operating point in use before: {self.changes or self.no_changes}")
        state = "in use" if self.active else "stored, not in use: `retrieval operating-points activate`"
        out.print(f"operating point {point.id} of bundle {point.bundle_digest}: {state}")


def calibrate_and_store(
    settings: Settings,
    *,
    bundle: str,
    data: str,
    cohort: str,
    k: int,
    target: CalibrationTarget,
    seed: int,
    activate: bool,
) -> Calibrated:
    """Add the bundle to the store where it is a folder, calibrate it, store the operating point, activate if asked."""
    parts = offline_parts(settings)
    store = parts.store
    digest = store.add_bundle(Path(bundle)).digest if Path(bundle).is_dir() else BundleDigest(bundle)
    labelled = _embed(parts, settings, digest, data, labelled=True)
    scores: tuple[Score, ...] = (Score(),)
    if cohort:
        others = _embed(parts, settings, digest, cohort, labelled=False)
        check_cohort(labelled.items, others.items)
        names = [item.label for item in others.items]
        scores = candidate_scores(others.embeddings, names if all(names) else (), k=k)
    images = LabelledEmbeddings(labelled.embeddings, [item.label for item in labelled.items], labelled.content_digest)
    point = calibrate(
        images, bundle=digest, scores=scores, target=target, rng=np.random.default_rng(seed), created_at=now()
    )
    (chosen,) = (score for score in scores if score.digest == point.score_digest)
    changes, no_changes = _changes(store, images, chosen, point)
    store.put_score(digest, chosen)
    store.put_operating_point(point)
    if activate:
        store.activate(digest, point.id)
    active = store.active_id(digest) == point.id
    return Calibrated(point=point, active=active, store_url=store.url, changes=changes, no_changes=no_changes)


def _changes(
    store: Store, images: LabelledEmbeddings, score: Score, point: OperatingPoint
) -> tuple[ThresholdComparison | None, str]:
    """What would be decided otherwise, or why that cannot be said: a new operating point is of use all the same."""
    if store.active_id(point.bundle_digest) is None:
        return None, "none was"
    try:
        active = store.active_operating_point(point.bundle_digest)
    except (CorruptArtifact, UnknownOperatingPoint) as error:
        return None, str(error)
    changes = compare_with_active(images, score, point, active)
    return changes, "" if changes else f"it is of another score ({active.score_kind}): thresholds do not compare"


def _embed(
    parts: OfflineParts, settings: Settings, digest: BundleDigest, manifest: str, *, labelled: bool
) -> EmbeddedItems:
    items = read_manifest(manifest)
    if labelled:
        check_labels(items, manifest)
    with progress_bar(f"embedding {Path(manifest).name}") as progress:
        embedded = embed_items(
            parts.store,
            parts.encoder(digest),
            items,
            limits=settings.limits,
            pool=parts.pool,
            max_failed_share=_MAX_FAILED_SHARE,
            progress=progress,
        )
    for failure in embedded.failures:
        err.print(f"left out {failure.item_id}: {failure.reason}", markup=False)
    return embedded


def reindex_embedded(settings: Settings, request: catalogs_pb2.StartReindexRequest) -> jobs_pb2.Job:
    """Run a reindex with a Valkey and a worker of its own, which end with it. Raises RetrievalError where it fails."""
    wanted = wire.reindex_request(request)
    wanted.check()
    settled = settle_bundle(offline_parts(settings).store, wanted)
    with embedded_valkey(settings.state_dir):
        jobs = Jobs(redis_url(settings))
        command = [sys.executable, "-m", "retrieval.edge.cli", "worker"]
        worker = subprocess.Popen(
            command,
            env=child_environment(settings),
            stdout=sys.stderr,  # Celery greets on stdout, which is for the result
            preexec_fn=die_with_parent,  # noqa: PLW1509  # calls one C function
        )
        try:
            job = submit(make_app(settings), jobs, "reindex", settled)
            with progress_bar(f"reindexing {settled.catalog}") as progress:
                while not (job := jobs.get(job.id)).state.is_final:
                    progress(job.n_done, job.n_total)
                    if worker.poll() is not None:
                        raise Unavailable(f"the worker ended with exit code {worker.returncode}: see its log above")
                    time.sleep(_POLL_S)
        finally:
            worker.terminate()
            worker.wait()
    if job.error:
        raise RetrievalError(f"reindex job {job.id} failed: {job.error}")
    return wire.job_message(job)


def copy_report(found: audits_pb2.Audit, folder: Path) -> None:
    """Copy an audit's report from the store into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for uri in (found.report_html_uri, found.report_json_uri):
        with fsspec.open(uri, "rb") as file:
            (folder / uri.rsplit("/", 1)[-1]).write_bytes(file.read())


def check_health(address: str) -> None:
    """Raises Unavailable unless the server at the address says that it serves."""
    with grpc.insecure_channel(address) as channel:
        try:
            reply = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=5)
        except grpc.RpcError as error:
            raise Unavailable(f"no server answers at {address}: {error.code().name}") from error
    if reply.status != health_pb2.HealthCheckResponse.SERVING:
        raise Unavailable(f"the server at {address} answers, but does not serve")
