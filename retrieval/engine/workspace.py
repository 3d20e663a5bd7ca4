"""A folder for temporary files that does not outlive its process for long, even if that is killed.

Each folder is locked while it is used, and the kernel releases the lock of a killed process. Who makes the next folder
removes those that nobody uses any more.
"""

import contextlib
import fcntl
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def workspace() -> Iterator[Path]:
    """Yield an empty folder of this user, and remove it after the block; first remove what killed processes left."""
    clear_workspaces()
    folder, lock = _locked_folder()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)


def clear_workspaces() -> None:
    """Remove the folders of processes that were killed."""
    for folder in Path(tempfile.gettempdir()).glob(f"{_prefix()}*"):
        with contextlib.suppress(OSError):  # it is used, or its process has just removed it
            lock = _lock(folder)
            try:
                shutil.rmtree(folder)
            finally:
                os.close(lock)


def _locked_folder() -> tuple[Path, int]:
    while True:
        folder = Path(tempfile.gettempdir()) / f"{_prefix()}{uuid.uuid4().hex}"
        folder.mkdir(mode=0o700)
        with contextlib.suppress(BlockingIOError, FileNotFoundError):  # another process takes it for a left one
            lock = _lock(folder)
            if folder.exists():
                return folder, lock
            os.close(lock)


def _lock(folder: Path) -> int:
    """Lock a folder for this process. Raises BlockingIOError if another one uses it."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _prefix() -> str:
    return f"retrieval-{os.getuid()}-work-"
