"""Every numerical library gets its number of threads before it is loaded, so that together they use the cores once."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

_CLEAN = {name: value for name, value in os.environ.items() if not name.endswith(("_NUM_THREADS", "_WAIT_POLICY"))}


def printed(program: str, **variables: str) -> list[str]:
    """What a new interpreter prints."""
    environment = {**_CLEAN, **variables}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    return done.stdout.split()


LIBRARIES = """
from retrieval.edge.settings import use_cores_once
use_cores_once(3)
import faiss, numpy, scipy.linalg, threadpoolctl
print(faiss.omp_get_max_threads(), *{pool["num_threads"] for pool in threadpoolctl.threadpool_info()})
"""


@pytest.mark.slow
def test_the_libraries_get_the_number() -> None:
    """FAISS and every matrix library; a variable that the user set keeps its value."""
    if (os.cpu_count() or 1) >= 3:  # OpenBLAS starts no more threads than there are cores
        assert printed(LIBRARIES) == ["3", "3"]
    assert printed(LIBRARIES.replace("(3)", "(1)")) == ["1", "1"]
    assert printed(LIBRARIES, OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1") == ["1", "1"]


COMMAND = """
import sys
from retrieval.edge import settings
def seen(threads):
    print(threads, *(name for name in ("numpy", "faiss", "onnxruntime") if name in sys.modules))
    sys.exit(0)
settings.use_cores_once = seen
sys.argv = ["retrieval", *{arguments!r}]
from retrieval.edge.cli import main
main()
"""


@pytest.mark.parametrize(
    ("arguments", "threads"),
    [(["serve"], "1"), (["worker"], "2"), (["calibrate", "--bundle", "b", "--data", "d"], "8")],
)
def test_commands_set_it_before_they_load_a_library(arguments: list[str], threads: str) -> None:
    """A worker's processes share its threads; the server's own threads share the cores."""
    program = COMMAND.format(arguments=arguments)
    assert printed(program, RETRIEVAL_THREADS="8", RETRIEVAL_WORKER_PROCESSES="4") == [threads]
