"""Which top-level modules a command line imports, seen in a process of its own."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence

HEAVY = frozenset(
    {
        *("celery", "faiss", "jinja2", "kombu", "matplotlib", "numba", "onnx", "onnxruntime", "prometheus_client"),
        *("pyarrow", "redis", "scipy", "sklearn", "structlog", "torch", "torchvision"),
    }
)
_PROGRAM = """
import sys
from {package} import main
for arguments in {commands!r}:
    sys.argv = ["command", *arguments]
    try:
        main()
    except SystemExit as end:
        print("ended", end.code, file=sys.stderr)
print("imported", *{{name.split(".")[0] for name in sys.modules}}, file=sys.stderr)
"""


def imported_by(package: str, *commands: Sequence[str]) -> tuple[set[int], set[str]]:
    """The exit codes of command lines of `package`, run one after another, and what they imported."""
    program = _PROGRAM.format(package=package, commands=[list(command) for command in commands])
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    codes = [int(line.removeprefix("ended ")) for line in done.stderr.splitlines() if line.startswith("ended ")]
    assert len(codes) == len(commands), done.stderr
    return set(codes), set(done.stderr.splitlines()[-1].split()[1:])
