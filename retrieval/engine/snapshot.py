"""A snapshot: an index, its items and a record of their origin, written once and verified when opened.

This file decides the format and the identity of a searchable catalogue. `engine/store/snapshots.py` decides where it
lies and which one is live.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any, NewType

from retrieval.contract.bundle import BundleDigest
from retrieval.contract.canonical import digest_file, digest_json
from retrieval.contract.documents import (
    NAME,
    NAME_OR_NONE,
    Count,
    FileName,
    Moment,
    Share,
    Size,
    parse,
    read_json,
    without_format,
)
from retrieval.contract.operating_point import OperatingPointId
from retrieval.contract.score import ScoreDigest
from retrieval.engine.index.index import Index
from retrieval.engine.index.open import load_index
from retrieval.engine.index.spec import IndexSpec
from retrieval.engine.items import ItemTable
from retrieval.errors import CorruptArtifact, InvalidInput

SnapshotId = NewType("SnapshotId", str)

FORMAT = 1
_NO_POINT = OperatingPointId("")
MANIFEST, INDEX, ITEMS, CLASSES = "manifest.json", "index.bin", "items.parquet", "classes.parquet"
_INDEX_BEFORE = "index.faiss"  # the name in snapshots of earlier versions


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelSummary:
    """What a score that uses the labels found in a catalogue.

    `n_unlabelled`: items without a label. `n_far`: items that are far from the others of their class, which may have a
    wrong label; `far_items`: the ids of the first of them.
    """

    n_classes: Count
    n_unlabelled: Count
    n_far: Count
    far_items: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class SnapshotManifest:
    """The origin and the content of a snapshot.

    `shards`: keys of the stored embeddings, in vector order; with them a new score needs no new embedding.
    `failures`: id and reason of the first items left out; `n_failed` counts all of them.
    `files`: names and checksums. `dimension`: columns of the vectors in the index. `index_recall_low`, `high`: 95 %
    interval of the recall. `index_details`: what the index chose when it was built, and what it cannot promise; for one
    that is not complete, how its recall was measured and the least that is published.
    `operating_point_id`: the one that was active when the snapshot was built. Earlier versions lack the last four.
    `labels`: only if the score uses the labels; a version that does not know such scores refuses the manifest.
    """

    id: Annotated[SnapshotId, NAME]
    catalog: Annotated[str, NAME]
    bundle_digest: Annotated[BundleDigest, NAME]
    score_digest: Annotated[ScoreDigest, NAME]
    catalog_digest: str
    index_spec: str
    dimension: Size
    n_items: Count
    n_failed: Count
    failures: Mapping[str, str]
    index_recall: Share
    shards: tuple[str, ...]
    files: Mapping[FileName, str]
    created_at: Moment
    operating_point_id: Annotated[OperatingPointId, NAME_OR_NONE] = _NO_POINT
    index_recall_low: Share = 0.0
    index_recall_high: Share = 1.0
    index_details: Mapping[str, Any] = field(default_factory=dict)
    labels: LabelSummary | None = None

    def to_json(self) -> dict[str, Any]:
        """Return a plain dictionary that `from_json` turns back into an equal value."""
        plain = {"format": FORMAT, **asdict(self)}
        if self.labels is None:  # earlier versions read it too
            del plain["labels"]
        return plain

    @classmethod
    def from_json(cls, data: bytes, where: str) -> "SnapshotManifest":
        """Read the bytes of `to_json`. Raises CorruptArtifact naming `where`."""
        document = read_json(data, where)
        remedy = "reindex the catalogue, or use the version that wrote it"
        manifest = parse(cls, without_format(document, FORMAT, where, what="snapshot", remedy=remedy), where)
        try:
            IndexSpec.parse(manifest.index_spec)
        except InvalidInput as error:
            raise CorruptArtifact(f"{where}: {error}") from error
        return manifest


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """An opened snapshot."""

    manifest: SnapshotManifest
    index: Index
    items: ItemTable


def snapshot_id(
    *, bundle: BundleDigest, score: ScoreDigest, catalog_digest: str, index_spec: IndexSpec, threshold: float
) -> SnapshotId:
    """Return the id; the same input gives the same id, so a repeated job finds its own work.

    threshold: of an approximate index, whose recall is measured there; complete ones do not depend on it.
    """
    measured = [] if index_spec.is_exact else [threshold]
    return SnapshotId(digest_json([bundle, score, catalog_digest, str(index_spec), *measured]))


def open_snapshot(directory: Path, manifest: SnapshotManifest, *, device: str = "cpu") -> Snapshot:
    """Open the snapshot in `directory`; `device`: where its index searches, see `load_index`.

    Raises CorruptArtifact if a file is missing or was changed, DeviceUnavailable if the GPU is missing or too small.
    """
    for name, checksum in manifest.files.items():
        path = directory / name
        if not path.is_file():
            raise CorruptArtifact(f"snapshot {manifest.id}: {name} is missing; reindex the catalogue")
        if digest_file(path) != checksum:
            raise CorruptArtifact(
                f"snapshot {manifest.id}: {name} does not have the checksum of its manifest; it was truncated or "
                "changed: roll back or reindex the catalogue"
            )
    index = load_index(
        directory / _named(manifest, INDEX, _INDEX_BEFORE),
        IndexSpec.parse(manifest.index_spec),
        dimension=manifest.dimension,
        n_items=manifest.n_items,
        device=device,
    )
    with_labels = manifest.labels is not None
    if with_labels:
        _named(manifest, CLASSES)
    items = ItemTable.load(directory / _named(manifest, ITEMS), with_offsets=with_labels)
    if len(items) != manifest.n_items:
        raise CorruptArtifact(f"snapshot {manifest.id}: expected {manifest.n_items} items, found {len(items)}")
    return Snapshot(manifest=manifest, index=index, items=items)


def _named(manifest: SnapshotManifest, *kinds: str) -> str:
    """Return the file names, which contain checksums: two builders of one snapshot never overwrite each other."""
    for name in manifest.files:
        if name.endswith(kinds):
            return name
    raise CorruptArtifact(f"snapshot {manifest.id}: its manifest names no {kinds[0]}")
