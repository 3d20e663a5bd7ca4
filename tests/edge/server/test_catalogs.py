"""The catalogue service over a real connection."""

from __future__ import annotations

import shutil

import pytest

from retrieval.errors import (
    CorruptArtifact,
    InvalidInput,
)
from retrieval.v1 import audits_pb2, catalogs_pb2
from tests import pictures
from tests.edge.conftest import CATALOG, Running
from tests.edge.server.calls import search
from tests.photos import shot


@pytest.mark.parametrize("name", ["", "../etc", "a/b", "x" * 65, "ü"])
def test_catalogue_names_cannot_leave_the_store(running: Running, name: str) -> None:
    """Names become paths: only letters, digits, - and _ pass."""
    client = running.client
    with pytest.raises(InvalidInput, match="catalogue: expected 1 to 64 letters"):
        client.call(client.catalogs.ListSnapshots, catalogs_pb2.ListSnapshotsRequest(catalog=name))
    request = catalogs_pb2.StartReindexRequest(catalog=name, manifest_uri="images")
    with pytest.raises(InvalidInput, match="catalogue: expected 1 to 64 letters"):
        client.call(client.catalogs.StartReindex, request)


def test_bad_job_requests_are_refused_before_they_are_queued(running: Running) -> None:
    """A bad index spec or share is INVALID_ARGUMENT, also with no queue at hand."""
    client = running.client
    bad_spec = catalogs_pb2.StartReindexRequest(catalog=CATALOG, manifest_uri="images", index_spec="HNSW32")
    with pytest.raises(InvalidInput, match="HNSW"):
        client.call(client.catalogs.StartReindex, bad_spec)
    bad_share = catalogs_pb2.StartReindexRequest(catalog=CATALOG, manifest_uri="images", max_failed_share=2)
    with pytest.raises(InvalidInput, match="max_failed_share"):
        client.call(client.catalogs.StartReindex, bad_share)
    with pytest.raises(InvalidInput, match="manifest_uri"):
        client.call(client.audits.StartAudit, audits_pb2.StartAuditRequest(catalog=CATALOG))


def test_damaged_snapshot_is_refused_and_the_old_one_serves(running: Running) -> None:
    """A truncated index file cannot be rolled back to; it is DATA_LOSS and changes nothing."""
    live = running.store.current(CATALOG)
    manifest = running.store.snapshot_manifest(CATALOG, live)
    folder = running.store.objects.local(f"catalogs/{CATALOG}/snapshots/{live}")
    copy = folder.with_name("damaged")
    shutil.copytree(folder, copy)
    try:
        index_file = next(copy / name for name in manifest.files if name.endswith("index.bin"))
        index_file.write_bytes(index_file.read_bytes()[:100])
        path = copy / "manifest.json"  # a snapshot under another id would be refused for that alone
        path.write_text(path.read_text().replace(live, "damaged"))
        request = catalogs_pb2.RollbackRequest(catalog=CATALOG, snapshot_id="damaged")
        with pytest.raises(CorruptArtifact, match="truncated or"):
            running.client.call(running.client.catalogs.Rollback, request)
    finally:
        shutil.rmtree(copy)
    assert search(running, image=pictures.encoded(shot(3, 0))).provenance.snapshot_id == live


def test_the_start_of_a_snapshot_is_enough(running: Running) -> None:
    """Going back to the live snapshot by the start of its id makes it live again."""
    live = running.store.current(CATALOG)
    request = catalogs_pb2.RollbackRequest(catalog=CATALOG, snapshot_id=live[:6])
    assert running.client.call(running.client.catalogs.Rollback, request).id == live
