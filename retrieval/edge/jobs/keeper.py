"""The parent process of the embedded Valkey: ends it when nobody uses it any more, and ends with it.

Run as a script: `keeper.py FOLDER COMMAND...`. Imports the standard library only: it stays as long as the Valkey. The
users hold a shared lock on FOLDER/users, which the kernel releases even if they are killed. Keeper and Valkey hold
FOLDER/running, so that there is never a second server of one folder.
"""

import contextlib
import ctypes
import fcntl
import functools
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import NoReturn

_PR_SET_PDEATHSIG = 1
_STOP_S = 20.0
_LIBC = ctypes.CDLL(None)


def die_with_parent(parent: int) -> None:
    """Ask the kernel to end this process when its parent ends, even if the parent is killed (Linux only).

    parent: its process id. If it has ended already, this process ends at once: the kernel would never tell.
    """
    if hasattr(_LIBC, "prctl"):
        _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:
            os.kill(os.getpid(), signal.SIGTERM)


def keep(folder: Path, command: list[str]) -> None:
    """Run the server until it ends, a signal comes, or no user is left."""
    running = os.open(folder / "running", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(running, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return
    users = os.open(folder / "users", os.O_RDWR | os.O_CREAT, 0o600)
    for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, _end)
    with contextlib.suppress(KeyboardInterrupt):
        server = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            pass_fds=[running],
            preexec_fn=functools.partial(die_with_parent, os.getpid()),  # noqa: PLW1509  # one C call
        )
        try:
            fcntl.flock(users, fcntl.LOCK_EX)
        finally:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            server.terminate()
            try:
                server.wait(_STOP_S)
            except subprocess.TimeoutExpired:
                server.kill()
                server.wait()


def _end(*_: object) -> NoReturn:
    raise KeyboardInterrupt


if __name__ == "__main__":
    os.setsid()  # Ctrl-C reaches the users only, which leave in order
    keep(Path(sys.argv[1]), sys.argv[2:])
