"""`retrieval prune`: remove old snapshots and audits, and files that nothing uses any more."""

from dataclasses import asdict
from typing import Annotated

import typer

from retrieval.edge.cli.options import DryRun, Json, StateDir, Store
from retrieval.terminal import err, out, print_json


def prune(  # noqa: PLR0913  # one for each option
    catalog: Annotated[list[str] | None, typer.Argument(help="Names of catalogues; all by default.")] = None,
    keep: Annotated[
        int | None, typer.Option(help="Newest snapshots of a catalogue that stay. [RETRIEVAL_KEEP_SNAPSHOTS, 5]")
    ] = None,
    keep_days: Annotated[
        float | None, typer.Option(help="Days for which a snapshot stays in any case. [RETRIEVAL_KEEP_DAYS, 0]")
    ] = None,
    keep_audits: Annotated[
        int | None, typer.Option(help="Newest audits of a catalogue that stay. [RETRIEVAL_KEEP_AUDITS, 100]")
    ] = None,
    store: Store = None,
    state_dir: StateDir = None,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Remove old snapshots and audits, and what killed processes left.

    Snapshots that are live, that a rollback made live or would do so next, stay in any case.
    """
    from datetime import UTC, datetime

    from retrieval.edge.settings import load_settings
    from retrieval.edge.wiring import open_store
    from retrieval.flows.prune import PrunePolicy
    from retrieval.flows.prune import prune as run_prune

    settings = load_settings(
        store_url=store, state_dir=state_dir, keep_snapshots=keep, keep_days=keep_days, keep_audits=keep_audits
    )
    policy = PrunePolicy(keep=settings.keep_snapshots, keep_days=settings.keep_days, keep_audits=settings.keep_audits)
    pruned = run_prune(open_store(settings), policy, now=datetime.now(UTC), catalogs=catalog or (), dry_run=dry_run)
    if as_json:
        print_json({**asdict(pruned), "dry_run": dry_run})
        return
    verb = "would remove" if dry_run else "removed"
    for kind, found in (("snapshot", pruned.snapshots), ("audit", pruned.audits)):
        for name, ids in found.items():
            for removed in ids:
                out.print(f"{verb} {kind} {removed} of {name}", markup=False, highlight=False)
    for key in pruned.left_over:
        out.print(f"{verb} {key}, which was never finished", markup=False, highlight=False)
    n_snapshots, n_audits = (sum(map(len, found.values())) for found in (pruned.snapshots, pruned.audits))
    out.print(
        f"{verb} {n_snapshots} snapshots, {n_audits} audits, {len(pruned.embeddings)} files of embeddings and "
        f"{len(pruned.left_over)} unfinished files or folders",
        highlight=False,
    )
    for name, problem in pruned.damaged.items():
        err.print(f"snapshot {name} is damaged, so all embeddings stay: {problem}", markup=False)
    if pruned.embeddings_kept_for_jobs:
        out.print("embeddings stay while a job runs: prune again when it has ended")
