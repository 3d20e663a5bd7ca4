"""Compiles numerical loops with Numba. Only it, `instructions.py` and `products.py` import Numba."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar, cast

import numba
from numba.core import serialize
from numba.core.caching import FunctionCache, IndexDataCacheFile

_Function = TypeVar("_Function", bound=Callable[..., Any])

_PACKAGE = Path(__file__).parent
_kept_in = _PACKAGE / "__pycache__"
_CHECKSUM = hashlib.sha256


def keep_code_in(folder: Path, *, only_if_needed: bool = False) -> None:
    """Keep compiled code in a folder, in place of `__pycache__`. Call it before a module with loops is imported.

    only_if_needed: leave it in `__pycache__` if that can be written.
    """
    if only_if_needed and os.access(_PACKAGE, os.W_OK):
        return
    global _kept_in  # noqa: PLW0603  # one for the process, as Numba's own setting is
    _kept_in = folder


@functools.cache
def _version() -> str:
    """Return a digest of all sources with loops: Numba notices changes of a loop's own file only."""
    digest = hashlib.sha256(numba.__version__.encode())
    for path in sorted([*_PACKAGE.glob("engine/index/**/*.py"), *_PACKAGE.glob("consistency/pairs/*.py")]):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


@contextlib.contextmanager
def _own_cache() -> Iterator[None]:
    """Let Numba keep what is compiled in the block in a folder of this version, unless its user names a folder."""
    before = numba.config.CACHE_DIR  # type: ignore[attr-defined]  # its options are set when it is imported
    numba.config.CACHE_DIR = str(Path(before or _kept_in) / f"compiled-{_version()}")  # type: ignore[attr-defined]
    try:
        yield
    finally:
        numba.config.CACHE_DIR = before  # type: ignore[attr-defined]


def compiled(function: _Function) -> _Function:
    """Compile on first use, and keep the code on disk for the next process if a folder can be written."""
    return _compiled(function, loosely=False)


def compiled_loosely(function: _Function) -> _Function:
    """Compile so that sums may be added in any order: for bounds, which have room for rounding, never for results."""
    return _compiled(function, loosely=True)


def _compiled(function: _Function, *, loosely: bool) -> _Function:
    freedoms = {"reassoc", "contract", "arcp", "nsz"} if loosely else False
    made = numba.njit(nogil=True, error_model="numpy", fastmath=freedoms)(function)
    with contextlib.suppress(RuntimeError), _own_cache():  # the folder cannot be written
        made._cache = _KeptCode(function)  # type: ignore[attr-defined]  # where Numba has its own
    return cast(_Function, made)


class _KeptCode(FunctionCache):
    """The cache of a function. What cannot be read is compiled again, and what cannot be written is not kept."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__(function)  # type: ignore[no-untyped-call]  # Numba has no types for this
        locator = self._impl.locator
        parts = locator.get_cache_path(), self._impl.filename_base, locator.get_source_stamp()
        self._cache_file = _CodeFiles(*parts)  # type: ignore[no-untyped-call]  # as above

    def load_overload(self, sig: object, target_context: object) -> Any:
        """Return the code for a signature; None if there is none, or it is damaged."""
        with contextlib.suppress(Exception):  # unpickling may raise anything
            return super().load_overload(sig, target_context)  # type: ignore[no-untyped-call]  # as above
        return None

    def save_overload(self, sig: object, data: object) -> None:
        """Keep the code for a signature, unless the disk is full or may not be written."""
        with contextlib.suppress(OSError):
            super().save_overload(sig, data)  # type: ignore[no-untyped-call]  # as above


class _CodeFiles(IndexDataCacheFile):
    """A file for each signature, named after it, with a checksum.

    Numba's own files are numbered by an index, which two processes that start together can confuse; and it runs code
    whose file was damaged.
    """

    def load(self, key: object) -> Any:
        """Return what was saved; None if nothing was, or the file is damaged."""
        try:
            content = self._path(key).read_bytes()
        except OSError:
            return None
        checksum, kept = content[: _CHECKSUM().digest_size], content[_CHECKSUM().digest_size :]
        if _CHECKSUM(kept).digest() != checksum:
            return None
        found, data = pickle.loads(kept)
        return data if found == key else None

    def save(self, key: object, data: object) -> None:
        """Write a file whole or not at all."""
        kept: bytes = serialize.dumps((key, data))  # type: ignore[no-untyped-call]  # as above
        with self._open_for_write(str(self._path(key))) as file:
            file.write(_CHECKSUM(kept).digest() + kept)

    def _path(self, key: object) -> Path:
        name = hashlib.sha256(repr((self._source_stamp, key)).encode()).hexdigest()[:16]
        return Path(self._cache_path) / f"{Path(self._index_name).stem}.{name}.nbc"
