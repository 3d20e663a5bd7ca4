"""The operating point service over a real connection."""

from __future__ import annotations

from retrieval.contract.bundle import Bundle
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
