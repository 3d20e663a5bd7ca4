"""The service of protos/retrieval/v1/audits.proto."""

from retrieval.edge.jobs.messages import job_message
from retrieval.edge.server import messages
from retrieval.edge.server.interceptors import Context
from retrieval.edge.server.jobs import JobQueue
from retrieval.edge.server.manifests import ManifestCheck
from retrieval.edge.server.store_calls import StoreCalls
from retrieval.engine.live import live_parts
from retrieval.engine.prefixes import resolve_prefix
from retrieval.engine.store import Store
from retrieval.errors import UnknownJob
from retrieval.flows.audit import audits, finished_audit
from retrieval.v1 import audits_pb2, audits_pb2_grpc, jobs_pb2


class AuditServicer(audits_pb2_grpc.AuditServiceServicer):
    """Starts audits and shows finished ones."""

    def __init__(self, store: Store, calls: StoreCalls, queue: JobQueue, manifests: ManifestCheck) -> None:
        self._manifests = manifests
        self._store = store
        self._calls = calls
        self._queue = queue

    async def StartAudit(self, request: audits_pb2.StartAuditRequest, context: Context) -> jobs_pb2.Job:  # noqa: N802
        """Check the threshold of the catalogue and the manifest, then put a job on the queue."""
        wanted = messages.audit_request(request)
        wanted.check()
        await self._calls(live_parts, self._store, wanted.catalog)
        await self._manifests.check(wanted)
        return job_message(await self._queue.submit("audit", wanted))

    async def GetAudit(self, request: audits_pb2.GetAuditRequest, context: Context) -> audits_pb2.Audit:  # noqa: N802
        """Return a finished audit."""

        def get() -> audits_pb2.Audit:
            ids = self._store.audits(request.catalog)
            audit_id = resolve_prefix(
                request.audit_id, ids, kind=f"audit of catalogue {request.catalog}", unknown=UnknownJob
            )
            return messages.audit_message(self._store, finished_audit(self._store, request.catalog, audit_id))

        return await self._calls(get)

    async def ListAudits(  # noqa: N802
        self, request: audits_pb2.ListAuditsRequest, context: Context
    ) -> audits_pb2.ListAuditsResponse:
        """List all finished audits of a catalogue, newest first."""
        found = await self._calls(audits, self._store, request.catalog)
        damaged = (
            audits_pb2.Audit(id=name, catalog=request.catalog, problem=problem)
            for name, problem in found.damaged.items()
        )
        reports = (messages.audit_message(self._store, report) for report in found.readable)
        return audits_pb2.ListAuditsResponse(audits=[*reports, *damaged])
