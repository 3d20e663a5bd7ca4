"""Options and arguments that several commands share, and functions that use their values."""

import contextlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from retrieval.terminal import err

if TYPE_CHECKING:
    from retrieval.client import Client

Json = Annotated[bool, typer.Option("--json", help="Print the result as one JSON document.")]
Store = Annotated[
    str | None,
    typer.Option("--store", help="Path or URL of the store. [RETRIEVAL_STORE_URL, the folder store in --state-dir]"),
]
Address = Annotated[
    str | None, typer.Option("--address", help="host:port of the server. [RETRIEVAL_ADDRESS, 127.0.0.1:50051]")
]
StateDir = Annotated[
    Path | None,
    typer.Option("--state-dir", help="Folder of this machine's own state. [RETRIEVAL_STATE_DIR, .retrieval]"),
]
Catalog = Annotated[str, typer.Argument(help="Name of the catalogue.")]
Manifest = Annotated[
    str, typer.Argument(help="A folder (one sub-folder per class) or a .csv, .parquet or .jsonl with id, uri, label.")
]
Family = Annotated[
    str,
    typer.Option(
        help="Column that names families of classes, such as the maker: classes of a family look alike and come "
        "together, so that intervals and promises count families in place of classes."
    ),
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Only print what would change.")]
Bundle = Annotated[
    str, typer.Option("--bundle", help="Id of the bundle, its start, or its name; needed if the store holds several.")
]
Wait = Annotated[bool, typer.Option(help="Wait until the job ends.")]


@contextlib.contextmanager
def connected(address: str | None) -> Iterator["Client"]:
    """Connect to the server at `address`, or at the one in the settings, while the block runs."""
    from retrieval.client import connect
    from retrieval.edge.settings import load_settings

    with connect(load_settings(address=address).address) as client:
        yield client


def report_passed_over(sentences: Iterable[str]) -> None:
    """Print what a manifest holds and is no item to stderr."""
    for sentence in sentences:
        err.print(sentence, markup=False)


def report_warnings(sentences: Iterable[str]) -> None:
    """Print what somebody should look at in the result of a job to stderr."""
    for sentence in sentences:
        err.print(f"warning: {sentence}", markup=False)


def check_early(manifest: str, *, urls: bool = False, **wanted: Any) -> None:
    """Raise what `engine.manifests.check_manifest` finds in a local manifest; with `urls` also in a remote one.

    What cannot be read here is left to the server, whose workers may be able to.
    """
    from retrieval.engine.manifests import check_manifest
    from retrieval.errors import Unavailable

    if manifest and (urls or "://" not in manifest):
        with contextlib.suppress(Unavailable):
            check_manifest(absolute(manifest), **wanted)


def absolute(manifest: str) -> str:
    """Return a local path in full: the worker that reads it has another working directory. URLs stay as they are."""
    return manifest if not manifest or "://" in manifest else str(Path(manifest).resolve())
