"""Writes files completely or not at all: to a temporary name, flushed to disk, then renamed."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from retrieval.errors import InvalidInput, OutOfSpace


def make_folder(folder: Path) -> None:
    """Create `folder` if it is missing. Raises InvalidInput if a file is in its place."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise InvalidInput(f"{folder} cannot be a folder, a file is in its place: name another") from error


def write_bytes(path: Path, content: bytes) -> None:
    """Replace `path` with this content, as `write_whole` does."""
    write_whole(path, lambda file: file.write(content), n_bytes=len(content))


def write_whole(path: Path, write: Callable[[BinaryIO], object], *, n_bytes: int) -> None:
    """Replace `path` with what `write` writes, about n_bytes; a crash leaves the old file or the new one.

    Raises OutOfSpace if it cannot be written; the old file is then unchanged.
    """
    staging = path.with_name(staging_name(path.name))
    try:
        with staging.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        staging.replace(path)
        _sync_folder(path.parent)
    # torch's writer may raise a RuntimeError from the OSError of the file.
    except (OSError, RuntimeError) as error:
        staging.unlink(missing_ok=True)
        cause = _from_system(error)
        if cause is None:
            raise
        kept = "the previous one is kept" if path.exists() else "there was no previous one"
        raise OutOfSpace(
            f"{path} cannot be written, {kept}: it needs about {n_bytes:,} bytes in {path.parent}, "
            f"{_free_bytes(path.parent):,} are free ({cause.strerror}). Make room, then continue (training: --resume)"
        ) from error


def staging_name(name: str) -> str:
    """Return the temporary name of a file. A killed process leaves that file behind; the next write replaces it."""
    return f".{name}"


def _sync_folder(folder: Path) -> None:
    """Flush a folder to disk; before that, a renamed file may have its old name after a crash."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _free_bytes(folder: Path) -> int:
    status = os.statvfs(folder)
    return status.f_bavail * status.f_frsize


def _from_system(error: BaseException | None) -> OSError | None:
    """Return the error of the operating system that is, or caused, this error."""
    while error is not None and not isinstance(error, OSError):
        error = error.__cause__ or error.__context__
    return error
