"""The service of protos/retrieval/v1/operating_points.proto."""

import structlog

from retrieval.contract.bundle import BundleDigest
from retrieval.contract.operating_point import OperatingPoint, OperatingPointId
from retrieval.edge.messages import operating_point_message
from retrieval.edge.server.interceptors import Context
from retrieval.edge.server.store_calls import StoreCalls
from retrieval.edge.server.watch import Watch
from retrieval.engine.live import needs_reindex
from retrieval.engine.prefixes import resolve_prefix
from retrieval.engine.store import Store
from retrieval.errors import UnknownOperatingPoint
from retrieval.v1 import operating_points_pb2, operating_points_pb2_grpc

log = structlog.get_logger()


class OperatingPointServicer(operating_points_pb2_grpc.OperatingPointServiceServicer):
    """Shows operating points and activates them."""

    def __init__(self, store: Store, calls: StoreCalls, watch: Watch) -> None:
        self._store = store
        self._calls = calls
        self._watch = watch

    async def GetOperatingPoint(  # noqa: N802
        self, request: operating_points_pb2.GetOperatingPointRequest, context: Context
    ) -> operating_points_pb2.OperatingPoint:
        """Return one operating point, the active one by default."""

        def get() -> operating_points_pb2.OperatingPoint:
            bundle = self._bundle(request.bundle_digest)
            point = (
                self._store.operating_point(bundle, self._point_id(bundle, request.operating_point_id))
                if request.operating_point_id
                else self._store.active_operating_point(bundle)
            )
            return self._message(point, active=point.id == self._store.active_id(bundle))

        return await self._calls(get)

    async def ListOperatingPoints(  # noqa: N802
        self, request: operating_points_pb2.ListOperatingPointsRequest, context: Context
    ) -> operating_points_pb2.ListOperatingPointsResponse:
        """List all operating points of a bundle, newest first."""

        def get() -> operating_points_pb2.ListOperatingPointsResponse:
            bundle = self._bundle(request.bundle_digest)
            active = self._store.active_id(bundle)
            found = self._store.operating_points(bundle)
            damaged = (
                operating_points_pb2.OperatingPoint(
                    id=name, bundle_digest=bundle, active=name == active, problem=problem
                )
                for name, problem in found.damaged.items()
            )
            points = (self._message(p, active=p.id == active) for p in found.readable)
            return operating_points_pb2.ListOperatingPointsResponse(operating_points=[*points, *damaged])

        return await self._calls(get)

    async def ActivateOperatingPoint(  # noqa: N802
        self, request: operating_points_pb2.ActivateOperatingPointRequest, context: Context
    ) -> operating_points_pb2.OperatingPoint:
        """Make another operating point active."""

        def activate() -> operating_points_pb2.OperatingPoint:
            bundle = self._bundle(request.bundle_digest)
            point = self._store.activate(bundle, self._point_id(bundle, request.operating_point_id))
            log.info("operating_point_activated", id=point.id, bundle=bundle)
            message = self._message(point, active=True)
            if message.needs_reindex:
                log.warning("catalogs_need_reindex", operating_point=point.id, catalogs=list(message.needs_reindex))
            return message

        message = await self._calls(activate)
        await self._watch.look(self._calls.limit_s)
        return message

    def _message(self, point: OperatingPoint, *, active: bool) -> operating_points_pb2.OperatingPoint:
        waiting = needs_reindex(self._store, point)
        return operating_point_message(point, active=active, needs_reindex=waiting)

    def _bundle(self, digest: str) -> BundleDigest:
        """Return the bundle with this name or digest, or whose digest starts so; the only bundle for ""."""
        return self._store.find_bundle(digest) if digest else self._store.only_bundle()

    def _point_id(self, bundle: BundleDigest, start: str) -> OperatingPointId:
        """Return the id of the operating point that starts with the prefix."""
        ids = self._store.operating_point_ids(bundle)
        hint = "see `retrieval operating-points list`"
        point = resolve_prefix(start, ids, kind="operating point", unknown=UnknownOperatingPoint, hint=hint)
        return OperatingPointId(point)
