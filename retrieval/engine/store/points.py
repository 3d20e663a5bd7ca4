"""Operating points in the store, and the pointer to the active one of each bundle."""

from retrieval.contract.bundle import BundleDigest
from retrieval.contract.canonical import json_bytes
from retrieval.contract.operating_point import OperatingPoint, OperatingPointId
from retrieval.contract.score import ScoreDigest
from retrieval.engine.store.bundles import bundle_prefix
from retrieval.engine.store.listed import Listed, listed
from retrieval.engine.store.objects import Objects, checked_name
from retrieval.errors import BundleMismatch, CorruptArtifact, UnknownOperatingPoint


class OperatingPoints:
    """The part of the store that holds operating points."""

    objects: Objects

    def put_operating_point(self, point: OperatingPoint) -> None:
        """Store an operating point without activating it."""
        self.objects.put(_point_key(point.bundle_digest, point.id), json_bytes(point.to_json()))

    def operating_point(self, bundle: BundleDigest, point_id: OperatingPointId) -> OperatingPoint:
        """Read and verify an operating point. Raises UnknownOperatingPoint, CorruptArtifact, BundleMismatch."""
        data = self.objects.get(_point_key(bundle, point_id))
        if data is None:
            raise UnknownOperatingPoint(
                f"bundle {bundle} has no operating point {point_id}: see `retrieval operating-points`"
            )
        where = f"operating point {point_id}"
        point = OperatingPoint.from_json(data, where)
        if (found := OperatingPoint.id_of(data, where)) != point_id:
            raise CorruptArtifact(f"{where}: its content has id {found}: it was changed; calibrate again")
        if point.bundle_digest != bundle:
            raise BundleMismatch(f"operating point {point_id} was made for bundle {point.bundle_digest}, not {bundle}")
        return point

    def operating_point_ids(self, bundle: BundleDigest) -> list[OperatingPointId]:
        """Return the ids of all operating points of a bundle."""
        names = self.objects.artefacts(f"{bundle_prefix(bundle)}/operating_points", ".json")
        return [OperatingPointId(name.removesuffix(".json")) for name in names]

    def operating_points(self, bundle: BundleDigest) -> Listed[OperatingPoint]:
        """Return all operating points of a bundle, newest first."""
        return listed(self.operating_point_ids(bundle), lambda point_id: self.operating_point(bundle, point_id))

    def active_id(self, bundle: BundleDigest) -> OperatingPointId | None:
        """Return the id of the active operating point; None if there is none."""
        name = self.objects.pointer(active_key(bundle))
        return None if name is None else OperatingPointId(name)

    def active_operating_point(self, bundle: BundleDigest) -> OperatingPoint:
        """Return the active operating point. Raises UnknownOperatingPoint if there is none."""
        point_id = self.active_id(bundle)
        if point_id is None:
            raise UnknownOperatingPoint(
                f"bundle {bundle} has no active operating point: run `retrieval calibrate`, then "
                "`retrieval operating-points activate`"
            )
        return self.operating_point(bundle, point_id)

    def last_active_id(self, bundle: BundleDigest, score: ScoreDigest) -> OperatingPointId | None:
        """Return the id of the operating point with this score that was active last; None if another score never was.

        Activating an operating point with another score records the one that was active before.
        """
        name = self.objects.pointer(last_active_key(bundle, score))
        return None if name is None else OperatingPointId(name)


def last_active_key(bundle: BundleDigest, score: ScoreDigest) -> str:
    """Return the key of the pointer to the operating point that was active before another score was."""
    return f"{bundle_prefix(bundle)}/operating_points/ACTIVE-{checked_name(score, 'score')}"


def active_key(bundle: BundleDigest) -> str:
    """Return the key of the pointer to the active operating point."""
    return f"{bundle_prefix(bundle)}/operating_points/ACTIVE"


def _point_key(bundle: BundleDigest, point_id: OperatingPointId) -> str:
    return f"{bundle_prefix(bundle)}/operating_points/{checked_name(point_id, 'operating point')}.json"
