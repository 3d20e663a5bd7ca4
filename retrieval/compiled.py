"""Compiles numerical loops with Numba. The only module that imports Numba and llvmlite, with `instructions.py`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba

_Function = TypeVar("_Function", bound=Callable[..., Any])


def compiled(function: _Function) -> _Function:
    """Compile on first use, and keep the code on disk for the next process if a folder can be written."""
    try:
        return cast(_Function, numba.njit(nogil=True, cache=True, error_model="numpy")(function))
    except RuntimeError:  # neither the source's folder nor the user's cache can be written
        return cast(_Function, numba.njit(nogil=True, error_model="numpy")(function))


def compiled_loosely(function: _Function) -> _Function:
    """Compile so that sums may be added in any order: for bounds, which have room for rounding, never for results."""
    options = {"nogil": True, "error_model": "numpy", "fastmath": {"reassoc", "contract", "arcp", "nsz"}}
    try:
        return cast(_Function, numba.njit(cache=True, **options)(function))
    except RuntimeError:
        return cast(_Function, numba.njit(**options)(function))
