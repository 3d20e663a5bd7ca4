"""A snapshot is opened without copying its index: processes of one machine share the pages of its file."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from retrieval.contract.bundle import BundleDigest
from retrieval.contract.score import ScoreDigest
from retrieval.engine.index.spec import IndexSpec
from retrieval.engine.snapshot import INDEX, snapshot_id
from retrieval.engine.store import Store
from tests.stores import publish_vectors
from tests.tiny_bundle import write_tiny_bundle

N, D = 100_000, 128
THRESHOLD = 0.6

# Opens and searches the snapshot twice, reports what the second time took of its own memory, and waits.
PROCESS = """
import json, re, sys
from pathlib import Path
import numpy as np
from retrieval.engine.store import Store

def anonymous():
    text = Path("/proc/self/smaps_rollup").read_text()
    return 1024 * int(re.search(r"^Anonymous: +(\\d+) kB", text, re.MULTILINE)[1])

def opened():
    snapshot = store.open_snapshot("shop", store.current("shop"))
    return snapshot, snapshot.index.above(queries, float(sys.argv[3]))

queries, store = np.load(sys.argv[2]), Store(sys.argv[1])
first, _ = opened()  # loads libraries and compiled code too
before = anonymous()
second, hits = opened()
found = [[each.positions.tolist(), each.scores.tolist()] for each in hits]
print(json.dumps({"grown": anonymous() - before, "found": found}), flush=True)
sys.stdin.read()
"""


def clusters(n: int, rng: np.random.Generator) -> NDArray[np.float32]:
    """Unit vectors in families of about fifty."""
    centres = rng.normal(size=(n // 50, D))
    rows = centres[rng.integers(0, len(centres), n)] + 0.6 * rng.normal(size=(n, D))
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True), np.float32)


def mapped(process: int, path: Path) -> dict[str, int]:
    """The bytes of a file that a process has in memory (Rss), and its part of them (Pss)."""
    name, sizes = str(path.resolve()), {"Rss": 0, "Pss": 0}
    for mapping in re.split(
        r"^(?=[0-9a-f]+-[0-9a-f]+ )", Path(f"/proc/{process}/smaps").read_text(), flags=re.MULTILINE
    ):
        if mapping.partition("\n")[0].endswith(name):
            for key in sizes:
                (size,) = re.findall(rf"^{key}: +(\d+) kB", mapping, flags=re.MULTILINE)
                sizes[key] += 1024 * int(size)
    return sizes


@pytest.mark.slow
@pytest.mark.timeout(600)  # the first time, both processes compile the search
@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="needs /proc of Linux")
def test_a_second_process_shares_the_pages(tmp_path: Path) -> None:
    """Both have the whole index in memory, and together they use it once; both answer alike."""
    rng = np.random.default_rng(0)
    vectors, store = clusters(N, rng), Store((tmp_path / "store").as_uri())
    publish_vectors(store, write_tiny_bundle(tmp_path / "bundle", dimension=D), vectors, threshold=THRESHOLD)
    np.save(tmp_path / "queries.npy", vectors[rng.choice(N, 40, replace=False)])
    (index,) = (tmp_path / "store").glob(f"catalogs/shop/snapshots/*/*.{INDEX}")
    size = index.stat().st_size
    assert size > N * D * 5

    command = [sys.executable, "-c", PROCESS, store.url, str(tmp_path / "queries.npy"), str(THRESHOLD)]
    processes = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    try:
        replies = [json.loads(process.stdout.readline()) for process in processes if process.stdout]
        shares = [mapped(process.pid, index) for process in processes]
    finally:
        for process in processes:
            process.communicate("")
    assert [process.returncode for process in processes] == [0, 0]
    assert [share["Rss"] > 0.95 * size for share in shares] == [True, True]
    assert sum(share["Pss"] for share in shares) < 1.05 * size
    assert max(reply["grown"] for reply in replies) < 0.4 * size, "the table of items, and no copy of the index"
    assert replies[0]["found"] == replies[1]["found"]
    assert sum(len(positions) for positions, _ in replies[0]["found"]) > 40 * 10


@pytest.mark.parametrize(("kind", "depends"), [("Exact", False), ("Flat", False), ("IVF4,nprobe=2", True)])
def test_the_recall_of_an_approximate_index_is_measured_again_at_another_threshold(kind: str, depends: bool) -> None:
    """The id of a snapshot names what it was built from; one that is there already is not built again."""
    ids = {
        snapshot_id(
            bundle=BundleDigest("b"),
            score=ScoreDigest("s"),
            catalog_digest="c",
            index_spec=IndexSpec.parse(kind),
            threshold=threshold,
        )
        for threshold in (0.5, 0.6)
    }
    assert len(ids) == 1 + depends
