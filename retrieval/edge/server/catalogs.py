"""The service of protos/retrieval/v1/catalogs.proto."""

from retrieval.edge.jobs.messages import job_message
from retrieval.edge.messages import snapshot_message
from retrieval.edge.server import messages
from retrieval.edge.server.interceptors import Context
from retrieval.edge.server.jobs import JobQueue
from retrieval.edge.server.manifests import ManifestCheck
from retrieval.edge.server.store_calls import StoreCalls
from retrieval.edge.server.watch import Watch
from retrieval.engine.snapshot import SnapshotId
from retrieval.engine.store import Store
from retrieval.errors import RetrievalError, Unavailable
from retrieval.flows.reindex import RollbackTarget, labels_for, roll_back, rollback_target, settle_bundle
from retrieval.v1 import catalogs_pb2, catalogs_pb2_grpc, jobs_pb2


class CatalogServicer(catalogs_pb2_grpc.CatalogServiceServicer):
    """Starts reindexes, lists snapshots and goes back to older ones."""

    def __init__(
        self, store: Store, calls: StoreCalls, queue: JobQueue, watch: Watch, manifests: ManifestCheck
    ) -> None:
        self._manifests = manifests
        self._store = store
        self._calls = calls
        self._queue = queue
        self._watch = watch

    async def StartReindex(self, request: catalogs_pb2.StartReindexRequest, context: Context) -> jobs_pb2.Job:  # noqa: N802
        """Check the request, then put a job on the queue."""
        wanted = messages.reindex_request(request)
        wanted.check()
        settled = await self._calls(settle_bundle, self._store, wanted)
        labels_needed = await self._calls(labels_for, self._store, settled)
        await self._manifests.check(wanted, labels_for=labels_needed)
        return job_message(await self._queue.submit("reindex", settled))

    async def ListSnapshots(  # noqa: N802
        self, request: catalogs_pb2.ListSnapshotsRequest, context: Context
    ) -> catalogs_pb2.ListSnapshotsResponse:
        """List all snapshots of a catalogue, newest first."""

        def snapshots() -> list[catalogs_pb2.Snapshot]:
            found = self._store.snapshots(request.catalog)
            live = self._store.current(request.catalog)
            return [
                *(snapshot_message(manifest, live=manifest.id == live) for manifest in found.readable),
                *(
                    catalogs_pb2.Snapshot(id=name, catalog=request.catalog, live=name == live, problem=problem)
                    for name, problem in found.damaged.items()
                ),
            ]

        return catalogs_pb2.ListSnapshotsResponse(snapshots=await self._calls(snapshots))

    async def ListCatalogs(  # noqa: N802
        self, request: catalogs_pb2.ListCatalogsRequest, context: Context
    ) -> catalogs_pb2.ListCatalogsResponse:
        """List all catalogues with their live snapshots; one that cannot be read has the reason instead."""

        def catalog(name: str) -> catalogs_pb2.Catalog:
            try:
                manifest = self._store.snapshot_manifest(name, self._store.current(name))
            except Unavailable:
                raise
            except RetrievalError as error:
                return catalogs_pb2.Catalog(name=name, problem=str(error))
            return catalogs_pb2.Catalog(name=name, live=snapshot_message(manifest, live=True))

        def catalogs() -> list[catalogs_pb2.Catalog]:
            return [catalog(name) for name in sorted(self._store.catalogs())]

        return catalogs_pb2.ListCatalogsResponse(catalogs=await self._calls(catalogs))

    async def CheckRollback(  # noqa: N802
        self, request: catalogs_pb2.RollbackRequest, context: Context
    ) -> catalogs_pb2.Snapshot:
        """Return the snapshot that a rollback would make live."""

        def check() -> catalogs_pb2.Snapshot:
            target = rollback_target(self._store, request.catalog, SnapshotId(request.snapshot_id))
            return _target_message(target, live=target.manifest.id == self._store.current(request.catalog))

        return await self._calls(check)

    async def Rollback(self, request: catalogs_pb2.RollbackRequest, context: Context) -> catalogs_pb2.Snapshot:  # noqa: N802
        """Make an older snapshot live."""
        target = await self._calls(roll_back, self._store, request.catalog, SnapshotId(request.snapshot_id))
        await self._watch.look(self._calls.limit_s)
        return _target_message(target, live=True)


def _target_message(target: RollbackTarget, *, live: bool) -> catalogs_pb2.Snapshot:
    message = snapshot_message(target.manifest, live=live)
    message.passed_over.update(target.damaged)
    return message
