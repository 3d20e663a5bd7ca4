"""Reindexing: makes a live snapshot from a manifest of images. Plans, embeds shards, builds, validates, publishes.

The edge decides whether the steps run one after another or on many workers. Every step finds its own earlier work in
the store, so a step that is killed or delivered twice costs only time. The old snapshot stays live until the one write
at the end.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np

from retrieval.contract.bundle import BundleDigest
from retrieval.contract.canonical import digest_json
from retrieval.contract.documents import Count, parse
from retrieval.contract.manifest import read_source
from retrieval.contract.operating_point import OperatingPoint
from retrieval.contract.score import Score
from retrieval.engine.class_table import label_summary
from retrieval.engine.embedding import MAX_FAILED_SHARE, SHARD_ITEMS, ImageEmbedder, check_failures, embed_shard
from retrieval.engine.images import Failure
from retrieval.engine.index.open import build_index, check_place
from retrieval.engine.index.recall import measure_recall
from retrieval.engine.index.spec import IndexSpec
from retrieval.engine.items import ItemRows, ItemTable
from retrieval.engine.live import matching_parts
from retrieval.engine.prefixes import resolve_prefix
from retrieval.engine.snapshot import SnapshotId, SnapshotManifest, snapshot_id
from retrieval.engine.staging import Staging
from retrieval.engine.store import Store, check_catalog_name
from retrieval.errors import (
    CorruptArtifact,
    InvalidInput,
    UnknownCatalog,
    UnknownSnapshot,
    ValidationFailed,
)

_NAMED_FAILURES = 100  # in the snapshot's manifest, which counts all of them


@dataclass(frozen=True, slots=True, kw_only=True)
class ReindexRequest:
    """What to index. `bundle_digest`: "" means the bundle of the live snapshot, or the only one in the store."""

    catalog: str
    manifest_uri: str
    bundle_digest: str = ""
    index_spec: str = "Exact"
    max_failed_share: float = MAX_FAILED_SHARE

    def check(self) -> None:
        """Raise InvalidInput if a value can never work."""
        check_catalog_name(self.catalog)
        check_place(IndexSpec.parse(self.index_spec))
        if not self.manifest_uri:
            raise InvalidInput("manifest_uri: expected a path or URL, found nothing")
        if not 0 <= self.max_failed_share <= 1:
            raise InvalidInput(f"max_failed_share: expected 0 to 1, found {self.max_failed_share}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A planned reindex: the request with the digest of its bundle, and the numbers of items and shards.

    `passed_over`: see `contract/manifest.py`.
    """

    request: ReindexRequest
    n_items: Count
    n_shards: Count
    passed_over: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Catalog:
    """The embedded shards of a job: keys of the embeddings, usable items, digest of all content, failures."""

    keys: tuple[str, ...]
    items: tuple[ItemRows, ...]
    digest: str
    failures: tuple[Failure, ...]


def settle_bundle(store: Store, request: ReindexRequest) -> ReindexRequest:
    """Return the request with the digest of its bundle. Raises UnknownBundle, UnknownOperatingPoint, InvalidInput."""
    digest = request.bundle_digest
    if digest:
        digest = store.find_bundle(digest)
    else:
        try:
            live = store.snapshot_manifest(request.catalog, store.current(request.catalog))
            digest = live.bundle_digest
        except UnknownCatalog:
            digest = store.only_bundle()
    store.active_operating_point(store.bundle(BundleDigest(digest)).digest)
    return replace(request, bundle_digest=digest)


def plan(store: Store, job_id: str, request: ReindexRequest, roots: Sequence[str] | None = None) -> Plan:
    """Read the manifest and store the shards of a job, the plan last; return an existing plan unchanged.

    roots: where a server of the web may lead, see `Place.of`.

    Raises InvalidManifest, EmptyCatalog, InvalidInput (too few items for the index, or no labels and a score that uses
    them), and what `settle_bundle` raises.
    """
    if (stored := load_plan(store, job_id)) is not None:
        return stored
    settled = settle_bundle(store, request)
    found = read_source(request.manifest_uri, roots)
    items = found.items
    # now, not after hours of embedding
    IndexSpec.parse(settled.index_spec).check_items(len(items))
    _check_labels(settled.catalog, _active_score(store, settled), (item.label for item in items))
    staging = Staging(store.objects, job_id)
    starts = range(0, len(items), SHARD_ITEMS)
    for number, start in enumerate(starts):
        staging.put_items(number, ItemRows.of(items[start : start + SHARD_ITEMS]))
    made = Plan(request=settled, n_items=len(items), n_shards=len(starts), passed_over=found.passed_over)
    staging.put_plan(asdict(made))
    return made


