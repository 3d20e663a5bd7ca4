"""Compiles numerical loops with Numba. Only it, `instructions.py` and `products.py` import Numba."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar, cast

import numba

_Function = TypeVar("_Function", bound=Callable[..., Any])

_PACKAGE = Path(__file__).parent
_kept_in = _PACKAGE / "__pycache__"


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
    try:
        with _own_cache():
            made = numba.njit(nogil=True, cache=True, error_model="numpy", fastmath=freedoms)(function)
    except RuntimeError:  # the folder cannot be written
        made = numba.njit(nogil=True, error_model="numpy", fastmath=freedoms)(function)
    return cast(_Function, made)
