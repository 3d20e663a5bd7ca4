"""What does a query cost through the gRPC server, compared with the same searcher in this process?

A real `retrieval serve` process answers callers over loopback; each sends its next query when the last is answered.
Callers and server share the machine, so the CPU time that the server itself spends on a query is shown as well (in
process: that of searcher and callers together).
"""

from __future__ import annotations

import asyncio
import itertools
import shutil
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import grpc
import psutil

from retrieval.contract.bundle import Bundle, open_bundle
from retrieval.edge.settings import load_settings
from retrieval.edge.wiring import make_searcher
from retrieval.engine.encoder import Encoder
from retrieval.engine.store import Store
from retrieval.flows.reindex import ReindexRequest
from retrieval.flows.search import QueryEmbedding, Searcher
from retrieval.v1 import search_pb2, search_pb2_grpc
from tests.bench.measuring.callers import drive
from tests.bench.measuring.rounds import Values, in_turns, option_parser, show
from tests.photos import shot, write_shots
from tests.pictures import encoded
from tests.processes import Deployment
from tests.stores import reindex
from tests.tiny_bundle import write_tiny_bundle

CATALOG = "places"
_THREADS = 2
_SHOTS = 4  # of each place in the catalogue; the next one is the query
Query = bytes | QueryEmbedding


def main() -> None:
    parser = option_parser(__doc__)
    parser.add_argument("--bundle", type=Path, help="folder of a model bundle (default: the tests' tiny one)")
    parser.add_argument("--places", type=int, help=f"catalogue, {_SHOTS} images a place (default 250, quick 50)")
    parser.add_argument("--queries", type=int, help="queries a run (default 400, quick 50)")
    parser.add_argument("--callers", type=int, nargs="+", default=[1, 16], help="concurrent callers")
    options = parser.parse_args()
    n_places = options.places or (50 if options.quick else 250)
    n_queries = options.queries or (50 if options.quick else 400)
    with tempfile.TemporaryDirectory() as name:
        deployment = Deployment.in_folder(Path(name), threads=str(_THREADS), refresh_s="2")
        encoder = prepare(deployment, options.bundle, n_places)
        images = [encoded(shot(number % n_places, _SHOTS), "JPEG", quality=90) for number in range(n_queries)]
        queries: dict[str, Sequence[Query]] = {
            "image": images,
            "embedding": [QueryEmbedding(row, encoder.bundle.digest) for row in encoder.embed_images(images)],
        }
        searcher = make_searcher(load_settings(state_dir=Path(name) / "state", threads=_THREADS))
        searcher.refresh()
        groups = []
        with deployment.running("serve") as process:
            server = psutil.Process(process.pid)
            n_matches = asyncio.run(check_same(searcher, deployment.address, images[0]))
            for (kind, asked), n_callers in itertools.product(queries.items(), options.callers):
                cases = {
                    "in-process Searcher": partial(run_in_process, searcher, asked, n_callers),
                    "retrieval serve": partial(run_server, deployment.address, server, asked, n_callers),
                }
                title = f"{kind} queries, {n_callers} callers, {n_queries} queries"
                groups.append(in_turns(title, cases, n_rounds=options.rounds))
    show(__doc__, options, groups, {"items": _SHOTS * n_places, "matches of the first query": n_matches})


def prepare(deployment: Deployment, given: Path | None, n_places: int) -> Encoder:
    """Calibrate the bundle and index the places in the deployment's store."""
    folder = deployment.folder
    if given is not None:
        shutil.copytree(given, folder / "bundle")
    bundle: Bundle = open_bundle(folder / "bundle") if given else write_tiny_bundle(folder / "bundle")
    calibration = write_shots(folder / "calibration", places=range(1000, 1040), n_shots=5)
    deployment.run("calibrate", "--bundle", str(bundle.directory), "--data", str(calibration), "--activate")
    manifest = write_shots(folder / "catalog", places=range(n_places), n_shots=_SHOTS)
    encoder = Encoder.open(bundle, threads=_THREADS)
    with ThreadPoolExecutor(max_workers=_THREADS) as pool:
        store = Store((folder / "state" / "store").as_uri())
        reindex(store, encoder, pool, ReindexRequest(catalog=CATALOG, manifest_uri=str(manifest)))
    return encoder


def run_in_process(searcher: Searcher, queries: Sequence[Query], n_callers: int) -> Values:
    started = time.process_time()
    values = asyncio.run(drive(partial(searcher.search, CATALOG), queries, n_callers))
    return {**values, "cpu_ms": 1000 * (time.process_time() - started) / len(queries)}


def run_server(address: str, server: psutil.Process, queries: Sequence[Query], n_callers: int) -> Values:
    requests = [_request(query) for query in queries]

    async def call() -> Values:
        async with grpc.aio.insecure_channel(address) as channel:
            await channel.channel_ready()
            return await drive(search_pb2_grpc.SearchServiceStub(channel).Search, requests, n_callers)

    before = server.cpu_times()
    values = asyncio.run(call())
    after = server.cpu_times()
    used_s = after.user + after.system - before.user - before.system
    return {**values, "cpu_ms": 1000 * used_s / len(queries)}


async def check_same(searcher: Searcher, address: str, query: Query) -> int:
    """Both ways must find the same items; returns how many."""
    result = await searcher.search(CATALOG, query)
    async with grpc.aio.insecure_channel(address) as channel:
        reply = await search_pb2_grpc.SearchServiceStub(channel).Search(_request(query))
    found = [match.item.id for match in result.matches]
    assert found == [match.item_id for match in reply.matches], "the server answers otherwise than the searcher"
    return len(found)


def _request(query: Query) -> search_pb2.SearchRequest:
    if isinstance(query, bytes):
        return search_pb2.SearchRequest(catalog=CATALOG, query=search_pb2.Query(image=query))
    vector = search_pb2.Embedding(values=query.values.tolist(), bundle_digest=query.bundle_digest)
    return search_pb2.SearchRequest(catalog=CATALOG, query=search_pb2.Query(embedding=vector))


if __name__ == "__main__":
    main()
