"""`retrieval serve`, `worker` and `beat`, which run until stopped, and `retrieval health`, which checks the server."""

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer

from retrieval.edge.cli.options import Address, Json, StateDir, Store
from retrieval.terminal import out, print_json

if TYPE_CHECKING:
    from retrieval.client import Client
    from retrieval.edge.settings import Settings


def serve(address: Address = None, store: Store = None, state_dir: StateDir = None) -> None:
    """Answer queries over gRPC until stopped. Queries need no Redis; jobs do.

    It is ready when it logs `server_started` and `retrieval health` ends with 0.
    """
    from retrieval.edge.settings import load_settings, use_cores_once

    settings = load_settings(address=address, store_url=store, state_dir=state_dir)
    use_cores_once(1)  # the server's own threads share the cores
    _keep_compiled_code(settings)
    from retrieval.edge.server.serve import serve as run_server  # slow to import: wrong settings are reported first

    run_server(settings)


def worker(store: Store = None, state_dir: StateDir = None) -> None:
    """Do jobs until stopped. Without RETRIEVAL_REDIS_URL, also start an embedded Valkey.

    It is ready when it logs `worker_ready`.
    """
    from retrieval.edge.settings import load_settings, use_cores_once

    settings = load_settings(store_url=store, state_dir=state_dir)
    use_cores_once(max(1, settings.n_threads // settings.n_worker_processes))
    _keep_compiled_code(settings)
    from retrieval.edge.jobs.worker import run_worker

    with _queue(settings):
        run_worker(settings)


def beat(store: Store = None, state_dir: StateDir = None) -> None:
    """Start the scheduled audits (RETRIEVAL_AUDIT_*) until stopped. Run exactly one `beat`."""
    from retrieval.edge.settings import load_settings

    settings = load_settings(store_url=store, state_dir=state_dir)
    from retrieval.edge.jobs.schedule import run_beat

    run_beat(settings)


def health(
    address: Address = None,
    alive: Annotated[bool, typer.Option("--alive", help="Only check that the server answers.")] = False,
    ready: Annotated[
        bool, typer.Option("--ready", help="Only check that the server answers queries, whatever single catalogues do.")
    ] = False,
    as_json: Json = False,
) -> None:
    """List the catalogues of the server. Exit with 3 if it does not answer, or does not serve one that it should.

    For programs that restart a server there is --alive, for those that send it queries --ready.
    """
    from retrieval.client import connect
    from retrieval.edge.settings import load_settings
    from retrieval.errors import InvalidInput, NotReady

    if alive and ready:
        raise InvalidInput("--alive, --ready: expected one of them, found both")
    with connect(load_settings(address=address).address, connect_s=0) as client:
        is_serving = client.is_serving()
        if alive:
            out.print("alive")
            return
        if not is_serving:
            raise NotReady(f"the server answers, but does not serve: {_reason(client, '')}")
        catalogs = client.catalog_health()
        reasons = {catalog: _reason(client, catalog) for catalog, serving in catalogs.items() if not serving}
    if as_json:
        listed = [{"name": name, "serving": name not in reasons, "reason": reasons.get(name, "")} for name in catalogs]
        print_json({"catalogs": listed})
    else:
        out.print("serving")
        for catalog in catalogs:
            serving = f"NOT serving: {reasons[catalog]}" if catalog in reasons else "serving"
            out.print(f"{catalog}: {serving}", markup=False)
    if reasons and not (ready and len(reasons) < len(catalogs)):
        raise NotReady(f"{len(reasons)} of {len(catalogs)} catalogues are not served: {', '.join(reasons)}")


def _keep_compiled_code(settings: "Settings") -> None:
    """Keep the compiled loops of the index in the state folder, if the package lies where nobody may write."""
    from retrieval.compiled import keep_code_in

    keep_code_in(settings.state_dir / "compiled", only_if_needed=True)


def _reason(client: "Client", catalog: str) -> str:
    """Return why a catalogue is not served, as a search in it answers."""
    from retrieval.errors import RetrievalError
    from retrieval.v1 import search_pb2

    query = search_pb2.Query(embedding=search_pb2.Embedding(values=[1.0]))
    try:
        client.call(client.search.Search, search_pb2.SearchRequest(catalog=catalog, query=query))
    except RetrievalError as error:
        return str(error)
    return "it is served again"


@contextlib.contextmanager
def _queue(settings: "Settings") -> Iterator[None]:
    """Use the configured job queue, or run an embedded one while the block runs."""
    if settings.redis_url.get_secret_value():
        yield
        return
    from retrieval.edge.jobs.embedded import embedded_valkey

    with embedded_valkey(settings.state_dir):
        yield
