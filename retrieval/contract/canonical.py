"""Content addresses: one way to write a value as bytes, one way to name bytes.

Decides how every digest in the system is formed; leaves to each artefact what goes into it.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

DIGEST_CHARACTERS = 32  # 128 bits: enough against accidents, short enough to read out


def json_bytes(value: Any) -> bytes:
    """`value` as canonical JSON: keys sorted, no NaN, UTF-8, one newline at the end. Raises ValueError on NaN."""
    return (json.dumps(value, sort_keys=True, allow_nan=False, ensure_ascii=False, indent=1) + "\n").encode()


def digest_bytes(data: bytes) -> str:
    """SHA-256 of `data`, in hexadecimal, cut to `DIGEST_CHARACTERS`."""
    return hashlib.sha256(data).hexdigest()[:DIGEST_CHARACTERS]


def digest_json(value: Any) -> str:
    """The digest of a plain value, independent of the order of its keys."""
    return digest_bytes(json_bytes(value))


def digest_array(array: NDArray[np.generic]) -> str:
    """The digest of an array's type, shape and values."""
    header = f"{array.dtype.str}{array.shape}".encode()
    return digest_bytes(header + np.ascontiguousarray(array).tobytes())


def digest_file(path: Path) -> str:
    """The digest of a file's bytes, read in blocks."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:DIGEST_CHARACTERS]
