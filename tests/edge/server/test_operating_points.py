"""The operating point service over a real connection."""

from __future__ import annotations

import pytest

from retrieval.contract.bundle import Bundle
from retrieval.errors import InvalidInput, NotFound
from retrieval.v1 import operating_points_pb2
from tests.edge.conftest import Running


def test_operating_points_are_listed_with_their_evidence(running: Running, tiny_bundle: Bundle) -> None:
    """The active operating point comes with target, rates and intervals."""
    client = running.client
    got = client.call(client.operating_points.GetOperatingPoint, operating_points_pb2.GetOperatingPointRequest())
    (listed,) = client.call(
        client.operating_points.ListOperatingPoints, operating_points_pb2.ListOperatingPointsRequest()
    ).operating_points
    assert got == listed
    assert got.active
    assert got.bundle_digest == tiny_bundle.digest
    assert got.far <= got.far_target == 0.01
    assert got.target == "far=0.01"
    assert got.threshold_interval.low <= got.threshold <= got.threshold_interval.high


def test_the_start_of_an_id_is_enough(running: Running, tiny_bundle: Bundle) -> None:
    """Operating point and bundle are found by the first characters of their ids."""
    service = running.client.operating_points
    active = running.store.active_id(tiny_bundle.digest)
    assert active is not None
    request = operating_points_pb2.GetOperatingPointRequest(
        bundle_digest=tiny_bundle.digest[:6], operating_point_id=active[:5]
    )
    assert running.client.call(service.GetOperatingPoint, request).id == active
    activate = operating_points_pb2.ActivateOperatingPointRequest(operating_point_id=active[:4])
    assert running.client.call(service.ActivateOperatingPoint, activate).id == active


def test_an_ambiguous_start_is_an_invalid_argument(running: Running, tiny_bundle: Bundle) -> None:
    """Two operating points that start alike are listed; nothing is activated."""
    active = running.store.active_id(tiny_bundle.digest)
    assert active is not None
    folder = running.store.objects.local(f"bundles/{tiny_bundle.digest}/operating_points")
    twin = folder / f"{active[:6]}-twin.json"
    twin.write_bytes((folder / f"{active}.json").read_bytes())
    try:
        request = operating_points_pb2.ActivateOperatingPointRequest(operating_point_id=active[:6])
        with pytest.raises(InvalidInput, match=f"start of 2 ids: .*{active}"):
            running.client.call(running.client.operating_points.ActivateOperatingPoint, request)
    finally:
        twin.unlink()
    with pytest.raises(NotFound, match="no operating point 'abc': give the whole id or at least its first 4"):
        running.client.call(
            running.client.operating_points.GetOperatingPoint,
            operating_points_pb2.GetOperatingPointRequest(operating_point_id="abc"),
        )
