"""What may be imported where, and who may read the environment: the rules that import-linter cannot see."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = sorted(
    path
    for package in ("retrieval", "training")
    for path in (ROOT / package).rglob("*.py")
    if (ROOT / "retrieval" / "v1") not in path.parents
)

# Importing a blocked module fails as if it were not installed; nothing is left to lazy imports of third parties.
IMPORT_EVERYTHING = """
import importlib, pkgutil, sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"torch", "torchvision", "timm", "training"}:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Absent())
import retrieval
for module in pkgutil.walk_packages(retrieval.__path__, "retrieval."):
    importlib.import_module(module.name)
    print(module.name)
"""


def environment_reads(source: str) -> list[int]:
    """The lines at which `source` touches the environment through the module os."""
    names = {"environ", "environb", "getenv", "getenvb", "putenv", "unsetenv"}
    return [
        node.lineno
        for node in ast.walk(ast.parse(source))
        if (
            isinstance(node, ast.Attribute)
            and isinstance(node.value, ast.Name)
            and node.value.id == "os"
            and node.attr in names
        )
        or (isinstance(node, ast.ImportFrom) and node.module == "os" and names & {alias.name for alias in node.names})
    ]


@pytest.mark.slow
def test_retrieval_imports_without_torch() -> None:
    """Every module of retrieval is importable where torch and training are not installed."""
    done = subprocess.run(
        [sys.executable, "-c", IMPORT_EVERYTHING], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    imported = set(done.stdout.split())
    assert {"retrieval.errors", "retrieval.contract.bundle", "retrieval.engine.encoder"} <= imported


@pytest.mark.parametrize(
    ("source", "lines"),
    [
        ("import os\nos.environ['A']", [2]),
        ("import os\nx = os.getenv('A')", [2]),
        ("from os import path, environ", [1]),
        ("import os\nos.path.join('a', 'b')", []),
    ],
)
def test_environment_reads_finds_each_form(source: str, lines: list[int]) -> None:
    """The check below recognises attribute access and from-imports, and nothing else."""
    assert environment_reads(source) == lines


def test_environment_is_read_in_settings_only() -> None:
    """Below edge/settings.py values are arguments. Three read nothing: they set what OpenMP and ONNX Runtime look up.

    forms.py looks whether AVX-512 is switched off, as the libraries look for switches of theirs.
    """
    found = {str(path.relative_to(ROOT)): lines for path in SOURCES if (lines := environment_reads(path.read_text()))}
    found.pop("retrieval/edge/settings.py", None)
    found.pop("training/cli/app.py", None)
    found.pop("retrieval/engine/encoder.py", None)
    found.pop("retrieval/engine/index/gpu_tiles.py", None)
    found.pop("retrieval/engine/index/exact/forms.py", None)
    assert found == {}
