"""The service of protos/retrieval/v1/catalogs.proto."""

import asyncio

from retrieval.edge.jobs.messages import job_message
from retrieval.edge.server import messages
from retrieval.edge.server.interceptors import Context
from retrieval.edge.server.jobs import JobQueue
from retrieval.edge.server.watch import Watch
from retrieval.engine.snapshot import SnapshotId
from retrieval.engine.store import Store
from retrieval.flows.reindex import roll_back, rollback_target, settle_bundle
from retrieval.v1 import catalogs_pb2, catalogs_pb2_grpc, jobs_pb2


class CatalogServicer(catalogs_pb2_grpc.CatalogServiceServicer):
    """Starts reindexes, lists snapshots and goes back to older ones."""

    def __init__(self, store: Store, queue: JobQueue, watch: Watch) -> None:
        self._store = store
        self._queue = queue
        self._watch = watch

    async def StartReindex(self, request: catalogs_pb2.StartReindexRequest, context: Context) -> jobs_pb2.Job:  # noqa: N802
        """Check the request, then put a job on the queue."""
        wanted = messages.reindex_request(request)
        wanted.check()
        settled = await asyncio.to_thread(settle_bundle, self._store, wanted)
        return job_message(await self._queue.submit("reindex", settled))

    async def ListSnapshots(  # noqa: N802
        self, request: catalogs_pb2.ListSnapshotsRequest, context: Context
    ) -> catalogs_pb2.ListSnapshotsResponse:
        """List all snapshots of a catalogue, newest first."""
        manifests = await asyncio.to_thread(self._store.snapshots, request.catalog)
        live = await asyncio.to_thread(self._store.current, request.catalog)
        return catalogs_pb2.ListSnapshotsResponse(
            snapshots=[messages.snapshot_message(manifest, live=manifest.id == live) for manifest in manifests]
        )

    async def CheckRollback(  # noqa: N802
        self, request: catalogs_pb2.RollbackRequest, context: Context
    ) -> catalogs_pb2.Snapshot:
        """Return the snapshot that a rollback would make live."""
        target = SnapshotId(request.snapshot_id)
        manifest = await asyncio.to_thread(rollback_target, self._store, request.catalog, target)
        live = await asyncio.to_thread(self._store.current, request.catalog)
        return messages.snapshot_message(manifest, live=manifest.id == live)

    async def Rollback(self, request: catalogs_pb2.RollbackRequest, context: Context) -> catalogs_pb2.Snapshot:  # noqa: N802
        """Make an older snapshot live."""
        manifest = await asyncio.to_thread(roll_back, self._store, request.catalog, SnapshotId(request.snapshot_id))
        await self._watch.look()
        return messages.snapshot_message(manifest, live=True)
