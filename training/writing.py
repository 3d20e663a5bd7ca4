"""Files that are whole or absent: written beside their place, made durable, then put there in one move."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from retrieval.errors import InvalidInput, OutOfSpace


def make_folder(folder: Path) -> None:
    """Make `folder` where it is missing. Raises InvalidInput where something else lies there or in its way."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise InvalidInput(f"{folder} cannot be a folder, a file is in its place: name another") from error


def write_bytes(path: Path, content: bytes) -> None:
    """Replace `path` by this content, as `write_whole` does."""
    write_whole(path, lambda file: file.write(content), n_bytes=len(content))


def write_whole(path: Path, write: Callable[[BinaryIO], object], *, n_bytes: int) -> None:
    """Replace `path` by what `write` puts into the file it is given, about n_bytes; a crash leaves the old or the new.

    Raises OutOfSpace where it cannot be written; the old one is then untouched.
    """
    staging = path.with_name(staging_name(path.name))
    try:
        with staging.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        staging.replace(path)
        _sync_folder(path.parent)
    # torch's writer may put a RuntimeError of its own over what the file raised.
    except (OSError, RuntimeError) as error:
        staging.unlink(missing_ok=True)
        cause = _from_system(error)
        if cause is None:
            raise
        kept = "the one before it is kept" if path.exists() else "there was none before it"
        raise OutOfSpace(
            f"{path} cannot be written, {kept}: it needs about {n_bytes:,} bytes in {path.parent}, "
            f"{_free_bytes(path.parent):,} are free ({cause.strerror}). Make room, then go on (training: --resume)"
        ) from error


def staging_name(name: str) -> str:
    """What a file is called while it is written. A kill leaves it behind; the next writing replaces it."""
    return f".{name}"


def _sync_folder(folder: Path) -> None:
    """Until its folder is on the disk, a renamed file may have its old name after a crash."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _free_bytes(folder: Path) -> int:
    status = os.statvfs(folder)
    return status.f_bavail * status.f_frsize


def _from_system(error: BaseException | None) -> OSError | None:
    """The operating system's error that this one is, or came from."""
    while error is not None and not isinstance(error, OSError):
        error = error.__cause__ or error.__context__
    return error
