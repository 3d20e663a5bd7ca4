"""`retrieval bundles`: the model bundles of a store. Reads the store itself, so no server is needed."""

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from retrieval.edge.cli.options import Json, StateDir, Store
from retrieval.terminal import out, print_json, print_table

if TYPE_CHECKING:
    from retrieval.contract.bundle import BundleDigest
    from retrieval.engine.store import Store as ArtifactStore


def list_bundles(store: Store = None, state_dir: StateDir = None, as_json: Json = False) -> None:
    """List the model bundles of the store, with their thresholds and the catalogues that use them. Needs no server."""
    opened = _open(store, state_dir)
    used = _catalogs(opened)
    found = [_row(opened, digest, used) for digest in opened.bundles()]
    if as_json:
        print_json(found)
        return
    columns = ("id", "name", "dimension", "pixels", "points", "active threshold", "catalogues")
    rows = [
        (
            row["id"],
            row["name"],
            row["dimension"],
            row["pixels"],
            row["n_operating_points"],
            row["problem"] or ("none" if row["threshold"] is None else f"{row['threshold']:.4f} for {row['target']}"),
            ", ".join(row["catalogs"]),
        )
        for row in found
    ]
    print_table(f"Bundles in {opened.url}", columns, rows)


def name_bundle(
    bundle: Annotated[str, typer.Argument(help="Id of the bundle, its start, or its present name.")],
    name: Annotated[str, typer.Argument(help="The name: letters, digits, - and _; at most 64.")],
    store: Store = None,
    state_dir: StateDir = None,
    as_json: Json = False,
) -> None:
    """Give a bundle a name, which every option --bundle then accepts. Needs no server."""
    opened = _open(store, state_dir)
    digest = opened.find_bundle(bundle)
    opened.name_bundle(digest, name)
    print_json({"id": digest, "name": name}) if as_json else out.print(f"bundle {digest} has the name {name}")


def _open(store: str | None, state_dir: Any) -> "ArtifactStore":
    from retrieval.edge.settings import load_settings
    from retrieval.edge.wiring import open_store

    return open_store(load_settings(store_url=store, state_dir=state_dir))


def _catalogs(store: "ArtifactStore") -> dict[str, list[str]]:
    """Return the names of the catalogues by the bundle of their live snapshot; damaged ones are left out."""
    from retrieval.errors import RetrievalError

    used: dict[str, list[str]] = {}
    for name in sorted(store.catalogs()):
        try:
            manifest = store.snapshot_manifest(name, store.current(name))
        except RetrievalError:
            continue
        used.setdefault(manifest.bundle_digest, []).append(name)
    return used


def _row(store: "ArtifactStore", digest: "BundleDigest", used: dict[str, list[str]]) -> dict[str, Any]:
    """Return what is known of a bundle without its model; `problem` is the reason if its threshold is unusable."""
    from retrieval.contract.bundle import CONTRACT
    from retrieval.errors import RetrievalError, Unavailable

    threshold, target, problem, name = None, "", "", ""
    try:
        contract = json.loads(store.objects.get(f"bundles/{digest}/{CONTRACT}") or b"{}")
        pixels = contract["preprocessing"]["crop"]
        dimension = contract["dimension"]
    except (ValueError, KeyError, TypeError) as error:
        pixels = dimension = None
        problem = f"its {CONTRACT} cannot be read: {type(error).__name__}: {error}: export the bundle again"
    try:
        name = store.bundle_name(digest)
        if (active := store.active_id(digest)) is not None:
            point = store.operating_point(digest, active)
            threshold, target = point.threshold, str(point.choice.target)
    except Unavailable:
        raise
    except RetrievalError as error:
        problem = problem or str(error)
    return {
        "id": digest,
        "name": name,
        "dimension": dimension,
        "pixels": pixels,
        "n_operating_points": len(store.operating_point_ids(digest)),
        "threshold": threshold,
        "target": target,
        "catalogs": used.get(digest, []),
        "problem": problem,
    }
