"""The file of an index of FAISS: arrays as in `exact/file.py`, then what FAISS writes.

The header has the length and the checksum of FAISS's part: FAISS must not see damaged bytes, because it trusts the
sizes in them.
"""

import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import faiss
from numpy.typing import NDArray

from retrieval.engine.index.exact.file import map_arrays, write_arrays
from retrieval.engine.index.faiss_native import library
from retrieval.errors import CorruptArtifact

_CHUNK = 1 << 22


def write_file(
    path: Path, description: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]], native: faiss.Index
) -> None:
    """Write the file. Raises OSError if the disk is full."""
    length = checksum = 0

    def measure(data: bytes) -> None:
        nonlocal length, checksum
        length += len(data)
        checksum = zlib.crc32(data, checksum)

    _write_native(native, measure)
    write_arrays(path, {**description, "faiss": {"length": length, "crc32": checksum}}, arrays)
    with path.open("ab") as file:
        _write_native(native, file.write)


def read_file(path: Path) -> tuple[dict[str, Any], dict[str, NDArray[Any]], faiss.Index]:
    """Return the description, the arrays and the index of FAISS. Raises CorruptArtifact if something is damaged."""
    description, arrays = map_arrays(path)
    try:
        length, checksum = (int(description["faiss"][name]) for name in ("length", "crc32"))
    except (KeyError, TypeError, ValueError) as error:
        raise CorruptArtifact(f"index {path} cannot be read: its header has no {error}") from error
    size = path.stat().st_size
    if not 0 <= length <= size:
        raise CorruptArtifact(f"index {path} cannot be read: it is truncated")
    with path.open("rb") as file:
        file.seek(size - length)
        found = 0
        while chunk := file.read(_CHUNK):
            found = zlib.crc32(chunk, found)
        if found != checksum:
            raise CorruptArtifact(f"index {path} cannot be read: it is truncated or was changed")
        file.seek(size - length)
        try:
            native = faiss.read_index(library.PyCallbackIOReader(file.read))
        except RuntimeError as error:
            raise CorruptArtifact(f"index {path} cannot be read: this version of FAISS does not know it") from error
    return description, arrays, native


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
