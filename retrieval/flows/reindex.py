"""From a manifest of images to a live snapshot: plan, embed the shards, build, validate, publish.

Decides the steps and what makes each of them safe to repeat; leaves running them, one after another or on many
workers, to the edge. Every step finds its own earlier work in the store, so a killed or twice delivered step costs
nothing but its time, and what was live stays live until the one write at the end.
"""

import json
from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retrieval.contract.bundle import BundleDigest
from retrieval.contract.canonical import digest_json, json_bytes
from retrieval.contract.manifest import Item, read_manifest
from retrieval.contract.operating_point import OperatingPoint
from retrieval.contract.preprocessing import ImageLimits
from retrieval.contract.score import Score
from retrieval.engine.embedding import SHARD_ITEMS, EmbeddedShard, check_failures, embed_shard
from retrieval.engine.encoder import Encoder
from retrieval.engine.index.index import Index, recall
from retrieval.engine.index.open import build_index, exact_hits
from retrieval.engine.index.spec import IndexSpec
from retrieval.engine.items import Failure, ItemTable
from retrieval.engine.prefixes import resolve_prefix
from retrieval.engine.snapshot import SnapshotId, SnapshotManifest, snapshot_id
from retrieval.engine.store import Store, check_catalog_name
from retrieval.errors import (
    BundleMismatch,
    CorruptArtifact,
    InvalidInput,
    InvalidManifest,
    UnknownBundle,
    UnknownCatalog,
    UnknownSnapshot,
    ValidationFailed,
)

_NAMED_FAILURES = 100  # in the manifest; all are counted
_VALIDATION_QUERIES = 200
_MIN_RECALL = 0.9  # an approximate index that finds less than this of the matches is not published