def load_plan(store: Store, job_id: str) -> Plan | None:
    """Return the plan of a job; None if it is not planned yet. Raises CorruptArtifact if it is damaged."""
    staging = Staging(store.objects, job_id)
    value = staging.plan()
    if value is None:
        return None
    planned = parse(Plan, value, staging.plan_url)
    try:
        planned.request.check()
    except InvalidInput as error:
        raise CorruptArtifact(f"{staging.plan_url}: {error}") from error
    return planned


def embed_planned_shard(store: Store, job_id: str, planned: Plan, number: int, *, embedder: ImageEmbedder) -> None:
    """Embed one shard of a planned job and write its result, unless that was done before."""
    staging = Staging(store.objects, job_id)
    if staging.has_result(number):
        return
    rows = staging.items(number)
    bundle = BundleDigest(planned.request.bundle_digest)
    staging.put_result(number, rows, embed_shard(store, embedder, bundle, rows.items()))


def missing_shards(store: Store, job_id: str, planned: Plan) -> list[int]:
    """Return the numbers of the shards that have no result yet."""
    return Staging(store.objects, job_id).missing(planned.n_shards)


def build_and_publish(store: Store, job_id: str, planned: Plan, *, created_at: str, device: str = "cpu") -> SnapshotId:
    """Build the snapshot of a job whose shards are all embedded, validate it and make it live.

    Raises TooManyFailures, ValidationFailed, InvalidInput (too few items for the index, or no labels), BundleMismatch
    (another score was activated meanwhile); nothing is published then.
    """
    request = planned.request
    catalog = _embedded_catalog(Staging(store.objects, job_id), planned)
    point = store.active_operating_point(BundleDigest(request.bundle_digest))
    new_id = snapshot_id(
        bundle=point.bundle_digest,
        score=point.score_digest,
        catalog_digest=catalog.digest,
        index_spec=IndexSpec.parse(request.index_spec),
        threshold=point.threshold,
    )

    def publish() -> None:
        if not _is_intact(store, request.catalog, new_id):
            _build(store, new_id, request, point, catalog, created_at=created_at, device=device)
        matching_parts(store, request.catalog, new_id)
        store.open_snapshot(request.catalog, new_id)  # check the stored files, not those in memory
        if load_plan(store, job_id) is None:  # a build that is delivered twice must not undo a later publication
            raise ValidationFailed(f"job {job_id} was finished by another worker meanwhile: nothing was published")
        store.publish(request.catalog, new_id)

    try:
        publish()
    except UnknownSnapshot:  # it was there already, old, and was pruned meanwhile
        publish()
    return new_id


def clear_staging(store: Store, job_id: str) -> None:
    """Remove the working files of a finished job."""
    Staging(store.objects, job_id).clear()


def _embedded_catalog(staging: Staging, planned: Plan) -> _Catalog:
    """Read the results of all shards. Raises TooManyFailures, ValidationFailed if a file is missing."""
    results = [staging.result(number) for number in range(planned.n_shards)]
    failures = tuple(failure for _, shard in results for failure in shard.failures)
    check_failures(failures, planned.n_items, planned.request.max_failed_share)
    return _Catalog(
        keys=tuple(shard.key for _, shard in results),
        items=tuple(rows for rows, _ in results),
        digest=digest_json([[rows.digest, *shard.image_digests] for rows, shard in results]),
        failures=failures,
    )


def _is_intact(store: Store, catalog: str, snapshot: SnapshotId) -> bool:
    """Return True if the snapshot is stored and opens; a damaged one is built again."""
    try:
        store.open_snapshot(catalog, snapshot)
    except (UnknownSnapshot, CorruptArtifact):
        return False
    return True


