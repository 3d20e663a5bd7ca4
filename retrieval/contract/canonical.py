"""Content addresses: one canonical form of a value as bytes, and digests of bytes.

Every digest in the system is computed here. Each artefact decides which values its digest covers.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

DIGEST_CHARACTERS = 32  # 128 bits: no accidental collisions, and short enough to read aloud


def json_bytes(value: Any) -> bytes:
    """Return `value` as canonical JSON: sorted keys, UTF-8, one newline at the end. Raises ValueError for NaN."""
    return (json.dumps(value, sort_keys=True, allow_nan=False, ensure_ascii=False, indent=1) + "\n").encode()


def digest_bytes(data: bytes) -> str:
    """Return the SHA-256 of `data` in hexadecimal, cut to `DIGEST_CHARACTERS`."""
    return hashlib.sha256(data).hexdigest()[:DIGEST_CHARACTERS]


def digest_json(value: Any) -> str:
    """Return the digest of a plain value, independent of the order of its keys."""
    return digest_bytes(json_bytes(value))


def digest_array(array: NDArray[np.generic]) -> str:
    """Return the digest of the type, shape and values of an array."""
    header = f"{array.dtype.str}{array.shape}".encode()
    return digest_bytes(header + np.ascontiguousarray(array).tobytes())


def digest_file(path: Path) -> str:
    """Return the digest of the bytes of a file, read in blocks."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:DIGEST_CHARACTERS]
