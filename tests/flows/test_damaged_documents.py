"""A stored document with one wrong field is a CorruptArtifact, whichever field it is and whatever it holds."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from retrieval.contract.class_terms import ClassTerms
from retrieval.contract.limits import DEFAULT_LIMITS
from retrieval.contract.manifest import Item
from retrieval.contract.operating_point import OperatingPoint
from retrieval.contract.score import Score
from retrieval.contract.typical_class import TypicalClass
from retrieval.edge.messages import operating_point_message, snapshot_message
from retrieval.edge.server import messages
from retrieval.engine.embedding import EmbeddedShard
from retrieval.engine.encoder import Encoder
from retrieval.engine.images import Failure
from retrieval.engine.items import ItemRows
from retrieval.engine.matches import find_matches, probe_query
from retrieval.engine.snapshot import SnapshotId
from retrieval.engine.staging import Staging
from retrieval.engine.store import Store
from retrieval.errors import CorruptArtifact, RetrievalError, ValidationFailed
from retrieval.flows.audit import AuditLimits, AuditRequest, finished_audit, run_audit
from retrieval.flows.reindex import ReindexRequest, load_plan, plan
from retrieval.flows.search import Searcher
from tests.engine.store.artefacts import put_labelled_snapshot
from tests.mutations import mutations
from tests.pictures import write_class_folders
from tests.stores import activate, embedder_of, reindex

TYPICAL = TypicalClass(within=0.5, between=0.125, variance=0.0625, density=0.25)
CATALOGUE_SCORE = Score(classes=ClassTerms(pull=0.75, offset_weight=0.5, typical=TYPICAL))


class Filled:
    """A store that holds one document of every kind."""

    def __init__(self, store: Store, point: OperatingPoint, snapshot: SnapshotId) -> None:
        self.store = store
        self.point = point
        self.snapshot = snapshot
        self.bundle = f"bundles/{point.bundle_digest}"

    def documents(self) -> dict[str, tuple[str, Callable[[], object]]]:
        """By kind: the key of the document, and everything that reads it."""
        store, point = self.store, self.point
        rows = Staging(store.objects, "result")
        return {
            "manifest": (f"catalogs/shop/snapshots/{self.snapshot}/manifest.json", self.open_snapshot),
            "labelled manifest": ("catalogs/shop/snapshots/s2/manifest.json", partial(self.open_snapshot, "s2")),
            "point": (f"{self.bundle}/operating_points/{point.id}.json", self.open_point),
            "contract": (f"{self.bundle}/contract.json", lambda: store.bundle(point.bundle_digest).probe()),
            "score": (
                f"{self.bundle}/scores/{point.score_digest}/score.json",
                lambda: store.score(point.bundle_digest, point.score_digest),
            ),
            "catalogue score": (
                f"{self.bundle}/scores/{CATALOGUE_SCORE.digest}/score.json",
                lambda: store.score(point.bundle_digest, CATALOGUE_SCORE.digest),
            ),
            "report": ("catalogs/shop/audits/audit1/report.json", self.open_audit),
            "plan": ("staging/planned/plan.json", lambda: load_plan(store, "planned")),
            "result": ("staging/result/000000.result.json", partial(rows.result, 0)),
        }

    def open_snapshot(self, name: str = "") -> object:
        snapshot = self.store.open_snapshot("shop", SnapshotId(name) if name else self.snapshot)
        return snapshot_message(snapshot.manifest, live=True)

    def open_point(self) -> object:
        point = self.store.operating_point(self.point.bundle_digest, self.point.id)
        return operating_point_message(point, active=True), point.calibrator.probability([0.5])

    def open_audit(self) -> object:
        return messages.audit_message(self.store, finished_audit(self.store, "shop", "audit1"))


@pytest.fixture(scope="module")
def original(
    tiny_encoder: Encoder, cohort_point: OperatingPoint, cohort_score: Score, pool: Executor,
    tmp_path_factory: pytest.TempPathFactory,
) -> Filled:  # fmt: skip
    folder = tmp_path_factory.mktemp("filled")
    store = Store(f"file://{folder / 'store'}")
    store.add_bundle(tiny_encoder.bundle.directory)
    store.put_score(cohort_point.bundle_digest, CATALOGUE_SCORE)
    put_labelled_snapshot(store)
    activate(store, cohort_point, cohort_score)
    request = ReindexRequest(
        catalog="shop", manifest_uri=str(write_class_folders(folder / "shop", n_classes=30, n_images=4))
    )
    snapshot = reindex(store, tiny_encoder, pool, request)
    run_audit(
        store,
        AuditRequest(catalog="shop", manifest_uri=request.manifest_uri),
        audit_id="audit1",
        created_at="2026-01-01T00:00:00+00:00",
        embedder=embedder_of(tiny_encoder, pool),
        limits=AuditLimits(),
        progress=lambda done, total: None,
        render=lambda report: "",
    )
    plan(store, "planned", request)
    rows = ItemRows.of([Item(id="1", uri="1.png", label="cup", attributes={})] * 3)
    staging = Staging(store.objects, "result")
    staging.put_items(0, rows)
    shard = EmbeddedShard(key="k", rows=(0, 2), image_digests=("a", "b"), failures=(Failure("1", "bad"),))
    staging.put_result(0, rows, shard)
    return Filled(store, cohort_point, snapshot)


@pytest.fixture
def filled(original: Filled, tmp_path: Path) -> Filled:
    shutil.copytree(original.store.url.removeprefix("file://"), tmp_path / "copy")
    return Filled(Store(f"file://{tmp_path / 'copy'}"), original.point, original.snapshot)


# Free text, and paths inside objects of free text: another text cannot be told from the right one.
FREE = {
    "manifest": (
        "bundle_digest", "score_digest", "catalog_digest", "failures", "shards", "n_failed", "index_recall",
        "operating_point_id", "index_recall_low", "index_recall_high", "index_details",
    ),
    "labelled manifest": (
        "bundle_digest", "score_digest", "catalog_digest", "failures", "shards", "n_failed", "index_recall",
        "operating_point_id", "index_recall_low", "index_recall_high", "index_details",
        "labels', ",  # what is in it, not whether it is there
    ),
    "point": ("created_at",),
    "contract": (),
    "score": (),
    "catalogue score": (),
    "report": (
        "created_at", "findings", "bundle_digest", "operating_point_id", "threshold", "far", "far_promised", "tar",
        "recall_at_1", "opis", "n_images", "n_classes",
    ),
    "plan": ("request", "n_items", "n_shards"),
    "result": ("key", "rows", "image_digests", "failures"),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("kind", list(FREE))
def test_every_mutation_is_a_corrupt_artifact(kind: str, filled: Filled) -> None:
    """Or still a valid document, which only fields of free text and numbers without a check can give."""
    key, read = filled.documents()[kind]
    read()
    document = json.loads(filled.store.objects.get(key) or b"")
    if kind == "report":  # what is not read again may hold anything
        read_again = {"id", "catalog", "verdict", *FREE["report"]}
        document = {name: value for name, value in document.items() if name in read_again}
        document["opis"] = {name: document["opis"][name] for name in ("value", "floor")}
    path = Path(filled.store.url.removeprefix("file://")) / key  # not `put`, which waits for the disk
    escaped, accepted, n = [], [], 0
    for what, data in mutations(document):
        n += 1
        path.write_bytes(data)
        try:
            read()
        except (CorruptArtifact, ValidationFailed):  # the latter if the items of a shard are others
            continue
        except Exception as error:  # noqa: BLE001  # all that escapes is to be listed
            escaped.append((what, repr(error)))
        else:
            accepted.append(what)
    assert n > 50
    assert not escaped
    wrong = [what for what in accepted if not what.startswith(tuple(f"('{name}'" for name in FREE[kind]))]
    assert not [what for what in wrong if not (kind == "report" and "+ extra" in what)]


@pytest.mark.parametrize("kind", ["manifest", "point", "report"])
@pytest.mark.parametrize("data", [b"", b"\xff\xfe", b"[" * 100_000, b"[]", b"5", b'{"format": true}'])
def test_what_is_no_document_at_all(kind: str, data: bytes, filled: Filled) -> None:
    key, read = filled.documents()[kind]
    filled.store.objects.put(key, data)
    with pytest.raises(CorruptArtifact, match=r"cannot be read|expected \w+ ?\w* format|missing or wrong"):
        read()


def test_a_snapshot_under_another_id_is_refused(filled: Filled) -> None:
    """A folder was copied by hand: its content is not what its name says."""
    root = Path(filled.store.url.removeprefix("file://")) / "catalogs"
    shutil.copytree(root / "shop" / "snapshots" / filled.snapshot, root / "shop" / "snapshots" / "other")
    shutil.copytree(root / "shop", root / "other_shop")
    with pytest.raises(CorruptArtifact, match=f"is the manifest of snapshot {filled.snapshot}"):
        filled.store.publish("shop", SnapshotId("other"))
    with pytest.raises(CorruptArtifact, match="of catalogue shop: it was copied or moved"):
        filled.store.open_snapshot("other_shop", filled.snapshot)


def test_one_damaged_catalogue_does_not_stop_the_others(
    filled: Filled, tiny_encoder: Encoder, pool: Executor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither a damaged manifest, nor an error that nobody foresaw: the catalogues after it go live."""
    folder = write_class_folders(tmp_path / "images", n_classes=2, n_images=2)
    for catalog in ("a", "b", "c"):
        reindex(filled.store, tiny_encoder, pool, ReindexRequest(catalog=catalog, manifest_uri=str(folder)))
    key = f"catalogs/a/snapshots/{filled.store.current('a')}/manifest.json"
    document = json.loads(filled.store.objects.get(key) or b"")
    filled.store.objects.put(key, json.dumps(document | {"index_spec": 5}).encode())
    read = filled.store.active_id
    calls = iter(range(100))

    def fails_first(bundle: Any) -> Any:
        if next(calls) == 0:
            raise ZeroDivisionError("a defect")
        return read(bundle)

    monkeypatch.setattr(filled.store, "active_id", fails_first)
    searcher = Searcher(
        filled.store, open_encoder=lambda bundle: tiny_encoder, limits=DEFAULT_LIMITS, max_waiting=4, threads=1
    )
    changes = {change.catalog: change for change in searcher.refresh()}
    assert set(searcher.live) == {"c", "shop"}
    assert isinstance(changes["a"].problem, CorruptArtifact)
    assert "index_spec: Input should be a valid string, found 5" in str(changes["a"].problem)
    assert isinstance(changes["b"].problem, RetrievalError)
    assert "a defect" in str(changes["b"].problem)
    live = searcher.live["c"]
    (result,) = find_matches([probe_query(live)])
    assert result.live is live
    searcher.refresh()
    assert set(searcher.live) == {"b", "c", "shop"}


def test_a_manifest_of_an_earlier_version_is_read(filled: Filled) -> None:
    """Fields that were added since have a default."""
    manifest = filled.store.snapshot_manifest("shop", filled.snapshot)
    first = (
        "id", "catalog", "bundle_digest", "score_digest", "catalog_digest", "index_spec", "dimension", "n_items",
        "n_failed", "failures", "index_recall", "shards", "files", "created_at",
    )  # fmt: skip
    document = {name: value for name, value in manifest.to_json().items() if name in ("format", *first)}
    again = type(manifest).from_json(json.dumps(document).encode(), "here")
    assert replace(manifest, **{name: getattr(again, name) for name in first}) == manifest
