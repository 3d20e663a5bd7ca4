"""How much CPU time does a command cost before it does anything, as a multiple of `import grpc`?

Each case is a process of its own, as a shell starts it; its user and system time is measured, with that of its
children. Commands that call a server find nobody at a port that is taken and does not listen.
"""

from __future__ import annotations

import functools
import json
import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.bench.measuring.rounds import Case, Values, in_turns, option_parser, show

ROOT = Path(__file__).parents[2]
RETRIEVAL = "from retrieval.edge.cli import main; main()"
TRAINING = "from training.cli import main; main()"


def main() -> None:
    """Measure the cases in turns; the last line is one JSON object with the figures."""
    options = option_parser(__doc__).parse_args()
    with tempfile.TemporaryDirectory() as folder, socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{closed.getsockname()[1]}"
        cases = {
            "import grpc": process("import grpc"),
            "import retrieval.client": process("import retrieval.client"),
            "import retrieval.consistency": process("import retrieval.consistency"),
            "... and use choose_threshold": process("from retrieval.consistency import choose_threshold"),
            "retrieval --help": process(RETRIEVAL, "--help"),
            "retrieval health": process(RETRIEVAL, "health", "--address", address, ends=3),
            "training --help": process(TRAINING, "--help"),
        }
        if not options.quick:
            missing, unreached = f"{folder}/none", ("shoes", "--address", address)
            cases["retrieval snapshots list"] = process(RETRIEVAL, "snapshots", "list", *unreached, ends=3)
            cases["retrieval calibrate --help"] = process(RETRIEVAL, "calibrate", "--help")
            cases["training split, no folder"] = process(TRAINING, "split", missing, "--out", f"{folder}/my", ends=2)
        group = in_turns("a process", cases, n_rounds=options.rounds)
    show(__doc__, options, [group], {"python": sys.version.split()[0]})
    if not options.json:
        figures = {row.case: {"cpu_s": row.values["cpu_s"], "ratio": row.ratio[0]} for row in group.rows}
        print(json.dumps(figures))


def process(program: str, *arguments: str, ends: int = 0) -> Case:
    """A case: CPU seconds, user and system, of a Python process that runs `program` and ends with this code."""
    return functools.partial(_measure, [sys.executable, "-c", program, *arguments], ends)


def _measure(command: list[str], ends: int) -> Values:
    before = os.times()
    done = subprocess.run(
        command,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    after = os.times()
    if done.returncode != ends:
        raise SystemExit(f"{command} ended with {done.returncode}:\n{done.stderr}")
    return {
        "cpu_s": after.children_user + after.children_system - before.children_user - before.children_system,
    }


if __name__ == "__main__":
    main()
