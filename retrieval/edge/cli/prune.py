"""`retrieval prune`: remove old snapshots, and embeddings that no snapshot uses any more."""

from dataclasses import asdict
from typing import Annotated

import typer

from retrieval.edge.cli.options import DryRun, Json, StateDir, Store
from retrieval.terminal import out, print_json


def prune(
    catalog: Annotated[list[str] | None, typer.Argument(help="Names of catalogues; all by default.")] = None,
    keep: Annotated[
        int | None, typer.Option(help="Newest snapshots of a catalogue that stay. [RETRIEVAL_KEEP_SNAPSHOTS, 5]")
    ] = None,
    keep_days: Annotated[
        float | None, typer.Option(help="Days for which a snapshot stays in any case. [RETRIEVAL_KEEP_DAYS, 0]")
    ] = None,
    store: Store = None,
    state_dir: StateDir = None,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Remove old snapshots. Those that are live, that a rollback made live or would do so next, stay in any case."""
    from datetime import UTC, datetime

    from retrieval.edge.settings import load_settings
    from retrieval.edge.wiring import open_store
    from retrieval.flows.prune import PrunePolicy
    from retrieval.flows.prune import prune as run_prune

    settings = load_settings(store_url=store, state_dir=state_dir, keep_snapshots=keep, keep_days=keep_days)
    policy = PrunePolicy(keep=settings.keep_snapshots, keep_days=settings.keep_days)
    pruned = run_prune(open_store(settings), policy, now=datetime.now(UTC), catalogs=catalog or (), dry_run=dry_run)
    if as_json:
        print_json({**asdict(pruned), "dry_run": dry_run})
        return
    verb = "would remove" if dry_run else "removed"
    for name, ids in pruned.snapshots.items():
        for snapshot in ids:
            out.print(f"{verb} snapshot {snapshot} of {name}", markup=False, highlight=False)
    n_snapshots = sum(map(len, pruned.snapshots.values()))
    out.print(f"{verb} {n_snapshots} snapshots and {len(pruned.embeddings)} files of embeddings", highlight=False)
    if pruned.embeddings_kept_for_jobs:
        out.print("embeddings stay while a job runs: prune again when it has ended")
