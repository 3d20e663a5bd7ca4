"""Jobs whose manifest can only fail are refused before they are accepted; slow sources delay nobody for long."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from retrieval.contract.operating_point import OperatingPoint
from retrieval.contract.score import Score
from retrieval.edge.server.manifests import ManifestCheck
from retrieval.edge.settings import load_settings
from retrieval.errors import InvalidInput, NotFound, SourceNotAllowed, Unavailable
from retrieval.flows.audit import AuditRequest
from retrieval.flows.reindex import ReindexRequest
from retrieval.v1 import audits_pb2, catalogs_pb2
from tests.edge.conftest import CATALOG, Running
from tests.stores import activate, with_labels


@pytest.fixture
def silent() -> Iterator[str]:
    """Yield the URL of a table on a host that accepts connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/items.csv"


def test_an_audit_that_can_only_fail_is_refused_at_once(running: Running) -> None:
    """Wrong groups, no labels, no manifest: INVALID_ARGUMENT, also with no queue at hand."""
    client, images = running.client, running.folder / "images" / "manifest.csv"
    unlabelled = running.folder / "unlabelled.csv"
    unlabelled.write_text("id,uri\n1,1.png\n")
    for message, manifest, group_by in (
        ("expected a column 'maker' to group by", f"file://{images}", ["maker"]),
        ("missing label", str(unlabelled), []),
        ("found nothing there", f"file://{running.folder}/none.csv", []),
        ("found nothing there", "/nowhere/none.csv", []),
    ):
        request = audits_pb2.StartAuditRequest(catalog=CATALOG, manifest_uri=manifest, group_by=group_by)
        with pytest.raises(InvalidInput, match=message):
            client.call(client.audits.StartAudit, request)


def test_a_reindex_that_can_only_fail_is_refused_at_once(running: Running) -> None:
    """Too few items for the index, no manifest, no model."""
    client, images = running.client, running.folder / "images" / "manifest.csv"

    def start(**fields: str) -> None:
        request = catalogs_pb2.StartReindexRequest(catalog=CATALOG, **{"manifest_uri": str(images), **fields})
        client.call(client.catalogs.StartReindex, request)

    with pytest.raises(InvalidInput, match="use Exact or at most 2 lists"):
        start(index_spec="IVF3,nprobe=3")
    with pytest.raises(InvalidInput, match="found nothing there"):
        start(manifest_uri=f"file://{running.folder}/none.csv")
    with pytest.raises(NotFound, match="0123abcd"):
        start(bundle_digest="0123abcd")
    with pytest.raises(Unavailable, match="retrieval worker"):  # all is well with it, and it comes to the queue
        start()


def test_a_reindex_without_labels_for_its_score_is_refused_at_once(
    running: Running, cosine_point: OperatingPoint
) -> None:
    """A table without labels serves every score but one that uses them."""
    client, table = running.client, running.folder / "no labels.csv"
    table.write_text("id,uri\n1,1.png\n")
    request = catalogs_pb2.StartReindexRequest(catalog=CATALOG, manifest_uri=str(table))
    with pytest.raises(Unavailable, match="retrieval worker"):
        client.call(client.catalogs.StartReindex, request)
    point, score = with_labels(cosine_point, Score())
    activate(running.store, point, score)
    try:
        expected = "missing label, found id, uri: labels are needed for the catalogue cosine score of the active"
        with pytest.raises(InvalidInput, match=expected):
            client.call(client.catalogs.StartReindex, request)
    finally:
        running.store.activate(cosine_point.bundle_digest, cosine_point.id)
        running.store.objects.delete(f"bundles/{point.bundle_digest}/operating_points/{point.id}.json")


def test_a_slow_source_is_left_to_the_job(silent: str) -> None:
    """Not longer than the time for a look, also if more ask at the same time than may look."""

    async def ask() -> float:
        manifests = ManifestCheck(load_settings(image_roots=silent.rpartition("/")[0]), look_s=0.3)
        started = time.monotonic()
        requests = [ReindexRequest(catalog=CATALOG, manifest_uri=silent) for _ in range(30)]
        await asyncio.gather(*map(manifests.check, requests))
        return time.monotonic() - started

    assert asyncio.run(ask()) < 3


def test_only_what_jobs_may_read_is_looked_at(tmp_path: Path) -> None:
    """The caller of a job learns nothing about other files."""
    secret = tmp_path / "secret.csv"
    secret.write_text("id,uri,label,salary\n")
    (tmp_path / "images").mkdir()
    manifests = ManifestCheck(load_settings(image_roots=str(tmp_path / "images")))
    request = AuditRequest(catalog=CATALOG, manifest_uri=str(secret), group_by=("bonus",))
    with pytest.raises(SourceNotAllowed, match="may not be read"):
        asyncio.run(manifests.check(request))
