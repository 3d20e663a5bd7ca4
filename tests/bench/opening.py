"""How long does a server need to open a snapshot, compared with reading its files?

Whole snapshots, item table included: manifest, checksums of the files, the checks and the self-test of the index, and a
first query. The baseline reads the files once. They are in the memory of the machine, not on a disk.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]  # ships no types

from retrieval.engine.snapshot import INDEX, ITEMS
from retrieval.engine.store import Store
from tests.bench.measuring.rounds import Values, in_turns, option_parser, show
from tests.bench.measuring.smoothed import made_up
from tests.stores import publish_vectors
from tests.tiny_bundle import write_tiny_bundle

CATALOG = "shop"
_CHUNK = 1 << 20
_MATCHES = 10  # of a query, about
_SAMPLE = 20_000


def main() -> None:
    """Measure both in turns; the last line is one JSON object with the figures."""
    parser = option_parser(__doc__)
    parser.add_argument("--gallery", type=Path, help="vectors [n, d] in a .npy file (default: made up)")
    parser.add_argument("--n", type=int, help="vectors (default 1000000, quick 100000)")
    options = parser.parse_args()
    n = options.n or (100_000 if options.quick else 1_000_000)
    vectors = np.load(options.gallery)[:n] if options.gallery else made_up(n)
    n = len(vectors)
    rng = np.random.default_rng(0)
    queries, sample = (vectors[rng.choice(n, min(n, size), replace=False)] for size in (64, _SAMPLE))
    threshold = float(np.quantile(queries @ sample.T, 1 - _MATCHES / n))
    with threadpool_limits(1), tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        store = Store((folder / "store").as_uri())
        bundle = write_tiny_bundle(folder / "bundle", dimension=vectors.shape[1])
        publish_vectors(store, bundle, vectors, threshold=threshold, catalog=CATALOG)
        files = [path for kind in (INDEX, ITEMS) for path in folder.glob(f"store/catalogs/*/snapshots/*/*.{kind}")]
        cases = {
            "read the files": partial(seconds_of, lambda: read(files)),
            "open the snapshot": partial(seconds_of, lambda: search(store, queries[:1], threshold)),
        }
        group = in_turns(f"{n:,} vectors, {vectors.shape[1]} columns", cases, n_rounds=options.rounds)
        megabytes = round(sum(path.stat().st_size for path in files) / 1e6, 1)
    show(__doc__, options, [group], {"megabytes": megabytes})
    if not options.json:
        cpu_s, clock_s = (group.value("open the snapshot", key) for key in ("cpu_s", "clock_s"))
        figures = {"n": n, "open_cpu_s": cpu_s, "open_clock_s": clock_s, "open_over_reading": group.rows[1].ratio}
        print(json.dumps({**figures, "megabytes": megabytes}))


def seconds_of(act: Callable[[], object]) -> Values:
    cpu, clock = time.process_time(), time.perf_counter()
    act()
    return {"cpu_s": time.process_time() - cpu, "clock_s": time.perf_counter() - clock}


def read(files: list[Path]) -> None:
    for path in files:
        with path.open("rb") as file:
            while file.read(_CHUNK):
                pass


def search(store: Store, query: np.ndarray, threshold: float) -> None:
    snapshot = store.open_snapshot(CATALOG, store.current(CATALOG))
    (hits,) = snapshot.index.above(query, threshold)
    snapshot.items.take(hits.positions[:100])


if __name__ == "__main__":
    main()
