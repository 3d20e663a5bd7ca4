"""Real processes for tests: server and worker as users start them, on a free port, with a store of their own."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from retrieval.engine.index.open import warm

COMMAND = Path(sys.executable).with_name("retrieval")
_START_S = 110.0  # the first start after a change compiles the search


@dataclass(frozen=True)
class Deployment:
    """One store, one address, and the processes that share them."""

    folder: Path
    address: str
    environment: dict[str, str]

    @classmethod
    def in_folder(cls, folder: Path, **settings: str) -> Deployment:
        """A deployment in a new folder; nothing runs yet. `settings`: RETRIEVAL_* values by lower-case name.

        The search is compiled here, and kept for the processes, which have time limits.
        """
        warm()
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{listener.getsockname()[1]}"
        own = {"state_dir": str(folder / "state"), "address": address, "refresh_s": "0.2", "threads": "2", **settings}
        clean = {name: value for name, value in os.environ.items() if not name.startswith("RETRIEVAL_")}
        return cls(folder, address, clean | {f"RETRIEVAL_{name.upper()}": value for name, value in own.items()})

    def run(self, *arguments: str, accept: tuple[int, ...] = (0,)) -> subprocess.CompletedProcess[str]:
        """Run `retrieval ARGUMENTS` to its end; fails the test where the exit code is none of `accept`."""
        done = subprocess.run(
            [COMMAND, *arguments], env=self.environment, capture_output=True, text=True, timeout=120, check=False
        )
        assert done.returncode in accept, f"{arguments} ended with {done.returncode}:\n{done.stdout}\n{done.stderr}"
        return done

    def run_json(self, *arguments: str) -> Any:
        """Run `retrieval ARGUMENTS --json` and parse what it prints."""
        return json.loads(self.run(*arguments, "--json").stdout)

    @contextlib.contextmanager
    def running(self, name: str) -> Iterator[subprocess.Popen[bytes]]:
        """`retrieval NAME` beside the block, its log in the folder; ended with the block."""
        with (self.folder / f"{name}.log").open("ab") as log:
            process = subprocess.Popen([COMMAND, name], env=self.environment, stdout=log, stderr=log)
        try:
            if name == "serve":
                self.await_server(process)
            yield process
        finally:
            process.terminate()
            try:
                process.wait(timeout=30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
                raise

    def await_server(self, process: subprocess.Popen[bytes]) -> None:
        """Wait until the server answers."""
        deadline = time.monotonic() + _START_S
        while time.monotonic() < deadline and process.poll() is None:
            done = subprocess.run([COMMAND, "health"], env=self.environment, capture_output=True, check=False)
            if done.returncode == 0:
                return
        raise AssertionError(f"the server did not start:\n{(self.folder / 'serve.log').read_text()}")


def kill(process: subprocess.Popen[bytes]) -> None:
    """End a process the hard way: it cannot clean up anything."""
    process.send_signal(signal.SIGKILL)
    process.wait()
