"""The file of an exact index: a header, then its arrays as they are used, so that processes can share the pages.

    magic (8 bytes) | length of the header | checksum (8 bytes each, little-endian)
    | header (JSON) | arrays, each aligned to 64 bytes

The checksum is that of the length and of all that follows the checksum. The header names each array with its type,
shape and offset. The arrays are mapped into memory, not copied.
"""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retrieval.errors import CorruptArtifact

_MAGIC = b"EXACT\x00\x00\x01"
_ALIGNMENT = 64
_PREFIX = 24
_LONGEST_HEADER = 1 << 16
_CHUNK = 1 << 24

Arrays = Mapping[str, NDArray[Any]]
Tail = Callable[[Callable[[bytes], None]], None]


def write_arrays(path: Path, description: Mapping[str, Any], arrays: Arrays, tail: Tail | None = None) -> None:
    """Write a description and arrays into a file, then what `tail` writes. Raises OSError if the disk is full."""
    entries, offset = {}, 0
    for name, array in arrays.items():
        entries[name] = {"dtype": array.dtype.str, "shape": list(array.shape), "offset": offset}
        offset += -(-array.nbytes // _ALIGNMENT) * _ALIGNMENT
    header = json.dumps({**description, "arrays": entries}).encode()
    header += b" " * (-(_PREFIX + len(header)) % _ALIGNMENT)
    length = len(header).to_bytes(8, "little")
    checksum = zlib.crc32(header, zlib.crc32(length))

    def write(content: bytes | memoryview) -> None:
        nonlocal checksum
        file.write(content)
        checksum = zlib.crc32(content, checksum)

    with path.open("wb") as file:
        file.write(bytes(_PREFIX) + header)
        for array in arrays.values():
            write(np.ascontiguousarray(array).data.cast("B") if array.nbytes else b"")
            write(bytes(-array.nbytes % _ALIGNMENT))
        if tail:
            tail(write)
        file.seek(0)
        file.write(_MAGIC + length + checksum.to_bytes(8, "little"))


def map_arrays(path: Path) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """Return the description and the arrays of a file, mapped read-only. Raises CorruptArtifact if it is damaged."""
    try:
        whole = np.memmap(path, dtype=np.uint8, mode="r")
    except (OSError, ValueError) as error:
        raise CorruptArtifact(f"index {path} cannot be read: {error}") from error
    prefix = whole[:_PREFIX].tobytes()
    length, checksum = (int.from_bytes(prefix[start : start + 8], "little") for start in (8, 16))
    if prefix[:8] != _MAGIC or length > _LONGEST_HEADER:
        raise CorruptArtifact(f"index {path} cannot be read: it is truncated or no index of this version")
    found = zlib.crc32(prefix[8:16])
    for start in range(_PREFIX, len(whole), _CHUNK):
        found = zlib.crc32(whole[start : start + _CHUNK].data, found)
    if found != checksum:
        raise CorruptArtifact(f"index {path} cannot be read: its checksum is {found:08x}, expected {checksum:08x}")
    try:
        header = json.loads(whole[_PREFIX : _PREFIX + length].tobytes())
        arrays = {name: _array(whole, _PREFIX + length, entry) for name, entry in header.pop("arrays").items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CorruptArtifact(f"index {path} cannot be read: {error}") from error
    return header, arrays


def _array(whole: NDArray[np.uint8], start: int, entry: Mapping[str, Any]) -> NDArray[Any]:
    """Return one array of the file. Raises ValueError if the file is too short for it."""
    dtype, shape = np.dtype(str(entry["dtype"])), tuple(int(size) for size in entry["shape"])
    first = start + int(entry["offset"])
    size = math.prod(shape) * dtype.itemsize
    if min(shape, default=0) < 0 or dtype.hasobject or not start <= first <= len(whole) - size:
        raise ValueError(f"its header describes an array {dtype} {shape} that does not lie in the file")
    return whole[first : first + size].view(dtype).reshape(shape)