@dataclass(frozen=True, slots=True, kw_only=True)
class ReindexRequest:
    """What to index. `bundle_digest` may be "" for the live snapshot's bundle, or the only one in the store."""

    catalog: str
    manifest_uri: str
    bundle_digest: str = ""
    index_spec: str = "Flat"
    max_failed_share: float = 0.01

    def check(self) -> None:
        """Raises InvalidInput where a value can never work."""
        check_catalog_name(self.catalog)
        IndexSpec.parse(self.index_spec)
        if not self.manifest_uri:
            raise InvalidInput("manifest_uri: expected a path or URL, found nothing")
        if not 0 <= self.max_failed_share <= 1:
            raise InvalidInput(f"max_failed_share: expected 0 to 1, found {self.max_failed_share}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A planned reindex: the request with its bundle settled, and the number of shards of its manifest."""

    request: ReindexRequest
    n_items: int
    n_shards: int


def settle_bundle(store: Store, request: ReindexRequest) -> ReindexRequest:
    """The request with its bundle named. Raises UnknownBundle, UnknownOperatingPoint, InvalidInput."""
    digest = request.bundle_digest
    if digest:
        hint = "add one with `retrieval calibrate`"
        digest = resolve_prefix(digest, store.bundles(), kind="bundle", unknown=UnknownBundle, hint=hint)
    else:
        try:
            live = store.snapshot_manifest(request.catalog, store.current(request.catalog))
            digest = live.bundle_digest
        except UnknownCatalog:
            digest = store.only_bundle()
    store.active_operating_point(store.bundle(BundleDigest(digest)).digest)
    return replace(request, bundle_digest=digest)


def plan(store: Store, job_id: str, request: ReindexRequest) -> Plan:
    """Read the manifest and store the shards of a job, the plan last. A plan that is there already is returned.

    Raises InvalidManifest, EmptyCatalog and what `settle_bundle` raises.
    """
    if (stored := load_plan(store, job_id)) is not None:
        return stored
    settled = settle_bundle(store, request)
    items = read_manifest(request.manifest_uri)
    starts = range(0, len(items), SHARD_ITEMS)
    for number, start in enumerate(starts):
        shard = [asdict(item) for item in items[start : start + SHARD_ITEMS]]
        try:
            data = json_bytes(shard)
        except UnicodeEncodeError as error:
            near = error.object[max(0, error.start - 100) : error.end]
            raise InvalidManifest(f"{request.manifest_uri}: a name is no UTF-8 text, it begins {near!a}") from error
        store.objects.put(_shard_key(job_id, number, "items"), data)
    made = Plan(request=settled, n_items=len(items), n_shards=len(starts))
    store.objects.put(f"staging/{job_id}/plan.json", json_bytes(asdict(made)))
    return made


def load_plan(store: Store, job_id: str) -> Plan | None:
    """The plan of a job; None where it was not planned yet."""
    data = store.objects.get(f"staging/{job_id}/plan.json")
    if data is None:
        return None
    value = json.loads(data)
    return Plan(**{**value, "request": ReindexRequest(**value["request"])})


def embed_planned_shard(
    store: Store, job_id: str, number: int, *, encoder: Encoder, limits: ImageLimits, pool: Executor
) -> None:
    """Embed one shard of a planned job and note the result; nothing happens where that was done before."""
    key = _shard_key(job_id, number, "result")
    if store.objects.exists(key):
        return
    items = [Item(**value) for value in _read_json(store, _shard_key(job_id, number, "items"))]
    shard = embed_shard(store, encoder, items, limits=limits, pool=pool)
    store.objects.put(key, json_bytes(asdict(shard)))


def missing_shards(store: Store, job_id: str, planned: Plan) -> list[int]:
    """Numbers of the shards that have no result yet."""
    done = set(store.objects.names(f"staging/{job_id}"))
    return [n for n in range(planned.n_shards) if _shard_key(job_id, n, "result").rsplit("/", 1)[-1] not in done]


def build_and_publish(store: Store, job_id: str, planned: Plan, *, created_at: str, device: str = "cpu") -> SnapshotId:
    """Build the snapshot of a job whose shards are all embedded, validate it and make it live.

    Raises TooManyFailures, ValidationFailed, InvalidInput (too few items for the index); nothing is published then.
    """
    request = planned.request
    shards = [_load_shard(store, job_id, number) for number in range(planned.n_shards)]
    failures = [failure for shard in shards for failure in shard.failures]
    check_failures(failures, planned.n_items, request.max_failed_share)
    point = store.active_operating_point(BundleDigest(request.bundle_digest))
    spec = IndexSpec.parse(request.index_spec)
    new_id = snapshot_id(
        bundle=point.bundle_digest,
        score=point.score_digest,
        catalog_digest=_catalog_digest(shards),
        index_spec=spec,
    )
    if not _is_intact(store, request.catalog, new_id):
        _build(store, request, new_id, point, spec, shards, failures, created_at=created_at, device=device)
    store.open_snapshot(request.catalog, new_id)  # what was written is what will be read
    if load_plan(store, job_id) is None:  # a build delivered twice must not undo what was published since
        raise ValidationFailed(f"job {job_id} was finished by another worker meanwhile: nothing was published")
    store.publish(request.catalog, new_id)
    return new_id


def clear_staging(store: Store, job_id: str) -> None:
    """Remove the working files of a finished job, the plan first, so that a kill leaves no empty plan."""
    store.objects.delete(f"staging/{job_id}/plan.json")
    store.objects.delete(f"staging/{job_id}")


def _is_intact(store: Store, catalog: str, snapshot: SnapshotId) -> bool:
    """Whether the snapshot is stored and opens; a damaged one is built again."""
    try:
        store.open_snapshot(catalog, snapshot)
    except (UnknownSnapshot, CorruptArtifact):
        return False
    return True


def _build(
    store: Store,
    request: ReindexRequest,
    new_id: SnapshotId,
    point: OperatingPoint,
    spec: IndexSpec,
    shards: Sequence[EmbeddedShard],
    failures: Sequence[Failure],
    *,
    created_at: str,
    device: str,
) -> None:
    score = store.score(point.bundle_digest, point.score_digest)
    embeddings = np.concatenate([store.embeddings(shard.key) for shard in shards])
    vectors = score.gallery_vectors(embeddings)
    index = build_index(vectors, spec, device=device)
    items = ItemTable.build([item for shard in shards for item in shard.items], score.density(embeddings))
    if not len(items) == index.n_items == len(embeddings):
        raise ValidationFailed(
            f"snapshot {new_id}: {len(items)} items, {len(embeddings)} embeddings and {index.n_items} indexed vectors "
            "should be equally many"
        )
    manifest = SnapshotManifest(
        id=new_id,
        catalog=request.catalog,
        bundle_digest=point.bundle_digest,
        score_digest=point.score_digest,
        catalog_digest=_catalog_digest(shards),
        index_spec=str(spec),
        dimension=index.dimension,
        n_items=len(items),
        n_failed=len(failures),
        failures={failure.item_id: failure.reason for failure in failures[:_NAMED_FAILURES]},
        index_recall=measure_recall(index, vectors, embeddings, score, point.threshold),
        shards=tuple(shard.key for shard in shards),
        files={},
        created_at=created_at,
    )
    store.put_snapshot(manifest, index, items)


def measure_recall(
    index: Index, vectors: NDArray[np.float32], embeddings: NDArray[np.float32], score: Score, threshold: float
) -> float:
    """Share of the true matches above the threshold that the index finds, over evenly spaced items as queries.

    Raises ValidationFailed where it is below 0.9.
    """
    if index.spec.is_exact:
        return 1.0
    sample = np.linspace(0, len(embeddings) - 1, min(len(embeddings), _VALIDATION_QUERIES)).astype(np.int64)
    queries = score.query_vectors(embeddings[sample])
    found = recall(index.above(queries, threshold), exact_hits(vectors, queries, threshold))
    if found < _MIN_RECALL:
        raise ValidationFailed(
            f"index {index.spec}: it finds {found:.1%} of the matches above the threshold {threshold:.4f}, at least "
            f"{_MIN_RECALL:.0%} is required: raise nprobe or use Flat"
        )
    return found


def _catalog_digest(shards: Sequence[EmbeddedShard]) -> str:
    """Digest of every usable item, its image's content included."""
    return digest_json([[asdict(item) for item in shard.items] + list(shard.image_digests) for shard in shards])


def _load_shard(store: Store, job_id: str, number: int) -> EmbeddedShard:
    value = _read_json(store, _shard_key(job_id, number, "result"))
    return EmbeddedShard(
        key=value["key"],
        items=tuple(Item(**item) for item in value["items"]),
        image_digests=tuple(value["image_digests"]),
        failures=tuple(Failure(**failure) for failure in value["failures"]),
    )


def _read_json(store: Store, key: str) -> Any:
    data = store.objects.get(key)
    if data is None:
        raise ValidationFailed(f"{store.url}/{key} is missing: the job's working files were removed; start it again")
    return json.loads(data)


def _shard_key(job_id: str, number: int, what: str) -> str:
    return f"staging/{job_id}/{number:06d}.{what}.json"


def roll_back(store: Store, catalog: str, target: SnapshotId) -> SnapshotManifest:
    """Make an older snapshot live again, verified first.

    target: its id, or the start of its id; "" means the newest one older than the live one.
    Raises UnknownCatalog, UnknownSnapshot, UnknownBundle, CorruptArtifact, and BundleMismatch where the active
    operating point uses another score.
    """
    if target:
        ids, hint = store.snapshot_ids(catalog), "see `retrieval snapshots list`"
        kind = f"snapshot of catalogue {catalog}"
        target = SnapshotId(resolve_prefix(target, ids, kind=kind, unknown=UnknownSnapshot, hint=hint))
    else:
        target = _previous(store, catalog)
    manifest = store.snapshot_manifest(catalog, target)
    point = store.active_operating_point(store.bundle(manifest.bundle_digest).digest)
    if point.score_digest != manifest.score_digest:
        raise BundleMismatch(
            f"snapshot {target} was built with score {manifest.score_digest}, the active operating point {point.id} "
            f"uses {point.score_digest}: activate an operating point with that score first"
        )
    store.open_snapshot(catalog, target)
    store.publish(catalog, target)
    return manifest


def _previous(store: Store, catalog: str) -> SnapshotId:
    live = store.snapshot_manifest(catalog, store.current(catalog))
    for manifest in store.snapshots(catalog):
        if manifest.created_at < live.created_at:
            return manifest.id
    raise UnknownSnapshot(f"catalogue {catalog!r} has no snapshot older than the live one, {live.id}")
