"""Does anything break if parts of a deployment are killed at any moment, the disk is full, or the store is away?

A real server, worker and embedded Valkey work on two small catalogues, under a supervisor that starts again what ends.
At random moments one of them is killed while reindexes, audits, calibrations and searches are in flight. Every
acknowledged job must end, no answer may be wrong, and nothing may be left at the end. Prints one JSON object.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import psutil

from retrieval.edge.jobs.embedded import is_running
from tests.bench.measuring.catalogs_under_fire import CATALOGS, Searching
from tests.bench.measuring.deployed import Deployed, clear
from tests.bench.measuring.supervised import pool_processes, valkey_of

VICTIMS = ("worker", "child", "valkey", "server")
WORK = ("reindex",) * 6 + ("search",) * 2 + ("audit", "calibration")
_SPAN_S = 1.0  # a kill comes so long after the start of the work at most
_CALM_EVERY = 10


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, help="default 300, quick 6")
    parser.add_argument("--disasters", type=int, help="runs with a full disk or a store that is away (20, quick 0)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="a few kills: shows that it runs")
    parser.add_argument("--keep", action="store_true", help="keep the folder with the logs")
    options = parser.parse_args()
    n_kills = options.kills if options.kills is not None else (6 if options.quick else 300)
    n_disasters = options.disasters if options.disasters is not None else (0 if options.quick else 20)
    started = time.monotonic()
    rng = random.Random(options.seed)
    folder = Path(tempfile.mkdtemp(prefix="kills"))
    found: dict[str, Any] = {"seed": options.seed}
    violations: list[str] = []
    if n_kills:
        (folder / "kills").mkdir()
        found["kills"] = kill_at_random(folder / "kills", rng, n_kills, violations)
    if n_disasters:
        from tests.bench.measuring.disasters import run_disasters

        found["disasters"] = run_disasters(folder, rng, n_disasters, violations)
    found |= {"seconds": round(time.monotonic() - started), "violations": violations}
    print(json.dumps(found))
    if options.keep or violations:
        print(f"the logs are in {folder}", file=sys.stderr)
    else:
        clear(folder)
    return 1 if violations else 0


def kill_at_random(folder: Path, rng: random.Random, n_kills: int, violations: list[str]) -> dict[str, Any]:
    """Kill a part of a deployment so many times; return what was counted."""
    killed: Counter[str] = Counter()
    work: Counter[str] = Counter()
    victims = list(VICTIMS)
    with Deployed(folder, rng, {}) as deployed:
        with Searching(deployed.collection, deployed.deployment.address, rng.randrange(10**9)) as searching:
            for number in range(n_kills):
                if number % _CALM_EVERY == 0:
                    deployed.calm()
                    deployed.use_valkey(number // _CALM_EVERY % 2 == 1)
                if number % len(VICTIMS) == 0:
                    rng.shuffle(victims)
                victim = victims[number % len(VICTIMS)]
                deployed.await_server()
                kind = rng.choice(WORK)
                if not _start(deployed, kind, rng.choice(CATALOGS)):
                    kind = "search"  # a caller searches all the time
                time.sleep(rng.uniform(0, _SPAN_S))
                alive = functools.partial(_kill, deployed, victim, rng)  # it may still be on its way up
                if deployed.eventually(alive, f"the {victim} did not start"):
                    killed[victim] += 1
                    work[kind] += 1
                print(f"{number + 1} of {n_kills}: {victim} during {kind}", file=sys.stderr)
            deployed.calm()
        deployed.settle()
        violations += deployed.violations + searching.violations
        return {
            "killed": dict(killed),
            "in flight": dict(work),
            "outcomes": dict(sorted(deployed.outcomes.items())),
            "searches": dict(searching.outcomes),
            "slowest job, s": round(deployed.slowest_s, 1),
        }


def _start(deployed: Deployed, kind: str, catalog: str) -> bool:
    """Start a piece of work; return False if it is refused, or one is in flight already."""
    if kind == "calibration":
        return deployed.start_calibration()
    if kind == "search":
        return True
    deployed.eventually(lambda: is_running(deployed.state_dir), "the Valkey did not start")
    return deployed.start_reindex(catalog) if kind == "reindex" else deployed.start_audit(catalog)


def _kill(deployed: Deployed, victim: str, rng: random.Random) -> bool:
    """Kill a part of the deployment, if it runs."""
    children = pool_processes(deployed.worker)
    process = {
        "worker": deployed.worker.process,
        "child": rng.choice(children) if children else None,
        "valkey": valkey_of(deployed.state_dir),
        "server": deployed.server.process,
    }[victim]
    if process is None:
        return False
    try:
        process.send_signal(signal.SIGKILL)
    except psutil.NoSuchProcess:
        return False
    with contextlib.suppress(psutil.NoSuchProcess):
        while process.status() != psutil.STATUS_ZOMBIE:
            time.sleep(0.01)
    return True


if __name__ == "__main__":
    sys.exit(main())
