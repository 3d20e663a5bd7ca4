"""`retrieval operating-points`: the thresholds of a bundle, with their evidence."""

from typing import Annotated

import typer

from retrieval.edge.cli.evidence import evidence, origin
from retrieval.edge.cli.options import Address, Bundle, DryRun, Json, connected
from retrieval.edge.cli.replies import as_dict, moment, print_needs_reindex
from retrieval.terminal import out, print_json, print_table


def list_points(bundle: Bundle = "", address: Address = None, as_json: Json = False) -> None:
    """List all operating points of a bundle, newest first."""
    from retrieval.v1 import operating_points_pb2

    with connected(address) as client:
        request = operating_points_pb2.ListOperatingPointsRequest(bundle_digest=bundle)
        reply = client.call(client.operating_points.ListOperatingPoints, request)
    if as_json:
        print_json(as_dict(reply)["operating_points"])
        return
    rows = [
        (p.id, "active" if p.active else "", p.score_kind, f"{p.threshold:.4f}", p.target, f"{p.tar:.3f}",
         p.n_classes, moment(p.created_at))
        if not p.problem
        else (p.id, "active, damaged" if p.active else "damaged", "", "", p.problem, "", "", "")
        for p in reply.operating_points
    ]  # fmt: skip
    columns = ("id", "", "score", "threshold", "target", "TAR", "classes", "created")
    print_table("Operating points", columns, rows)


def show_point(
    point: Annotated[
        str, typer.Argument(help="Id of an operating point, or its start; the active one by default.")
    ] = "",
    bundle: Bundle = "",
    address: Address = None,
    as_json: Json = False,
) -> None:
    """Show one operating point with its evidence."""
    from retrieval.v1 import operating_points_pb2

    with connected(address) as client:
        request = operating_points_pb2.GetOperatingPointRequest(bundle_digest=bundle, operating_point_id=point)
        reply = client.call(client.operating_points.GetOperatingPoint, request)
    if as_json:
        print_json(as_dict(reply))
        return
    state = "active" if reply.active else "stored, not active"
    for line in (
        f"operating point {reply.id} of bundle {reply.bundle_digest}: {state}",
        evidence(reply),
        origin(reply),
    ):
        out.print(line, markup=False)


def activate_point(
    point: Annotated[str, typer.Argument(help="Id of the operating point to activate, or its start.")],
    bundle: Bundle = "",
    address: Address = None,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Make an operating point active for every catalogue of its bundle. To go back, activate the older one.

    If it has another score, names the catalogues that need a reindex: they answer with the earlier one until then.
    """
    from retrieval.v1 import operating_points_pb2

    with connected(address) as client:
        service = client.operating_points
        if dry_run:
            wanted = operating_points_pb2.GetOperatingPointRequest(bundle_digest=bundle, operating_point_id=point)
            reply = client.call(service.GetOperatingPoint, wanted)
            would = f"would activate operating point {reply.id}: threshold {reply.threshold:.4f}"
            if as_json:
                print_json({"dry_run": would, "needs_reindex": list(reply.needs_reindex)})
                return
            out.print(would)
            print_needs_reindex(reply.needs_reindex, active=False)
            return
        request = operating_points_pb2.ActivateOperatingPointRequest(bundle_digest=bundle, operating_point_id=point)
        reply = client.call(service.ActivateOperatingPoint, request)
    if as_json:
        print_json(as_dict(reply))
        return
    out.print(f"operating point {reply.id} is active: threshold {reply.threshold:.4f}")
    print_needs_reindex(reply.needs_reindex, active=True)