def _build(
    store: Store,
    new_id: SnapshotId,
    request: ReindexRequest,
    point: OperatingPoint,
    catalog: _Catalog,
    *,
    created_at: str,
    device: str,
) -> None:
    """Build the index and the item table, check them against each other, and store the snapshot."""
    score = store.score(point.bundle_digest, point.score_digest)
    labels = [label for rows in catalog.items for label in rows.labels]
    _check_labels(request.catalog, score, labels)  # another score may have been activated since the plan
    embeddings = np.concatenate([store.embeddings(key) for key in catalog.keys])
    gallery = score.gallery(embeddings, labels)
    spec = IndexSpec.parse(request.index_spec)
    index = build_index(gallery.vectors, spec, device=device, threshold=point.threshold)
    n_items = len(labels)
    if not n_items == index.n_items == len(embeddings):
        raise ValidationFailed(
            f"snapshot {new_id}: {n_items} items, {len(embeddings)} embeddings and {index.n_items} indexed vectors "
            "should be equally many"
        )
    items = ItemTable.join(catalog.items, gallery.densities, None if gallery.classes is None else gallery.offsets)
    recall = measure_recall(index, gallery.vectors, point.threshold, lambda rows: score.query_vectors(embeddings[rows]))
    manifest = SnapshotManifest(
        id=new_id,
        catalog=request.catalog,
        bundle_digest=point.bundle_digest,
        score_digest=point.score_digest,
        catalog_digest=catalog.digest,
        index_spec=str(index.spec),
        dimension=index.dimension,
        n_items=n_items,
        n_failed=len(catalog.failures),
        failures={failure.item_id: failure.reason for failure in catalog.failures[:_NAMED_FAILURES]},
        index_recall=recall.value,
        index_recall_low=recall.low,
        index_recall_high=recall.high,
        index_details={**index.details(), **recall.details()},
        shards=catalog.keys,
        files={},
        created_at=created_at,
        operating_point_id=point.id,
        labels=label_summary(gallery, labels, items),
    )
    store.put_snapshot(manifest, index, items, gallery.classes)


def labels_for(store: Store, request: ReindexRequest) -> str:
    """Return what a settled request needs labels for: a catalogue score; empty if it needs none."""
    score = _active_score(store, request)
    return "" if score.classes is None else f"the {score.kind} score of the active operating point"


def _active_score(store: Store, request: ReindexRequest) -> Score:
    point = store.active_operating_point(BundleDigest(request.bundle_digest))
    return store.score(point.bundle_digest, point.score_digest)


def _check_labels(catalog: str, score: Score, labels: Iterable[str]) -> None:
    """Raise InvalidInput if the score uses labels and there are none."""
    if score.classes is not None and not any(labels):
        raise InvalidInput(
            f"catalogue {catalog!r}: the active operating point has the {score.kind} score {score.digest}, which "
            "compares an item with its class: expected items with labels, found none. Add the labels to the manifest "
            "(a column label, or one sub-folder for each class), or activate an operating point whose score uses none: "
            "`retrieval calibrate` without --catalog-labels makes one"
        )


@dataclass(frozen=True, slots=True)
class RollbackTarget:
    """The snapshot that a rollback makes live; `damaged`: by its id why another one cannot be read, and so was none."""

    manifest: SnapshotManifest
    damaged: Mapping[str, str]


def roll_back(store: Store, catalog: str, target: SnapshotId) -> RollbackTarget:
    """Make an older snapshot live again, after verifying it.

    target: its id, or the start of its id; "" means the newest one older than the live one. Damaged ones are passed
    over; if the live one is damaged, it means the newest of the others. Raises UnknownCatalog, UnknownSnapshot,
    UnknownBundle, CorruptArtifact, and BundleMismatch if the active operating point uses another score.
    """
    found = rollback_target(store, catalog, target)
    store.mark_rolled_back(catalog, found.manifest.id)
    store.publish(catalog, found.manifest.id)
    return found


def rollback_target(store: Store, catalog: str, target: SnapshotId) -> RollbackTarget:
    """Return the snapshot that `roll_back` would make live, verified as it does; changes nothing."""
    damaged: Mapping[str, str] = {}
    if target:
        ids, hint = store.snapshot_ids(catalog), "see `retrieval snapshots list`"
        kind = f"snapshot of catalogue {catalog}"
        target = SnapshotId(resolve_prefix(target, ids, kind=kind, unknown=UnknownSnapshot, hint=hint))
    else:
        target, damaged = _previous(store, catalog)
    manifest = matching_parts(store, catalog, target).manifest
    store.open_snapshot(catalog, target)
    return RollbackTarget(manifest, damaged)


def _previous(store: Store, catalog: str) -> tuple[SnapshotId, Mapping[str, str]]:
    """Return the snapshot before the live one, and the damaged ones."""
    live, found = store.current(catalog), store.snapshots(catalog)
    live_at = next((manifest.created_at for manifest in found.readable if manifest.id == live), None)
    for manifest in found.readable:
        if live_at is None or manifest.created_at < live_at:
            return manifest.id, found.damaged
    passed_over = "".join(f"; passed over {name}: {problem}" for name, problem in found.damaged.items())
    raise UnknownSnapshot(f"catalogue {catalog!r} has no snapshot older than the live one, {live}{passed_over}")
