"""The package imports its public names when they are first used, and no name hides a module."""

from __future__ import annotations

import pkgutil
import subprocess
import sys
from types import ModuleType

import pytest

import retrieval.consistency as consistency

_HEAVY = ("numba", "scipy", "sklearn", "pyarrow")


@pytest.mark.parametrize(
    ("statement", "forbidden"),
    [
        ("import retrieval.consistency", (*_HEAVY, "numpy")),
        ("from retrieval.consistency import Interval, LabelledVectors, OperatingCurves, Whitening", _HEAVY),
        ("from retrieval.consistency import OpisOptions, consistency_report, operating_curves", _HEAVY),
        ("from retrieval.consistency import choose_threshold", ("numba", "scipy.stats", "sklearn", "pyarrow")),
    ],
)
def test_an_import_loads_no_library_that_it_does_not_use(statement: str, forbidden: tuple[str, ...]) -> None:
    code = f"import sys; {statement}; print([name for name in {forbidden!r} if name in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


@pytest.mark.parametrize("name", consistency.__all__)
def test_every_public_name_is_defined_and_hides_no_module(name: str) -> None:
    assert not isinstance(getattr(consistency, name), ModuleType)
    assert name not in {module.name for module in pkgutil.iter_modules(consistency.__path__)}


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no_such_name"):
        consistency.no_such_name  # noqa: B018  # the access is what is tested
