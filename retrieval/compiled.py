"""Compiles numerical loops with Numba. The only module that imports Numba and llvmlite, with `instructions.py`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, cast

import numba

_Function = TypeVar("_Function", bound=Callable[..., Any])


def keep_code_in(folder: Path) -> None:
    """Keep compiled code in a folder, in place of `__pycache__`. Call it before a module with loops is imported."""
    numba.config.CACHE_DIR = str(folder)  # type: ignore[attr-defined]  # its options are set when it is imported


def compiled(function: _Function) -> _Function:
    """Compile on first use, and keep the code on disk for the next process if a folder can be written."""
    return _compiled(function, loosely=False)


def compiled_loosely(function: _Function) -> _Function:
    """Compile so that sums may be added in any order: for bounds, which have room for rounding, never for results."""
    return _compiled(function, loosely=True)


def _compiled(function: _Function, *, loosely: bool) -> _Function:
    freedoms = {"reassoc", "contract", "arcp", "nsz"} if loosely else False
    try:
        made = numba.njit(nogil=True, cache=True, error_model="numpy", fastmath=freedoms)(function)
    except RuntimeError:  # neither the source's folder nor the user's cache can be written
        made = numba.njit(nogil=True, error_model="numpy", fastmath=freedoms)(function)
    return cast(_Function, made)
