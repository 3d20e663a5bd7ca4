"""The job service over a real connection, with and without a queue."""

from __future__ import annotations

import pytest

from retrieval.errors import (
    Unavailable,
)
from retrieval.v1 import audits_pb2, catalogs_pb2, jobs_pb2
from tests import pictures
from tests.edge.conftest import CATALOG, Running
from tests.edge.server.calls import search
from tests.photos import shot


def test_jobs_without_a_queue_are_unavailable(running: Running) -> None:
    """Without Redis, jobs say what to start, and queries go on."""
    client = running.client
    with pytest.raises(Unavailable, match="retrieval worker"):
        client.call(client.jobs.GetJob, jobs_pb2.GetJobRequest(job_id="0" * 32))
    images = str(running.folder / "images" / "manifest.csv")
    request = catalogs_pb2.StartReindexRequest(catalog=CATALOG, manifest_uri=images)
    with pytest.raises(Unavailable, match="retrieval worker"):
        client.call(client.catalogs.StartReindex, request)
    with pytest.raises(Unavailable, match="retrieval worker"):
        client.call(client.audits.StartAudit, audits_pb2.StartAuditRequest(catalog=CATALOG, manifest_uri="images"))
    assert search(running, image=pictures.encoded(shot(3, 0))).matches
