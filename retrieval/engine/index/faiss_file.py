"""The file of an index of FAISS: arrays as in `exact/file.py`, then what FAISS writes.

The checksum of the file covers FAISS's part: FAISS must not see damaged bytes, because it trusts the sizes in them.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import faiss
from numpy.typing import NDArray

from retrieval.engine.index.exact.file import map_arrays, write_arrays
from retrieval.engine.index.faiss_native import library
from retrieval.errors import CorruptArtifact

_BARE = {b"IxFI", b"IwFl"}  # how FAISS marks a flat index and one of lists


def write_file(
    path: Path, description: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]], native: faiss.Index
) -> None:
    """Write the file. Raises OSError if the disk is full."""
    length = 0

    def count(data: bytes) -> None:
        nonlocal length
        length += len(data)

    _write_native(native, count)
    write_arrays(path, {**description, "faiss_bytes": length}, arrays, lambda write: _write_native(native, write))


def read_file(path: Path) -> tuple[dict[str, Any], dict[str, NDArray[Any]], faiss.Index]:
    """Return the description, the arrays and the index of FAISS. Raises CorruptArtifact if something is damaged."""
    description, arrays = map_arrays(path)
    size, length = path.stat().st_size, description.get("faiss_bytes")
    if not isinstance(length, int) or not 0 < length <= size:
        raise CorruptArtifact(f"index {path} cannot be read: expected an index of FAISS, found {length} bytes of one")
    with path.open("rb") as file:
        file.seek(size - length)
        try:
            native = faiss.read_index(library.PyCallbackIOReader(file.read))
        except RuntimeError as error:
            raise CorruptArtifact(f"index {path} cannot be read: this version of FAISS does not know it") from error
    return description, arrays, native


def is_bare(path: Path) -> bool:
    """Return True if the file has only what FAISS writes, as in earlier versions."""
    try:
        with path.open("rb") as file:
            return file.read(4) in _BARE
    except OSError:
        return False


def read_bare(path: Path) -> faiss.Index:
    """Return the index of an earlier version. Raises CorruptArtifact if it is truncated."""
    try:
        return faiss.read_index(str(path))
    except RuntimeError as error:
        raise CorruptArtifact(f"index {path} cannot be read: it is truncated") from error


def _write_native(native: faiss.Index, write: Callable[[bytes], object]) -> None:
    """Write an index. FAISS's own writer reports nothing if only its last bytes find no room on the disk."""
    failed: list[OSError] = []

    def write_or_note(data: bytes) -> None:
        try:
            write(data)
        except OSError as error:
            failed.append(error)
            raise

    try:
        faiss.write_index(native, library.PyCallbackIOWriter(write_or_note))
    except RuntimeError:
        if not failed:
            raise
        raise failed[0] from None
