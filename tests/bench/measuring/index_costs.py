"""What the exact index costs at one threshold, beside a flat scan and the best approximate indexes: ratios in turns."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import faiss
import numpy as np
from numpy.typing import NDArray

from retrieval.engine.index.exact_index import ExactIndex
from tests.bench.measuring.approximate import Opponent
from tests.bench.measuring.rounds import Case, Group, in_turns

Vectors = NDArray[np.float32]
Search = Callable[[Vectors], object]

BATCH = 64
_FLAT_SHARE = 8  # a flat scan costs so much that fewer of its queries are timed
_JOIN_BATCH, _JOIN_SAMPLE = 4096, 8192


def costs(
    exact: ExactIndex,
    flat: faiss.IndexFlatIP,
    opponents: Sequence[Opponent],
    queries: Vectors,
    threshold: float,
    *,
    n_rounds: int,
) -> dict[str, object]:
    """Return ratios of CPU time, one thread: above 1, the exact index is faster. Each round asks other queries."""
    n_singles = len(queries) // n_rounds
    asks: dict[str, tuple[Search, Vectors]] = {
        "exact": (lambda q: exact.above(q, threshold), queries),
        "flat": (lambda q: flat.range_search(q, threshold), queries),
    }
    asks |= {opponent.name: (opponent.search, opponent.candidate.prepared(queries)) for opponent in opponents}
    n_of = {"flat": max(3, n_singles // _FLAT_SHARE)}
    single = in_turns(
        "single",
        {name: _singly(ask, asked, n_of.get(name, n_singles)) for name, (ask, asked) in asks.items()},
        n_rounds=n_rounds,
    )
    batch = in_turns("batch", {name: _together(*ask) for name, ask in asks.items()}, n_rounds=n_rounds)
    names = [opponent.name for opponent in opponents]
    best = {opponent.name: opponent for opponent in opponents}
    figures: dict[str, object] = {
        "single_over_flat": _ratio(single, ["flat"]),
        "single_over_approximate": _ratio(single, names),
        "batch_over_flat": _ratio(batch, ["flat"]),
        "batch_over_approximate": _ratio(batch, names),
        "single_over_flat_range": _extremes(single, ["flat"]),
        "single_over_approximate_range": _extremes(single, names),
        "batch_over_flat_range": _extremes(batch, ["flat"]),
        "single_us": round(single.value("exact", "us"), 1),
        "batch_us": round(batch.value("exact", "us"), 1),
    }
    if names:
        fastest = best[_fastest(single, names)]
        figures["best_approximate"] = f"{fastest.name}, effort {fastest.effort}, recall {fastest.recall:.4f}"
    return figures


def two_threads(exact: ExactIndex, queries: Vectors, threshold: float, n_rounds: int) -> dict[str, float]:
    """Return how much faster two threads are: CPU time of one thread over that of the busier one of two.

    So the figure does not depend on what else runs on the machine. It counts waiting for a common lock as nothing.
    """
    found = {}
    for name, parts in (("single", [queries[i : i + 1] for i in range(BATCH)]), ("batch", [queries[:BATCH]])):
        ratios = []
        for _ in range(n_rounds):
            alone = busier = 0.0
            for part in parts:
                alone += _cpu(lambda p=part: exact.above(p, threshold))[0]
                mine, others = _cpu(lambda p=part: exact.above(p, threshold, n_threads=2))
                busier += max(mine, others)
            ratios.append(alone / busier)
        found[name] = _floor(float(np.median(ratios)))
    return found


def on_disk(exact: ExactIndex) -> dict[str, float]:
    """Return what the file needs for each vector, and the seconds to open it: of CPU, and by the clock.

    first_open_cpu_s: of the first time in this process, which compiles loops for mapped arrays, or reads them.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "index"
        exact.save(path)
        seconds = []
        for _ in range(2):
            cpu, clock = time.process_time(), time.monotonic()
            ExactIndex.load(path, dimension=exact.dimension, n_items=exact.n_items)
            seconds.append((time.process_time() - cpu, time.monotonic() - clock))
        return {
            "bytes_per_vector": round(path.stat().st_size / exact.n_items, 1),
            "first_open_cpu_s": round(seconds[0][0], 2),
            "open_cpu_s": round(seconds[1][0], 2),
            "open_s": round(seconds[1][1], 2),
        }


def self_join_over_flat(exact: ExactIndex, flat: faiss.IndexFlatIP, rows: Vectors, threshold: float) -> float:
    """Return the CPU time of a range search for all rows in large batches, from a sample, over that of the pairs."""
    started = time.thread_time()
    for _ in exact.pairs_above(threshold):
        pass
    own = time.thread_time() - started
    sample = rows[: max(1, min(_JOIN_SAMPLE, len(rows) // 5))]
    started = time.thread_time()
    for start in range(0, len(sample), _JOIN_BATCH):
        flat.range_search(sample[start : start + _JOIN_BATCH], threshold)
    return _floor((time.thread_time() - started) * len(rows) / len(sample) / own)


def _singly(ask: Search, queries: Vectors, n: int) -> Case:
    position = 0

    def measure() -> Mapping[str, float]:
        nonlocal position
        chosen = [(position + i) % len(queries) for i in range(n)]
        position += n
        started = time.thread_time()
        for number in chosen:
            ask(queries[number : number + 1])
        return {"us": (time.thread_time() - started) / n * 1e6}

    return measure


def _together(ask: Search, queries: Vectors) -> Case:
    position = 0

    def measure() -> Mapping[str, float]:
        nonlocal position
        start = position % max(1, len(queries) - BATCH + 1)
        position += BATCH
        batch = queries[start : start + BATCH]
        started = time.thread_time()
        ask(batch)
        return {"us": (time.thread_time() - started) / len(batch) * 1e6}

    return measure


def _cpu(call: Callable[[], object]) -> tuple[float, float]:
    """Return the CPU seconds of this thread, and of all others, in a call."""
    mine, everyone = time.thread_time(), time.process_time()
    call()
    mine, everyone = time.thread_time() - mine, time.process_time() - everyone
    return mine, everyone - mine


def _fastest(group: Group, names: Sequence[str]) -> str:
    return min(names, key=lambda name: group.value(name, "us"))


def _ratio(group: Group, names: Sequence[str]) -> float | None:
    """Return the median ratio of the fastest of some cases, rounded down; None if there is none."""
    return _floor(_row(group, names)[0]) if names else None


def _extremes(group: Group, names: Sequence[str]) -> list[float] | None:
    return [round(each, 2) for each in _row(group, names)[1:]] if names else None


def _row(group: Group, names: Sequence[str]) -> tuple[float, float, float]:
    return next(row.ratio for row in group.rows if row.case == _fastest(group, names))


def _floor(value: float) -> float:
    """Return a figure with two decimals that is not above the one measured."""
    return float(np.floor(value * 100) / 100)
