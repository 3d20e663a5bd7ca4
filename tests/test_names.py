"""Names: a module is never hidden by what it defines, and one public class has one name."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = sorted(
    path
    for package in ("retrieval", "training")
    for path in (ROOT / package).rglob("*.py")
    if (ROOT / "retrieval" / "v1") not in path.parents
)

# After `import a.b.c` the attribute a.b.c must be that module, not a function or class of the same name.
FIND_HIDDEN = """
import importlib, pkgutil, sys
import retrieval, training

for package in (retrieval, training):
    for found in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        if not found.name.endswith("__main__"):
            importlib.import_module(found.name)
for name, module in sorted(sys.modules.items()):
    parent, _, last = name.rpartition(".")
    if name.startswith(("retrieval.", "training.")) and getattr(sys.modules[parent], last) is not module:
        print(name)
"""


@pytest.mark.slow
def test_no_module_is_hidden() -> None:
    """`import a.b.c` gives the module a.b.c, for every module of both packages."""
    done = subprocess.run([sys.executable, "-c", FIND_HIDDEN], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == []


@pytest.mark.slow
def test_public_classes_have_names_of_their_own() -> None:
    """No two public classes of the two packages share a name."""
    places = defaultdict(list)
    for path in SOURCES:
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                places[node.name].append(str(path.relative_to(ROOT)))
    assert {name: found for name, found in places.items() if len(found) > 1} == {}
