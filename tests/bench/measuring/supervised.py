"""Processes that are started again when they end, as `restart: unless-stopped` does, and the victims among them."""

from __future__ import annotations

import contextlib
import subprocess
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import psutil

from tests.processes import COMMAND

_PAUSE_S = 0.1  # compose waits so long before it starts a container again
_STOP_S = 60.0


class Supervised:
    """`retrieval ARGUMENTS`, started again whenever it ends, until it is stopped."""

    def __init__(self, arguments: Sequence[str], environment: dict[str, str], log: Path) -> None:
        self._arguments, self._environment, self._log = arguments, environment, log
        self._stopping = threading.Event()
        self._process: subprocess.Popen[bytes] | None = None
        self.exit_codes: list[int] = []  # of every process that ended
        self._thread = threading.Thread(target=self._run, name=arguments[0], daemon=True)
        self._thread.start()

    @property
    def process(self) -> psutil.Process | None:
        """The process, if it runs."""
        process = self._process
        if process is None or process.poll() is not None:
            return None
        try:
            return psutil.Process(process.pid)
        except psutil.NoSuchProcess:
            return None

    def stop(self) -> int:
        """Stop the process in order, and return its exit code; -9 if it had to be killed."""
        self._stopping.set()
        deadline = time.monotonic() + _STOP_S
        told = None  # once: a second signal ends a process that is about to end in order
        while self._thread.is_alive():
            process = self._process
            if process is not None and process is not told:
                process.terminate()
                told = process
            if process is not None and time.monotonic() > deadline:
                process.kill()
            self._thread.join(0.1)
        return self.exit_codes[-1]

    def _run(self) -> None:
        with self._log.open("ab") as log:
            while not self._stopping.is_set():
                self._process = subprocess.Popen(
                    [COMMAND, *self._arguments], env=self._environment, stdout=log, stderr=log
                )
                self.exit_codes.append(self._process.wait())
                time.sleep(_PAUSE_S)


def pool_processes(worker: Supervised) -> list[psutil.Process]:
    """The processes of a worker that do its tasks; not its Valkey and the keeper of that."""
    process, found = worker.process, []
    with contextlib.suppress(psutil.NoSuchProcess):
        for child in process.children() if process is not None else ():
            with contextlib.suppress(psutil.NoSuchProcess):  # it has ended, and is not waited for yet
                found += [child] if "worker" in child.cmdline() else []
    return found


def valkey_of(state_dir: Path) -> psutil.Process | None:
    """The embedded Valkey of a state folder, if it runs; it works in a folder of its own."""
    for process in psutil.process_iter(["name"]):
        with contextlib.suppress(psutil.Error):
            if process.info["name"] == "valkey-server" and process.cwd() == str(state_dir.resolve() / "valkey"):
                return process
    return None


def left_processes(folder: Path) -> list[str]:
    """The commands of all processes whose environment or command names the folder, but this one."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        try:
            text = " ".join([*(process.info["cmdline"] or []), *process.environ().values()])
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
        if str(folder) in text and process.pid != psutil.Process().pid and process.status() != psutil.STATUS_ZOMBIE:
            found.append(f"{process.pid}: {' '.join(process.info['cmdline'] or [])}")
    return found
