"""`retrieval snapshots`: list the snapshots of a catalogue, go back to an older one."""

from typing import Annotated

import typer

from retrieval.edge.cli.options import Address, Catalog, DryRun, Json, connected, report_warnings
from retrieval.edge.cli.replies import as_dict, moment, recall_of, report_damaged
from retrieval.edge.label_warning import label_warning
from retrieval.terminal import out, print_json, print_table


def list_snapshots(catalog: Catalog, address: Address = None, as_json: Json = False) -> None:
    """List all snapshots of a catalogue, newest first."""
    from retrieval.v1 import catalogs_pb2

    with connected(address) as client:
        reply = client.call(client.catalogs.ListSnapshots, catalogs_pb2.ListSnapshotsRequest(catalog=catalog))
    if as_json:
        print_json(as_dict(reply)["snapshots"])
        return
    rows = [
        (
            s.id,
            "live" if s.live else "",
            s.n_items,
            s.n_failed,
            s.index_spec,
            recall_of(s).removeprefix("recall "),
            moment(s.created_at),
        )
        if not s.problem
        else (s.id, "live, damaged" if s.live else "damaged", "", "", s.problem, "", "")
        for s in reply.snapshots
    ]  # fmt: skip
    print_table(f"Snapshots of {catalog}", ("id", "", "items", "failed", "index", "recall", "created"), rows)
    report_warnings(
        f"snapshot {s.id}: {label_warning(s.labels.n_far, s.labels.far_items)}"
        for s in reply.snapshots
        if s.labels.n_far
    )


def roll_back(
    catalog: Catalog,
    snapshot: Annotated[
        str, typer.Argument(help="Id of a snapshot, or its start; the one before the live one by default.")
    ] = "",
    address: Address = None,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Make an older snapshot live again."""
    from retrieval.v1 import catalogs_pb2

    request = catalogs_pb2.RollbackRequest(catalog=catalog, snapshot_id=snapshot)
    with connected(address) as client:
        if dry_run:
            reply = client.call(client.catalogs.CheckRollback, request)
            report_damaged(reply.passed_over)
            would = f"would make snapshot {reply.id} of {catalog} live"
            print_json({"dry_run": would, "snapshot_id": reply.id}) if as_json else out.print(would, markup=False)
            return
        reply = client.call(client.catalogs.Rollback, request)
    report_damaged(reply.passed_over)
    print_json(as_dict(reply)) if as_json else out.print(f"snapshot {reply.id} of {catalog} is live")
