"""`retrieval catalogs`: the catalogues of a server's store."""

from retrieval.edge.cli.options import Address, Json, connected
from retrieval.edge.cli.replies import as_dict, moment
from retrieval.terminal import print_json, print_table


def list_catalogs(address: Address = None, as_json: Json = False) -> None:
    """List all catalogues with their live snapshots."""
    from retrieval.v1 import catalogs_pb2

    with connected(address) as client:
        reply = client.call(client.catalogs.ListCatalogs, catalogs_pb2.ListCatalogsRequest())
    if as_json:
        print_json([as_dict(catalog) for catalog in reply.catalogs])
        return
    rows = [
        (c.name, c.live.n_items, c.live.n_failed, c.live.index_spec, c.live.id, c.live.bundle_digest[:8],
         moment(c.live.created_at))
        if c.HasField("live")
        else (c.name, "", "", "", c.problem, "", "")
        for c in reply.catalogs
    ]  # fmt: skip
    columns = ("catalogue", "items", "failed", "index", "live snapshot", "bundle", "created")
    print_table("Catalogues", columns, rows)
