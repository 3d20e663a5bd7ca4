"""The wheel holds what the code reads at run time: templates, configurations, stubs."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DATA = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
MADE = {".py", ".pyc", ".nbi", ".nbc"}  # modules, which are packed anyway, and what Python and Numba cache


@pytest.mark.parametrize("package", DATA)
def test_every_file_that_is_no_module_is_packed(package: str) -> None:
    """A template that no pattern names would be missing only where the wheel is installed."""
    folder = ROOT / package
    named = [set(folder.glob(pattern)) for pattern in DATA[package]]
    assert all(named), "a pattern that names nothing is left from a file that is gone"
    files = {path for path in folder.rglob("*") if path.is_file() and path.suffix not in MADE}
    assert files - set().union(*named) == set()
